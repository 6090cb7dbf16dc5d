"""A full disk: errors as they are raised, and a real file system of one MiB."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ganflow.training.disk import FullDiskError, sync, write_whole, writing

FULL = "No space left on device"


def write_half(path: Path, error: Exception, needed: int | None = None) -> None:
    with writing(path, needed):
        path.write_text("half")
        raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, FULL), FULL),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "quota exceeded"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "File too large"),
        (SafetensorError(f"Error while serializing: I/O error: {FULL} (os error {errno.ENOSPC})"), FULL),
        (shutil.Error([("from", "to", f"[Errno {errno.ENOSPC}] {FULL}: 'to'")]), FULL),
    ],
)
def test_no_room_is_one_error_and_leaves_nothing(error: Exception, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FullDiskError) as caught:
        write_half(path, error, 12345)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert reason in text
    assert "it needs 12,345 bytes, and " in text
    assert "bytes are free there" in text
    assert list(tmp_path.iterdir()) == []


def test_it_measures_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 1, 7654321))  # type: ignore[attr-defined]
    text = str(FullDiskError(tmp_path / "folder" / "that" / "is" / "gone", "full", None))
    assert text.endswith("gone: full: 7,654,321 bytes are free there")


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "denied"), SafetensorError("InvalidHeader"), ValueError("28"), OSError("28")]
)
def test_anything_else_stays_what_it_is(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(type(error)) as caught:
        write_half(path, error)
    assert caught.value is error
    assert path.exists()


def test_a_file_in_a_folder(tmp_path: Path) -> None:
    """It is the file that is named, and the folder that is taken back."""
    folder = tmp_path / "folder"

    def write() -> None:
        with writing(folder):
            folder.mkdir()
            write_half(folder / "file", OSError(errno.ENOSPC, FULL), 77)

    with pytest.raises(FullDiskError, match=r"folder/file: .* 77 bytes"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_undone_in_another_way(tmp_path: Path) -> None:
    """Whatever was raised, nothing but that happens: the folder may hold more than what was being written."""
    undone: list[int] = []
    with pytest.raises(FullDiskError), writing(tmp_path, undo=lambda: undone.append(1)):
        raise OSError(errno.ENOSPC, FULL)
    with pytest.raises(FullDiskError), writing(tmp_path, undo=lambda: undone.append(2)):
        raise FullDiskError(tmp_path / "file", FULL, 1)
    assert undone == [1, 2]
    assert tmp_path.exists()


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    sync(path)
    sync(tmp_path)


def test_without_room_the_old_file_stays(small_disk: Path) -> None:
    path = small_disk / "file"
    write_whole(path, b"old")
    with pytest.raises(FullDiskError, match=rf"{path}: {FULL}: it needs 3,000,000 bytes, and 1,0\d\d,\d\d\d bytes"):
        write_whole(path, bytes(3_000_000))
    assert path.read_bytes() == b"old"
    assert list(small_disk.iterdir()) == [path]


def test_a_folder_without_room(small_disk: Path) -> None:
    folder = small_disk / "folder"

    def write() -> None:
        with writing(folder):
            folder.mkdir()
            for name in ("one", "two", "three"):
                save_file({"x": torch.zeros(100_000)}, folder / name)

    with pytest.raises(FullDiskError, match=FULL):
        write()
    assert list(small_disk.iterdir()) == []
