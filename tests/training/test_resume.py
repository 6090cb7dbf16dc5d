import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ganflow import params
from ganflow.data.batches import Batches
from ganflow.errors import UserError
from ganflow.training import checkpoint, loop, resume
from ganflow.training.disk import FullDiskError
from ganflow.training.journal import Journal
from ganflow.training.match import Match

CPU = torch.device("cpu")
TREE: dict[str, Any] = {
    "seed": 1,
    "model": {"family": "vanilla", "hidden_units": 4, "latent_dim": 4},
    "train": {"images": 160, "batch_size": 8, "tick_every_images": 40, "sample_every_images": 40},
}


def recipe_of(tree: dict[str, Any], **about: str) -> dict[str, Any]:
    dumped = params.dump(params.parse(tree))
    return {
        **{name: dumped[name] for name in ("seed", "model", "train")},
        "data": "d",
        "code": "c",
        "torch": "t",
        **about,
    }


RECIPE = recipe_of(TREE)


def changed(section: str, **values: Any) -> dict[str, Any]:
    return recipe_of({**TREE, section: {**TREE[section], **values}})


def interrupted(folder: Path, images: int = 80, recipe: dict[str, Any] = RECIPE) -> Path:
    """Leave what a training does that is stopped; after 40 images it had a checkpoint, too."""
    folder.mkdir(parents=True)
    parsed = params.parse({**TREE, "train": {**TREE["train"], "checkpoint_every_images": 40}})
    pictures = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8), dtype=np.uint8)
    match = Match(parsed.model.build(1, 8), Batches(pictures, None, 8, 0, CPU), parsed.train, CPU)
    inputs = match.game.draw_inputs(loop.SAMPLES, torch.Generator().manual_seed(0))
    journal = Journal(folder)
    with pytest.raises(loop.InterruptedTraining):
        loop.train(match, inputs, folder, journal, lambda: match.images >= images, recipe=recipe)
    journal.add_status(match.images, "KILLED")
    return folder


# What has changed


def test_changes_by_key_with_both_values() -> None:
    now = recipe_of({**TREE, "seed": 2, "train": {**TREE["train"], "beta1": 0.25}})
    assert resume.changes(RECIPE, now) == [("seed", 1, 2), ("train.beta1", 0.5, 0.25)]
    assert resume.changes(RECIPE, RECIPE) == []


def test_keys_that_only_one_version_of_the_code_knows() -> None:
    then = copy.deepcopy(RECIPE)
    then["train"]["gone"] = 3
    del then["train"]["flip"]
    assert resume.changes(then, RECIPE) == [("train.flip", None, False), ("train.gone", 3, None)]


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (recipe_of({**TREE, "seed": 2}), "seed: 1 there, 2 here"),
        (changed("model", hidden_units=5), "model.hidden_units: 4 there, 5 here"),
        (changed("model", loss="minimax"), "model.loss: non_saturating there, minimax here"),
        (changed("train", batch_size=16), "train.batch_size: 8 there, 16 here"),
        (changed("train", images=80), "train.images: 80 are shown there, 80 are asked for here"),
        (changed("train", images=8), "train.images: 80 are shown there, 8 are asked for here"),
        (recipe_of(TREE, data="e"), "data: the prepared data set is d there, e here"),
    ],
)
def test_what_makes_a_checkpoint_unusable(now: dict[str, Any], text: str, tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "state")
    with pytest.raises(UserError) as caught:
        resume.source(folder, now)
    first, *texts, last = str(caught.value).splitlines()
    assert first == f"--resume {folder}: its checkpoint cannot be used with these parameters:"
    assert texts == [f"  {text}"]
    assert last == "Take them back, or train from the beginning without --resume"
    assert resume.usable(tmp_path, now) == []


def test_all_of_them_at_once(tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "state")
    now = recipe_of({"seed": 2, "model": {"family": "dcgan"}, "train": {"images": 1}}, data="e")
    with pytest.raises(UserError) as caught:
        resume.source(folder, now)
    keys = {line.strip().partition(":")[0] for line in str(caught.value).splitlines()[1:-1]}
    assert {"seed", "model.family", "model.hidden_units", "train.batch_size", "train.images", "data"} <= keys
    assert "train.beta1" not in keys


@pytest.mark.parametrize(
    "values",
    [
        {"images": 88},
        {"generator_lr": 1e-5, "discriminator_lr": 1e-5, "beta1": 0.0, "beta2": 0.9},
        {"ema_half_life": 10, "ema_ramp_up": 1.0},
        {"translation": 2, "flip": True},
        {"tick_every_images": 1, "sample_every_images": 1, "checkpoint_every_images": 1, "fid_every_images": 1},
        {"device": "cpu"},
    ],
)
def test_everything_else_may_change(values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = interrupted(tmp_path / "state")
    assert resume.source(folder, changed("train", **values)).images == 80
    assert caplog.records == []


def test_a_training_that_only_has_to_finish(tmp_path: Path) -> None:
    """Killed between its last checkpoint and its weights: with nothing changed, there is nothing to refuse."""
    folder = interrupted(tmp_path / "state", recipe=recipe_of({**TREE, "train": {**TREE["train"], "images": 80}}))
    assert resume.source(folder, changed("train", images=80)).images == 80


@pytest.mark.parametrize("name", ["code", "torch"])
def test_another_version_is_warned_of(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = interrupted(tmp_path / "state")
    assert resume.source(folder, recipe_of(TREE, **{name: "other"})).images == 80
    (record,) = caplog.records
    assert record.message == (
        f"caution: {folder / checkpoint.FILE} was written by another version of ganflow's code or of torch"
    )


@pytest.mark.parametrize("damaged", [(), (checkpoint.FILE,), (checkpoint.FILE, checkpoint.PREVIOUS)])
def test_the_last_whole_checkpoint_is_taken(
    damaged: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = interrupted(tmp_path / "state")
    for name in damaged:
        (folder / name).write_bytes(b"damaged")
    if len(damaged) < 2:
        assert resume.source(folder, RECIPE).images == (40 if damaged else 80)
    else:
        with pytest.raises(UserError, match=f"--resume {folder}: holds no whole checkpoint; give a folder below"):
            resume.source(folder, RECIPE)
    assert len(caplog.records) == len(damaged)
    assert all((folder / name).exists() for name in damaged), "they are another training's"


def test_a_folder_without_any(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="holds no whole checkpoint"):
            resume.source(folder, RECIPE)


# A training of its own


def begun(source: Path, state: Path) -> checkpoint.Checkpoint:
    found = checkpoint.last(source)
    assert found is not None
    state.mkdir(exist_ok=True)
    resume.begin(found, state)
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_it_begins_with_what_there_was_until_the_checkpoint(tmp_path: Path) -> None:
    source, state = interrupted(tmp_path / "source"), tmp_path / "state"
    (source / checkpoint.FILE).write_bytes(b"damaged")  # so that the one of 40 is the last
    kept = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    found = begun(source, state)

    assert [line["images"] for line in lines(source) if "values" in line] == [40, 80]
    assert lines(state) == [line for line in lines(source) if line["images"] <= 40]
    assert {line["images"] for line in lines(state) if "samples" in line} == {0, 40}
    assert {path.name for path in (state / "samples").iterdir()} == {"000000000.png", "000000040.png"}
    for picture in (state / "samples").iterdir():
        assert picture.read_bytes() == (source / "samples" / picture.name).read_bytes()
    copied = checkpoint.last(state)
    assert copied is not None
    assert (copied.images, copied.digest) == (40, found.digest)
    assert {path.name for path in state.iterdir()} == {"samples", "journal.jsonl", checkpoint.FILE}
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == kept


def test_how_the_other_training_ended_is_not_of_this_one(tmp_path: Path) -> None:
    begun(interrupted(tmp_path / "source"), tmp_path / "state")
    assert [line["images"] for line in lines(tmp_path / "state")] == [0, 40, 40, 80, 80]
    assert not any("status" in line for line in lines(tmp_path / "state"))


def test_a_journal_that_has_gone_on_stays(tmp_path: Path) -> None:
    """Where the training's own checkpoints are damaged, its points were told already."""
    source, state = interrupted(tmp_path / "source"), tmp_path / "state"
    begun(source, state)
    Journal(state).add_values(120, {"x": 1.0})
    recorded = lines(state)
    (state / checkpoint.FILE).unlink()
    begun(source, state)
    assert lines(state) == recorded
    assert (state / checkpoint.FILE).exists()


@pytest.mark.parametrize(("images", "taken"), [(72, True), (80, True), (88, False)])
def test_the_best_networks_come_along_if_they_are_not_of_another_future(
    images: int, taken: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, state = interrupted(tmp_path / "source"), tmp_path / "state"
    (source / "best").mkdir()
    (source / "best" / "best.json").write_text(json.dumps({"images": images, "fid": 1.0, "protocol": {}}))
    (source / "best" / "generator").write_bytes(b"weights")
    begun(source, state)
    assert (state / "best").exists() == taken
    if taken:
        assert (state / "best" / "generator").read_bytes() == b"weights"
    assert [record.message for record in caplog.records] == (
        [] if taken else ["the best networks, at 88 images, came after the checkpoint at 80, and stay behind"]
    )


def contents(folder: Path) -> dict[Path, bytes | str]:
    """Give what each file holds; the texts of a checkpoint come in an order of the day."""
    found: dict[Path, bytes | str] = {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    last = checkpoint.last(folder)
    assert last is not None
    return {**found, Path(checkpoint.FILE): last.digest}


@pytest.mark.parametrize("step", ["samples", "journal", "best", "checkpoint"])
def test_killed_while_it_begins(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, state = interrupted(tmp_path / "source"), tmp_path / "state"
    (source / "best").mkdir()
    (source / "best" / "best.json").write_text(json.dumps({"images": 80, "fid": 1.0, "protocol": {}}))
    begun(source, tmp_path / "whole")

    def killed(*_: Any) -> None:
        raise MemoryError

    original = resume.write_whole

    def write_whole(path: Path, content: bytes) -> None:
        if (step, path.suffix) in {("samples", ".png"), ("journal", ".jsonl")}:
            raise MemoryError
        original(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(resume, "write_whole", write_whole)
        if step == "best":
            patched.setattr(resume.shutil, "copytree", killed)
        if step == "checkpoint":
            patched.setattr(checkpoint, "save_file", killed)
        with pytest.raises(MemoryError):
            begun(source, state)
    assert not checkpoint.exists(state), "it comes last: without it, the next start begins again"
    begun(source, state)
    assert contents(state) == contents(tmp_path / "whole")


def test_no_room_to_begin(small_disk: Path, tmp_path: Path) -> None:
    source, state = interrupted(tmp_path / "source"), small_disk / "state"
    (small_disk / "filler").write_bytes(bytes(2**20 - 2**15))
    with pytest.raises(FullDiskError, match="No space left on device"):
        begun(source, state)
    assert not checkpoint.exists(state)


# What there is to go on from


def test_the_newest_that_can_be_used_comes_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old", "other", "none")):
        recipe = changed("model", hidden_units=5) if name == "other" else RECIPE
        folder = interrupted(tmp_path / name, recipe=recipe)
        os.utime(folder / checkpoint.FILE, (1000 - age, 1000 - age))
    for name in (checkpoint.FILE, checkpoint.PREVIOUS):
        (tmp_path / "none" / name).unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.lock").touch()
    now = changed("train", beta1=0.25)
    assert resume.usable(tmp_path, now) == [
        (tmp_path / "new", [("train.beta1", 0.5, 0.25)]),
        (tmp_path / "old", [("train.beta1", 0.5, 0.25)]),
    ]
    assert resume.usable(tmp_path / "missing", now) == []
