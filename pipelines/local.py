"""Pipelines on this machine, each task as a process, through kfp.local."""

import hashlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from kfp import local
from kfp.dsl.base_component import BaseComponent

from ganflow.errors import UserError
from ganflow.params import Params
from ganflow.pod import RUN_ID

ROOT = Path("artifacts/kfp")
CACHE = ROOT / "cache"


def data_version(params: Params) -> str:
    """Digest of the names, sizes and times below data.root, where the pictures are the user's own.

    The cache knows a task by its inputs, and would not see a picture that was added. Raises UserError where there is no
    such folder.
    """
    if params.data.source != "image_folder":
        return ""
    content = hashlib.sha256()
    root = Path(params.data.root)
    if not root.is_dir():
        raise UserError(f"data.root: there is no folder {root}")
    for path in sorted(root.rglob("*")):
        if path.is_file():
            found = path.stat()
            content.update(
                f"{path.relative_to(root)} {found.st_size} {found.st_mtime_ns}\n".encode(errors="surrogateescape")
            )
    return content.hexdigest()[:12]


def run(pipeline: BaseComponent, arguments: Mapping[str, Any]) -> bool:
    """Run a pipeline, and say whether all went well; what a failed task had to say is on stdout.

    A task whose inputs and code are those of an earlier one is not run again.
    """
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local")
    os.environ[RUN_ID] = f"local-{time.strftime('%Y%m%d-%H%M%S')}"  # a pod has it from Kubeflow
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(ROOT),
        enable_caching=True,
        cache_root=str(CACHE),
    )
    with _interrupted_with_its_task() as interrupts:
        try:
            pipeline(**arguments)
        except RuntimeError as error:
            if interrupts:
                raise KeyboardInterrupt from None
            print(f"pipelines: {error}", file=sys.stderr)
            return False
    return True


@contextmanager
def _interrupted_with_its_task() -> Iterator[list[int]]:
    """Let a first Ctrl-C end the running task, which has it from the terminal as well, and hear it out.

    Ended before it, we would take the pipe away into which it says where it stopped: MLflow would call it FAILED.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
