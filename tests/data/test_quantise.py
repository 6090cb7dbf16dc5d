import torch

from ganflow.data.quantise import to_float, to_uint8


def test_bytes_map_to_the_whole_of_minus_one_to_one() -> None:
    assert to_float(torch.tensor([0, 51, 204, 255], dtype=torch.uint8)).tolist() == [
        -1.0,
        torch.tensor(-0.6).item(),
        torch.tensor(0.6).item(),
        1.0,
    ]


def test_every_byte_survives_the_round_trip() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every_byte)), every_byte)


def test_floats_are_rounded_and_clipped() -> None:
    floats = torch.tensor([-7.0, -1.0, -1 + 0.9 / 255, -1 + 1.1 / 255, 0.0, 1.0, 7.0])
    assert to_uint8(floats).tolist() == [0, 0, 0, 1, 128, 255, 255]


def test_the_input_is_left_alone() -> None:
    floats = torch.zeros(3)
    to_uint8(floats)
    assert floats.tolist() == [0, 0, 0]
