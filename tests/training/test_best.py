import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ganflow.training.best import Best
from ganflow.training.disk import FullDiskError


def moment(images: int, fid: float) -> Any:
    """In the place of a match: how far it has come, which its files hold, and its FID."""
    return SimpleNamespace(images=images, fid=fid)


PROTOCOL = {"extractor": "pixels", "reals": 20}
FILES = ("discriminator", "generator", "generator_live")


def save(match: Any, folder: Path) -> None:
    assert list(folder.iterdir()) == []
    for name in FILES:
        (folder / name).write_text(f"{name} at {match.images}")


def new_best(state: Path, saves: Callable[[Any, Path], None] = save) -> Best:
    return Best(state, lambda match: match.fid, saves, every=10, protocol=PROTOCOL)


def kept(state: Path) -> int:
    """The images at which the kept networks were, having seen that the folder is whole and alone."""
    assert [path.name for path in state.iterdir()] == ["best"]
    assert sorted(path.name for path in (state / "best").iterdir()) == sorted((*FILES, "best.json"))
    images = json.loads((state / "best" / "best.json").read_text())["images"]
    assert [(state / "best" / name).read_text() for name in FILES] == [f"{name} at {images}" for name in FILES]
    return int(images)


def test_the_lowest_is_kept_with_all_networks_of_its_moment(tmp_path: Path) -> None:
    best = new_best(tmp_path / "state")
    assert (best.fid, best.every) == (math.inf, 10)
    course = [(10, 9.0, 10), (20, 5.0, 20), (30, 7.0, 20), (40, 5.0, 20), (50, 4.5, 50), (60, 1e9, 50)]

    lowest = math.inf
    for images, fid, expected in course:
        values = best.measure(moment(images, fid))
        lowest = min(lowest, fid)
        assert values == {"validation_fid": fid, "best_fid": lowest}
        assert best.fid == lowest
        assert kept(tmp_path / "state") == expected, "on disk when the measuring returns"


def test_a_broken_generator_keeps_nothing(tmp_path: Path) -> None:
    best = new_best(tmp_path)
    values = best.measure(moment(10, math.nan))
    assert set(values) == {"validation_fid", "best_fid"}
    assert all(math.isnan(value) for value in values.values())
    assert list(tmp_path.iterdir()) == []

    best.measure(moment(20, 3.0))
    best.measure(moment(30, math.nan))
    assert kept(tmp_path) == 20
    assert best.fid == 3.0


@pytest.mark.parametrize("record", ["", "[1]", "{}", '{"images": 10, "fid": 0.1, "protocol": {"reals": 21}}'])
def test_a_fid_of_another_protocol_or_a_torn_record_is_not_compared_with(tmp_path: Path, record: str) -> None:
    new_best(tmp_path).measure(moment(10, 0.1))
    (tmp_path / "best" / "best.json").write_text(record)

    again = new_best(tmp_path)

    assert again.fid == math.inf
    assert again.measure(moment(20, 5.0))["best_fid"] == 5.0
    assert kept(tmp_path) == 20


def test_the_next_process_goes_on_from_what_is_kept(tmp_path: Path) -> None:
    new_best(tmp_path).measure(moment(10, 0.1 + 0.2))

    again = new_best(tmp_path)

    assert again.fid == 0.1 + 0.2, "to the last digit: played again, it is no better"
    assert again.measure(moment(10, 0.1 + 0.2))["best_fid"] == 0.1 + 0.2
    again.measure(moment(20, 0.31))
    assert kept(tmp_path) == 10
    again.measure(moment(30, 0.29))
    assert kept(tmp_path) == 30


class Killed(BaseException):
    """The process ends here."""


OPERATIONS = ((Path, "mkdir"), (Path, "write_text"), (Path, "rename"), (shutil, "rmtree"))


def killed_before(patch: pytest.MonkeyPatch, operation: int) -> Callable[[], int]:
    """Let only so many operations on files happen; tells how many were asked for."""
    asked = 0

    def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked > operation:
                raise Killed
            return original(*args, **kwargs)

        return call

    for owner, name in OPERATIONS:
        patch.setattr(owner, name, guarded(getattr(owner, name)))
    return lambda: asked


def kills(state: Path, happens: Callable[[], Any]) -> Iterator[int]:
    """Do something again and again, killed before its first operation on files, its second, ... until it is done."""
    template = state.with_name("template")
    shutil.copytree(state, template)
    for operation in range(100):
        shutil.rmtree(state)
        shutil.copytree(template, state)
        with pytest.MonkeyPatch.context() as patch:
            killed_before(patch, operation)
            try:
                happens()
            except Killed:
                pass
            else:
                return
        yield operation
    pytest.fail("it never ends")


def whole(folder: Path) -> bool:
    return folder.is_dir() and len(list(folder.iterdir())) == len(FILES) + 1


def test_a_kill_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """Whatever the moment: the next process finds one of the two, whole, and goes on."""
    state = tmp_path / "state"
    new_best(state).measure(moment(10, 5.0))
    found = []
    for _ in kills(state, lambda: new_best(state).measure(moment(20, 4.0))):
        assert whole(state / "best") or whole(state / "best.old")
        best = new_best(state)
        assert (kept(state), best.fid) in {(10, 5.0), (20, 4.0)}
        found.append(kept(state))
        assert best.measure(moment(20, 4.0)) == {"validation_fid": 4.0, "best_fid": 4.0}
        assert kept(state) == 20
        assert best.measure(moment(30, 3.0))["best_fid"] == 3.0
        assert kept(state) == 30
    assert len(found) > 8
    assert found == sorted(found)
    assert {10, 20} == set(found)


def test_a_kill_before_there_ever_was_one(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    found = []
    for _ in kills(state, lambda: new_best(state).measure(moment(10, 5.0))):
        best = new_best(state)
        found.append(best.fid)
        if best.fid == math.inf:
            assert list(state.iterdir()) == []
        best.measure(moment(10, 5.0))
        assert kept(state) == 10
    assert math.inf in found
    assert 5.0 in found


def test_a_kill_while_a_kill_is_being_repaired(tmp_path: Path) -> None:
    state = tmp_path / "state"
    new_best(state).measure(moment(10, 5.0))
    (state / "best").rename(state / "best.old")  # killed between the two renames
    (state / "best.new").mkdir()
    save(moment(20, 4.0), state / "best.new")

    for _ in kills(state, lambda: new_best(state)):
        assert new_best(state).fid == 5.0
        assert kept(state) == 10
    assert kept(state) == 10


def test_a_failure_while_saving_leaves_the_old(tmp_path: Path) -> None:
    new_best(tmp_path).measure(moment(10, 5.0))

    def full(match: Any, folder: Path) -> None:
        (folder / "discriminator").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(FullDiskError, match="No space"):
        new_best(tmp_path, full).measure(moment(20, 4.0))

    assert [path.name for path in tmp_path.iterdir()] == ["best"], "half of the new takes no room"
    assert new_best(tmp_path).fid == 5.0
    assert kept(tmp_path) == 10
