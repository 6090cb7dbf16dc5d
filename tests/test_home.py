from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from ganflow.home import home, locked, state_folder


@pytest.fixture(autouse=True)
def no_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.mark.parametrize("marker", ["params.yaml", ".dvc", ".git"])
def test_nearest_folder_upwards_that_looks_like_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: str
) -> None:
    (tmp_path / marker).mkdir()
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert home() == tmp_path.resolve()
    assert state_folder() == tmp_path.resolve() / ".ganflow"


def test_working_directory_where_nothing_looks_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path.resolve()


def test_dvc_root_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "elsewhere"))
    assert home() == (tmp_path / "elsewhere").resolve()


@pytest.mark.parametrize("workspace", ["tmpabc", "standalone/tmpabc"])
@pytest.mark.parametrize("through_dvc", [False, True])
def test_temporary_workspace_of_dvc_belongs_to_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: str, through_dvc: bool
) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / workspace
    copy.mkdir(parents=True)
    (copy / "params.yaml").touch()
    (copy / ".dvc").mkdir()
    if through_dvc:
        monkeypatch.setenv("DVC_ROOT", str(copy))
    monkeypatch.chdir(copy)
    assert home() == tmp_path.resolve()


def test_lock_is_held_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with locked("store"), pytest.raises(Timeout):
        FileLock(tmp_path / ".ganflow" / "store.lock").acquire(blocking=False)
    FileLock(tmp_path / ".ganflow" / "store.lock").acquire(blocking=False).lock.release()


def test_no_lock_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".ganflow").write_text("a file in the place of the folder")
    with locked("store"):
        pass
