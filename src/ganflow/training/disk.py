"""What is written reaches the disk, or leaves nothing behind and one message that says how much room it needs."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NUMBER = re.compile(r"(?:\[Errno |\(os error )(\d+)[])]")
"""How the system's error number reads in what Python, shutil and safetensors say."""


class FullDiskError(Exception):
    """There was no room for a file, or for a folder; nothing is left of it."""

    def __init__(self, path: Path, reason: str, needed: int | None) -> None:
        """Measure what is free beside `path`; `needed` is in bytes, None where nobody knows."""
        there = next(folder for folder in path.absolute().parents if folder.exists())
        free = f"{shutil.disk_usage(there).free:,} bytes are free there"
        super().__init__(f"{path}: {reason}: " + (free if needed is None else f"it needs {needed:,} bytes, and {free}"))


@contextmanager
def writing(path: Path, needed: int | None = None, undo: Callable[[], None] | None = None) -> Iterator[None]:
    """Take back what was written of a file or a folder that there is no room for, by `undo` or by deleting it.

    `needed` is its size in bytes. Raises FullDiskError: for a full disk, a quota, or a limit of the file's size.
    """
    undo = undo or partial(_delete, path)
    try:
        yield
    except FullDiskError:  # of a file within the folder
        undo()
        raise
    except Exception as error:
        number = _NUMBER.search(str(error))
        if number is None or int(number[1]) not in _NO_ROOM:
            raise
        undo()
        raise FullDiskError(path, os.strerror(int(number[1])), needed) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one. Raises FullDiskError."""
    new = path.with_name(f".{path.name}.part")
    with writing(path, len(content), undo=lambda: new.unlink(missing_ok=True)):
        new.write_bytes(content)
        sync(new)
    new.replace(path)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, would be there after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
