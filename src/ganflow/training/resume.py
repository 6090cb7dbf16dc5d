"""Going on from the checkpoint of another training with other parameters, as a training of its own."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ganflow.errors import UserError
from ganflow.training import checkpoint
from ganflow.training.best import RECORD_FILE
from ganflow.training.checkpoint import Checkpoint
from ganflow.training.disk import write_whole, writing
from ganflow.training.journal import FILE, read_lines
from ganflow.training.weights import BEST

_SECTIONS = ("model", "train")

_log = logging.getLogger(__name__)


class Change(NamedTuple):
    """A parameter that has another value now; None stands for a version of the code that did not know it."""

    key: str
    then: Any
    now: Any


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """List what differs between the parameters of two recipes, as `state.recipe` makes them."""
    leaves = []
    for recipe in (then, now):
        sections = {f"{name}.{key}": value for name in _SECTIONS for key, value in recipe[name].items()}
        leaves.append({"seed": recipe["seed"], **sections})
    old, new = leaves
    keys = dict.fromkeys([*new, *old])
    return [Change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def obstacles(found: Checkpoint, now: Mapping[str, Any]) -> list[str]:
    """Say for each key why a checkpoint cannot be used with the recipe `now`."""
    then, texts = found.recipe, []
    for key, old, new in changes(then, now):
        if key == "seed" or key.startswith("model.") or key == "train.batch_size":
            texts.append(f"{key}: {old} there, {new} here")
    if then["data"] != now["data"]:
        texts.append(f"data: the prepared data set is {then['data']} there, {now['data']} here")
    if now["train"]["images"] <= found.images:
        texts.append(f"train.images: {found.images} are shown there, {now['train']['images']} are asked for here")
    return texts


def source(folder: Path, now: Mapping[str, Any]) -> Checkpoint:
    """Read the last whole checkpoint in a folder, for a training with the recipe `now`.

    Raises UserError where there is none, or it cannot be used.
    """
    found = checkpoint.last(folder)
    if found is None:
        raise UserError(
            f"--resume {folder}: holds no whole checkpoint; give a folder below .ganflow/train that a training left "
            "which was interrupted or diverged"
        )
    if found.recipe != now and (texts := obstacles(found, now)):
        raise UserError(
            "\n  ".join([f"--resume {folder}: its checkpoint cannot be used with these parameters:", *texts])
            + "\nTake them back, or train from the beginning without --resume"
        )
    if any(found.recipe[name] != now[name] for name in ("code", "torch")):
        _log.warning("caution: %s was written by another version of ganflow's code or of torch", found.path)
    return found


def begin(found: Checkpoint, state: Path) -> None:
    """Put into a state folder what a training left up to a checkpoint, and the checkpoint last.

    A journal that is there already begins with the same lines, and stays. Raises FullDiskError.
    """
    folder = found.path.parent
    if not (state / FILE).exists():
        lines = [line for line in read_lines(folder) if line["images"] <= found.images and "status" not in line]
        (state / "samples").mkdir(exist_ok=True)
        for picture in (line["samples"] for line in lines if "samples" in line):
            write_whole(state / picture, (folder / picture).read_bytes())
        write_whole(state / FILE, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    if (folder / BEST).exists() and not (state / BEST).exists():
        _take_best(folder / BEST, state / BEST, found.images)
    checkpoint.copy(found, state)


def usable(states: Path, now: Mapping[str, Any]) -> list[tuple[Path, list[Change]]]:
    """List the folders in `states` whose training one with the recipe `now` could go on from, the newest first.

    Each comes with the parameters that differ.
    """
    found = [glanced for folder in states.glob("*/") if (glanced := checkpoint.glance(folder)) is not None]
    found.sort(key=lambda each: each.path.stat().st_mtime, reverse=True)
    return [(each.path.parent, changes(each.recipe, now)) for each in found if not obstacles(each, now)]


def _take_best(folder: Path, target: Path, images: int) -> None:
    """Copy the best networks, unless they came after `images`: then they are not of this training."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        when = int(record["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if when > images:
        _log.warning("the best networks, at %d images, came after the checkpoint at %d, and stay behind", when, images)
        return
    new = target.with_name(f"{BEST}.new")
    shutil.rmtree(new, ignore_errors=True)
    with writing(new, sum(path.stat().st_size for path in folder.iterdir())):
        shutil.copytree(folder, new)
    new.rename(target)
