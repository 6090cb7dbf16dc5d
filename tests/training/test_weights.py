import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import tiny_models

from ganflow import params
from ganflow.errors import UserError
from ganflow.models.game import Game
from ganflow.training.weights import (
    GENERATORS,
    Origin,
    folder_of,
    load_game,
    others,
    read_origin,
    save_weights,
    weights_digest,
)

CPU = torch.device("cpu")
MODELS: list[dict[str, Any]] = [
    {"family": "vanilla", "hidden_units": 4, "latent_dim": 4},
    {"family": "dcgan", "width": 4, "latent_dim": 4, "discriminator_norm": "batch"},
]
SPECTRAL = {"family": "vanilla", "hidden_units": 4, "latent_dim": 4, "spectral_norm": True}
ALL = {**tiny_models(), "dcgan with batch norm": MODELS[1], "vanilla with spectral norm": SPECTRAL}


def trained(folder: Path, model: dict[str, Any]) -> tuple[Game, Game]:
    """Weights as a training leaves them; gives the live game and one with the averaged generator."""
    parsed = params.parse({"model": model, "seed": 7})
    origin = Origin(parsed, 3, 12, 5, 640)
    live, average = origin.build(), origin.build()
    for game in (live, average):
        for buffer in game.buffers():
            buffer.copy_(buffer + torch.rand(buffer.shape) * 5)
    save_weights(average.generator, folder / GENERATORS["ema"], origin)
    save_weights(live.generator, folder / GENERATORS["live"], origin)
    for name, network in others(live).items():
        save_weights(network, folder / name, origin)
    return live.eval(), average.eval()


@pytest.mark.parametrize("family", ALL)
def test_weights_come_back_in_networks_of_their_own(family: str, tmp_path: Path) -> None:
    live, average = trained(tmp_path, ALL[family])
    inputs, labels = live.draw_inputs(5), torch.arange(5)
    for which, expected in (("live", live), ("ema", average)):
        game = load_game(tmp_path, which, CPU)  # type: ignore[arg-type]
        assert not game.training
        assert game.inputs == expected.inputs
        with torch.no_grad():
            pictures = expected.generator(inputs)
            assert torch.equal(game.generator(inputs), pictures)
            if live.discriminator is not None:
                assert torch.equal(game.judge(pictures, labels), live.judge(pictures, labels))
        for name, network in game.named_children():
            kept = expected.generator if name == "generator" else live.get_submodule(name)
            torch.testing.assert_close(network.state_dict(), kept.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        assert not torch.equal(live.generator(inputs), average.generator(inputs))


def test_all_networks_beside_the_generator_have_a_file() -> None:
    found = {name: set(others(params.parse({"model": model}).model.build(3, 12, 5))) for name, model in ALL.items()}
    assert found.pop("vae") == {"encoder.safetensors"}
    assert set().union(*found.values()) == {"discriminator.safetensors"}


def test_a_file_says_where_it_comes_from(tmp_path: Path) -> None:
    trained(tmp_path, MODELS[0])
    header = (tmp_path / "generator.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    origin = json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["origin"])
    assert {key: value for key, value in origin.items() if key != "params"} == {
        "channels": 3,
        "resolution": 12,
        "classes": 5,
        "images": 640,
    }
    assert params.parse(origin["params"]).seed == 7
    read = read_origin(tmp_path / "generator.safetensors")
    assert read[1:] == (3, 12, 5, 640)
    assert (read.params.seed, read.params.model) == (7, params.parse({"model": MODELS[0]}).model)
    with pytest.raises(UserError, match=r"missing: there are no trained weights; run `ganflow train` first"):
        read_origin(tmp_path / "missing")


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    """DVC knows outputs by their bytes; safetensors writes several entries of metadata in a random order."""
    live, _ = trained(tmp_path, MODELS[1])
    origin = Origin(params.parse({"model": MODELS[1]}), 3, 12, 0, 640)
    contents = set()
    for _ in range(10):
        save_weights(live.generator, tmp_path / "again.safetensors", origin)
        contents.add((tmp_path / "again.safetensors").read_bytes())
    assert len(contents) == 1


def test_digest_is_of_the_tensors_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    tensors = {"x": torch.ones(2, 3), "y": torch.zeros(1, dtype=torch.int64)}
    save_file(tensors, one, {"params": "first"})
    save_file(tensors, other, {"params": "second", "more": "metadata"})
    assert weights_digest(one) == weights_digest(other)
    assert weights_digest(one).startswith("sha256:")
    seen = {weights_digest(one)}
    for number, changed in enumerate(
        (
            {**tensors, "x": torch.ones(3, 2)},
            {**tensors, "y": torch.zeros(1, dtype=torch.float64)},  # of the same bytes
            {**tensors, "x": torch.ones(2, 3).index_fill(0, torch.tensor([1]), 1 + 1e-6)},
            {"w": tensors["x"], "y": tensors["y"]},
            {"x": tensors["x"]},
        ),
        start=2,
    ):
        save_file(changed, other)
        seen.add(weights_digest(other))
        assert len(seen) == number
    with pytest.raises(UserError, match="no trained weights"):
        weights_digest(tmp_path / "missing")
    other.write_bytes(other.read_bytes()[:-1])
    with pytest.raises(UserError, match="is not a weights file of ganflow"):
        weights_digest(other)


def test_where_the_checkpoints_lie(tmp_path: Path) -> None:
    assert folder_of(tmp_path, "last") == tmp_path
    with pytest.raises(
        UserError,
        match=r"^evaluate\.checkpoint: .* holds no best .*train\.fid_every_images; .*set evaluate\.checkpoint: last$",
    ):
        folder_of(tmp_path, "best")
    (tmp_path / "best").mkdir()
    assert folder_of(tmp_path, "best") == tmp_path / "best"
    nothing = tmp_path / "nothing"
    for checkpoint in ("last", "best"):  # it is no matter of checkpoints where nothing was trained
        with pytest.raises(UserError, match=r"there are no trained weights; run `ganflow train` first"):
            load_game(folder_of(nothing, checkpoint), "ema", CPU)  # type: ignore[arg-type]


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"generator.safetensors: there are no trained weights; run `ganflow train` first"
    ):
        load_game(tmp_path, "ema", CPU)
    trained(tmp_path, MODELS[0])
    (tmp_path / "discriminator.safetensors").unlink()
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
        ("classes", [], "is not a weights file"),
        ("resolution", 24, "the weights do not fit this version's networks; train again"),
    ],
)
def test_an_origin_that_does_not_fit(key: str, value: Any, said: str, tmp_path: Path) -> None:
    trained(tmp_path, MODELS[0])
    path = tmp_path / "generator.safetensors"
    origin = {"params": {"model": MODELS[0]}, "channels": 3, "resolution": 12, "classes": 5, "images": 1, key: value}
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
