"""The user's repository: where runs, artifacts and the state to resume from belong, wherever a stage is started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

_MARKERS = ("params.yaml", ".dvc", ".git")
_DVC_WORKSPACES = (".dvc", "tmp", "exps")


def home() -> Path:
    """Find the root of the user's repository: DVC's root, else the nearest folder upwards that looks like one.

    DVC runs a queued experiment in a copy of the repository below .dvc/tmp/exps, and deletes the copy afterwards:
    there, the repository itself is meant.
    """
    start = Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()
    parts = start.parts
    for depth in range(1, len(parts) - len(_DVC_WORKSPACES)):
        if parts[depth : depth + len(_DVC_WORKSPACES)] == _DVC_WORKSPACES:
            return Path(*parts[:depth])
    if os.environ.get("DVC_ROOT"):
        return start
    return next((folder for folder in (start, *start.parents) if _is_marked(folder)), start)


def state_folder() -> Path:
    """Folder of what outlives a stage without being its output: states to resume from, locks."""
    return home() / ".ganflow"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keep the other processes of this repository out; in a folder that cannot be written, there are none."""
    lock = FileLock(state_folder() / f"{name}.lock")
    try:
        state_folder().mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _is_marked(folder: Path) -> bool:
    return any((folder / marker).exists() for marker in _MARKERS)
