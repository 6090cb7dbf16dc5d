"""Pipelines on this machine, each task as a process, through kfp.local."""

import hashlib
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import local
from kfp.dsl.base_component import BaseComponent

from ganflow.params import Params
from ganflow.pod import RUN_ID

ROOT = Path("artifacts/kfp")
CACHE = ROOT / "cache"


def data_version(params: Params) -> str:
    """Digest of the names, sizes and times below data.root, where the pictures are the user's own.

    The cache knows a task by its inputs, and would not see a picture that was added.
    """
    if params.data.source != "image_folder":
        return ""
    content = hashlib.sha256()
    root = Path(params.data.root)
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
    try:
        pipeline(**arguments)
    except RuntimeError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return False
    return True
