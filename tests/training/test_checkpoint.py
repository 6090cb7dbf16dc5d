from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from ganflow import params
from ganflow.data.batches import Batches
from ganflow.training import checkpoint
from ganflow.training.match import Match

CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "vanilla": {"family": "vanilla", "hidden_units": 4, "latent_dim": 4},
    "dcgan": {"family": "dcgan", "width": 4, "latent_dim": 4, "discriminator_norm": "batch", "discriminator_steps": 2},
}


def new_match(family: str, seed: int = 0) -> Match:
    tree = {"model": MODELS[family], "train": {"batch_size": 8, "translation": 1, "flip": True}}
    parsed = params.parse(tree)
    torch.manual_seed(seed)
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8), dtype=np.uint8)
    return Match(parsed.model.build(1, 8), Batches(images, None, 8, 0, CPU), parsed.train, CPU)


def everything(match: Match) -> dict[str, Tensor]:
    """All that the rest of a training depends on."""
    found = {f"game.{name}": tensor for name, tensor in match.game.state_dict().items()}
    found |= {f"average.{name}": tensor for name, tensor in match.average.network.state_dict().items()}
    for player, optimizer in match.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            found |= {f"{player}.{index}.{name}": tensor for name, tensor in state.items()}
    sums, counts = match.meter.state()
    found |= {f"sum.{name}": tensor for name, tensor in sums.items()}
    found |= {f"count.{name}": torch.tensor(count) for name, count in counts.items()}
    found |= {"random": torch.get_rng_state(), "rounds": torch.tensor(match.rounds)}
    return {name: tensor.clone() for name, tensor in found.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def play(match: Match, rounds: int) -> Match:
    for _ in range(rounds):
        match.play_round()
    return match


@pytest.mark.parametrize("family", MODELS)
def test_everything_comes_back_and_goes_on_alike(family: str, tmp_path: Path) -> None:
    match = play(new_match(family), 3)
    checkpoint.save(match, tmp_path)
    saved = everything(match)
    gone_on = everything(play(match, 3))

    restored = new_match(family, seed=9)
    assert checkpoint.restore(restored, tmp_path)
    assert_same(everything(restored), saved)
    for optimizer in restored.optimizers.values():
        for parameter, state in optimizer.state.items():
            assert state["exp_avg"].stride() == parameter.stride()
    assert_same(everything(play(restored, 3)), gone_on)
    assert any(not torch.equal(saved[name], gone_on[name]) for name in saved if name.startswith("average."))


def test_saving_changes_nothing(tmp_path: Path) -> None:
    undisturbed = everything(play(new_match("dcgan"), 4))
    match = new_match("dcgan")
    for _ in range(4):
        match.play_round()
        checkpoint.save(match, tmp_path)
    assert_same(everything(match), undisturbed)


def test_no_checkpoint(tmp_path: Path) -> None:
    match = new_match("vanilla")
    before = everything(match)
    assert not checkpoint.restore(match, tmp_path)
    assert_same(everything(match), before)


def test_before_the_first_round(tmp_path: Path) -> None:
    checkpoint.save(new_match("vanilla"), tmp_path)
    restored = new_match("vanilla", seed=5)
    assert checkpoint.restore(restored, tmp_path)
    assert_same(everything(play(restored, 1)), everything(play(new_match("vanilla"), 1)))


def test_the_file_holds_plain_tensors(tmp_path: Path) -> None:
    match = play(new_match("vanilla"), 2)
    checkpoint.save(match, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    with safe_open(tmp_path / "checkpoint.safetensors", framework="np") as file:
        assert file.metadata()["rounds"] == "2"
        weight = file.get_tensor("game.generator.0.weight")
    np.testing.assert_array_equal(weight, match.game.generator.state_dict()["0.weight"].numpy())


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match = play(new_match("vanilla"), 2)
    checkpoint.save(match, tmp_path)
    saved, content = everything(match), (tmp_path / checkpoint.FILE).read_bytes()
    play(match, 1)

    class KilledError(Exception):
        pass

    def torn(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of i")
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", torn)
        with pytest.raises(KilledError):
            checkpoint.save(match, tmp_path)

    def killed(path: Path, target: Path) -> None:
        raise KilledError

    assert (tmp_path / checkpoint.FILE).read_bytes() == content
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KilledError):
            checkpoint.save(match, tmp_path)
    assert (tmp_path / checkpoint.FILE).read_bytes() == content

    restored = new_match("vanilla", seed=3)
    assert checkpoint.restore(restored, tmp_path)
    assert_same(everything(restored), saved)
    play(restored, 1)
    checkpoint.save(restored, tmp_path)  # over what the kill left behind
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.FILE, checkpoint.PREVIOUS}
    assert (tmp_path / checkpoint.PREVIOUS).read_bytes() == content


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["generator", "average", "optimizer", "sum"])
def test_what_is_not_finite_is_never_saved(where: str, bad: float, tmp_path: Path) -> None:
    match = play(new_match("vanilla"), 1)
    checkpoint.save(match, tmp_path)
    content = (tmp_path / checkpoint.FILE).read_bytes()
    (state, *_) = match.optimizers["discriminator"].state.values()
    tensors = {
        "generator": next(match.game.generator.parameters()),
        "average": next(match.average.network.parameters()),
        "optimizer": state["exp_avg"],
        "sum": match.meter.state()[0]["generator_loss"],
    }
    with torch.no_grad():
        tensors[where].view(-1)[0] = bad
    with pytest.raises(checkpoint.NotFiniteError):
        checkpoint.save(match, tmp_path)
    assert (tmp_path / checkpoint.FILE).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]
