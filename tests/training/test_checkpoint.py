import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny_families import tiny_models
from torch import Tensor

from ganflow import params
from ganflow.data.batches import Batches
from ganflow.errors import UserError
from ganflow.training import checkpoint
from ganflow.training.disk import FullDiskError
from ganflow.training.match import Match

CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    **tiny_models(),
    "dcgan": {"family": "dcgan", "width": 4, "latent_dim": 4, "discriminator_norm": "batch", "discriminator_steps": 2},
    "spectral": {"family": "dcgan", "width": 4, "latent_dim": 4, "spectral_norm": True, "r1": 1.0, "loss": "hinge"},
    "three critic steps": {"family": "wgan_gp", "width": 4, "latent_dim": 4, "discriminator_steps": 3},
}


def new_match(family: str, seed: int = 0) -> Match:
    tree = {"model": MODELS[family], "train": {"batch_size": 8, "translation": 1, "flip": True}}
    parsed = params.parse(tree)
    torch.manual_seed(seed)
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8), dtype=np.uint8)
    return Match(parsed.model.build(1, 8, 3), Batches(images, np.arange(50) % 3, 8, 0, CPU), parsed.train, CPU)


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
    """What is due every few rounds, and a pace by the images, included."""
    match = play(new_match(family), 3)
    checkpoint.save(match, tmp_path)
    saved = everything(match)
    gone_on = everything(play(match, 3))

    restored = new_match(family, seed=9)
    assert checkpoint.restore(restored, tmp_path)
    assert_same(everything(restored), saved)
    for optimizer in restored.optimizers.values():
        for parameter, state in optimizer.state.items():
            moments = [entry for entry in state.values() if entry.shape == parameter.shape]
            assert all(moment.stride() == parameter.stride() for moment in moments)
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


# The one before, and damage


def two_checkpoints(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Save after two rounds and after three; give what a match was then."""
    match = play(new_match("dcgan"), 2)
    checkpoint.save(match, folder)
    first = everything(match)
    checkpoint.save(play(match, 1), folder)
    return first, everything(match)


def flip_in(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change_text(path: Path) -> None:
    content = path.read_bytes()
    assert b'"rounds":"3"' in content
    path.write_bytes(content.replace(b'"rounds":"3"', b'"rounds":"2"'))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "the last bit": lambda path: flip_in(path, -1),
    "a bit in the middle": lambda path: flip_in(path, path.stat().st_size // 2),
    "a bit in the header": lambda path: flip_in(path, 20),
    "its length": lambda path: flip_in(path, 7),
    "a count": change_text,
    "torn": lambda path: os.truncate(path, path.stat().st_size - 1),
    "torn in the header": lambda path: os.truncate(path, 30),
    "torn in the length": lambda path: os.truncate(path, 3),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "other text": lambda path: path.write_text("no checkpoint at all"),
    "other tensors": lambda path: save_file({"x": torch.zeros(3)}, path),
    "a folder": as_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_noticed_and_the_one_before_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = two_checkpoints(tmp_path)
    path = tmp_path / checkpoint.FILE
    DAMAGES[damage](path)
    damaged = path.read_bytes() if path.is_file() else None

    restored = new_match("dcgan", seed=4)
    assert checkpoint.restore(restored, tmp_path)

    assert_same(everything(restored), first)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{path}: is damaged (" in record.message
    kept = tmp_path / "checkpoint.damaged-1"
    assert "kept as checkpoint.damaged-1" in record.message
    assert damaged is None or kept.read_bytes() == damaged
    checkpoint.save(play(restored, 1), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.FILE, checkpoint.PREVIOUS, kept.name}
    again = new_match("dcgan")
    assert checkpoint.restore(again, tmp_path)
    assert again.rounds == 3


def test_both_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two_checkpoints(tmp_path)
    for name in (checkpoint.FILE, checkpoint.PREVIOUS):
        flip_in(tmp_path / name, -1)
    match = new_match("dcgan", seed=4)
    before = everything(match)
    assert not checkpoint.restore(match, tmp_path)
    assert_same(everything(match), before)
    assert len(caplog.records) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.damaged-1", "checkpoint.previous.damaged-1"}
    two_checkpoints(tmp_path)
    flip_in(tmp_path / checkpoint.FILE, -1)
    assert checkpoint.restore(match, tmp_path)
    assert (tmp_path / "checkpoint.damaged-2").exists(), "nothing that was put aside is written over"


def test_looking_at_it_moves_nothing(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    flip_in(tmp_path / checkpoint.FILE, -1)
    found = checkpoint.last(tmp_path)
    assert found is not None
    assert (found.path, found.images) == (tmp_path / checkpoint.PREVIOUS, 32)
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.FILE, checkpoint.PREVIOUS}


def test_one_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = two_checkpoints(tmp_path)
    original = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == checkpoint.FILE:
            raise OSError(5, "Input/output error")
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    restored = new_match("dcgan")
    assert checkpoint.restore(restored, tmp_path)
    assert_same(everything(restored), first)


def test_killed_between_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = two_checkpoints(tmp_path)
    restored = new_match("dcgan")
    (tmp_path / checkpoint.FILE).rename(tmp_path / "checkpoint.safetensors.part")
    (tmp_path / ".tmpA1b2C3").touch()  # what a kill leaves of safetensors' own file
    assert checkpoint.restore(restored, tmp_path)
    assert_same(everything(restored), first)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.PREVIOUS]


def test_the_names_reach_the_disk_in_the_right_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace = Path.replace

    def noted_replace(path: Path, target: Path) -> Path:
        order.append(f"{path.name} -> {target.name}")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noted_replace)
    monkeypatch.setattr(checkpoint, "sync", lambda path: order.append(f"sync {path.name}"))
    two_checkpoints(tmp_path)
    renamed = [f"{checkpoint.FILE}.part -> {checkpoint.FILE}", f"sync {tmp_path.name}"]
    written = f"sync {checkpoint.FILE}.part"
    assert order == [written, *renamed, written, f"{checkpoint.FILE} -> {checkpoint.PREVIOUS}", *renamed]


def test_weights_of_other_networks_are_refused(tmp_path: Path) -> None:
    checkpoint.save(new_match("vanilla"), tmp_path)
    with pytest.raises(UserError, match="does not fit this version's networks"):
        checkpoint.restore(new_match("dcgan"), tmp_path)


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    match = play(new_match("vanilla"), 2)
    assert checkpoint.glance(tmp_path) is None
    assert not checkpoint.exists(tmp_path)
    checkpoint.save(match, tmp_path, {"seed": 7})
    found = checkpoint.last(tmp_path)
    assert found is not None
    assert (found.images, found.recipe) == (16, {"seed": 7})
    glanced = checkpoint.glance(tmp_path)
    assert glanced is not None
    assert (glanced.images, glanced.recipe, glanced.digest) == (16, {"seed": 7}, found.digest)
    assert checkpoint.exists(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    checkpoint.copy(found, other)
    copied = checkpoint.last(other)
    assert copied is not None
    assert copied.digest == found.digest
    checkpoint.save(play(match, 1), tmp_path, {"seed": 7})
    later = checkpoint.last(tmp_path)
    assert later is not None
    assert later.digest != found.digest
    (tmp_path / checkpoint.FILE).rename(tmp_path / "elsewhere")  # a kill between the renames
    glanced = checkpoint.glance(tmp_path)
    assert glanced is not None
    assert (glanced.path, glanced.digest) == (tmp_path / checkpoint.PREVIOUS, found.digest)
    flip_in(tmp_path / checkpoint.PREVIOUS, 20)
    assert checkpoint.glance(tmp_path) is None


# A full disk


def test_no_room_leaves_both_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_checkpoints(tmp_path)
    match = play(new_match("dcgan"), 4)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of i")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    needed = sum(tensor.nbytes for tensor in load_file(tmp_path / checkpoint.FILE).values())
    with pytest.raises(FullDiskError, match=f"{checkpoint.FILE}: No space left on device: it needs {needed:,} bytes"):
        checkpoint.save(match, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_disk_that_is_full(small_disk: Path) -> None:
    _, second = two_checkpoints(small_disk)
    size = (small_disk / checkpoint.FILE).stat().st_size
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - size // 2))
    before = {path.name: path.read_bytes() for path in small_disk.iterdir()}
    with pytest.raises(FullDiskError, match="No space left on device"):
        checkpoint.save(play(new_match("dcgan"), 4), small_disk)
    assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == before
    restored = new_match("dcgan")
    assert checkpoint.restore(restored, small_disk)
    assert_same(everything(restored), second)


def test_a_limit_of_the_files_size(tmp_path: Path) -> None:
    """In a process of its own, since the limit is the process's."""
    script = (
        "import resource, sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from test_checkpoint import checkpoint, new_match\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "checkpoint.save(new_match('dcgan'), Path(sys.argv[1]))\n"
    )
    path = [str(Path(__file__).parent), *filter(None, sys.path)]
    done = subprocess.run([sys.executable, "-c", script, tmp_path, *path], capture_output=True, text=True, check=False)
    assert "checkpoint.safetensors: File too large: it needs" in done.stderr
    assert list(tmp_path.iterdir()) == []
