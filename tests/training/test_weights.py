import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ganflow import params
from ganflow.errors import UserError
from ganflow.models.game import Game
from ganflow.training.weights import DISCRIMINATOR, GENERATORS, Origin, load_game, save_weights

CPU = torch.device("cpu")
MODELS: list[dict[str, Any]] = [
    {"family": "vanilla", "hidden_units": 4, "latent_dim": 4},
    {"family": "dcgan", "width": 4, "latent_dim": 4, "discriminator_norm": "batch"},
]


def trained(folder: Path, model: dict[str, Any]) -> tuple[Game, Game]:
    """Weights as a training leaves them; gives the live game and one with the averaged generator."""
    parsed = params.parse({"model": model, "seed": 7})
    origin = Origin(parsed, 3, 12, 640)
    live, average = parsed.model.build(3, 12), parsed.model.build(3, 12)
    average.discriminator.load_state_dict(live.discriminator.state_dict())
    with torch.no_grad():
        for name, buffer in (*live.named_buffers(), *average.generator.named_buffers()):
            buffer.copy_(torch.rand(buffer.shape) * 5 + len(name))
    save_weights(average.generator, folder / GENERATORS["ema"], origin)
    save_weights(live.generator, folder / GENERATORS["live"], origin)
    save_weights(live.discriminator, folder / DISCRIMINATOR, origin)
    return live.eval(), average.eval()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["family"])
def test_weights_come_back_in_networks_of_their_own(model: dict[str, Any], tmp_path: Path) -> None:
    live, average = trained(tmp_path, model)
    inputs = live.draw_inputs(5)
    for which, expected in (("live", live), ("ema", average)):
        game = load_game(tmp_path, which, CPU)  # type: ignore[arg-type]
        assert not game.training
        with torch.no_grad():
            assert torch.equal(game.generator(inputs), expected.generator(inputs))
            pictures = expected.generator(inputs)
            assert torch.equal(game.discriminator(pictures), live.discriminator(pictures))
    with torch.no_grad():
        assert not torch.equal(live.generator(inputs), average.generator(inputs))


def test_a_file_says_where_it_comes_from(tmp_path: Path) -> None:
    trained(tmp_path, MODELS[0])
    header = (tmp_path / "generator.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    origin = json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["origin"])
    assert (origin["channels"], origin["resolution"], origin["images"]) == (3, 12, 640)
    assert params.parse(origin["params"]).seed == 7


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    """DVC knows outputs by their bytes; safetensors writes several entries of metadata in a random order."""
    live, _ = trained(tmp_path, MODELS[1])
    origin = Origin(params.parse({"model": MODELS[1]}), 3, 12, 640)
    contents = set()
    for _ in range(10):
        save_weights(live.generator, tmp_path / "again.safetensors", origin)
        contents.add((tmp_path / "again.safetensors").read_bytes())
    assert len(contents) == 1


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"generator.safetensors: there are no trained weights; run `ganflow train` first"
    ):
        load_game(tmp_path, "ema", CPU)
    trained(tmp_path, MODELS[0])
    (tmp_path / DISCRIMINATOR).unlink()
    with pytest.raises(UserError, match=r"discriminator.safetensors: there are no trained weights"):
        load_game(tmp_path, "ema", CPU)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file(content: bytes, tmp_path: Path) -> None:
    trained(tmp_path, MODELS[0])
    (tmp_path / "generator.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"generator.safetensors: is not a weights file of ganflow"):
        load_game(tmp_path, "ema", CPU)


def test_a_file_cut_short(tmp_path: Path) -> None:
    trained(tmp_path, MODELS[0])
    path = tmp_path / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="is not a weights file of ganflow"):
        load_game(tmp_path, "ema", CPU)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("params", {"model": {"family": "gone"}}, "model.family: must be one of"),
        ("params", 5, "is not a weights file"),
        ("channels", "many", "is not a weights file"),
        ("resolution", None, "is not a weights file"),
        ("resolution", 24, "the weights do not fit this version's networks; train again"),
    ],
)
def test_an_origin_that_does_not_fit(key: str, value: Any, said: str, tmp_path: Path) -> None:
    trained(tmp_path, MODELS[0])
    path = tmp_path / "generator.safetensors"
    origin = {"params": {"model": MODELS[0]}, "channels": 3, "resolution": 12, "images": 1, key: value}
    save_file(load_file(path), path, {"origin": json.dumps(origin)})
    with pytest.raises(UserError, match=said):
        load_game(tmp_path, "ema", CPU)


def test_weights_of_something_else(tmp_path: Path) -> None:
    trained(tmp_path, MODELS[0])
    path = tmp_path / "generator.safetensors"
    for metadata in (None, {"format": "pt"}, {"origin": "{"}, {"origin": "[]"}, {"origin": "null"}):
        save_file({"weight": torch.zeros(2)}, path, metadata)
        with pytest.raises(UserError, match="is not a weights file of ganflow"):
            load_game(tmp_path, "ema", CPU)
