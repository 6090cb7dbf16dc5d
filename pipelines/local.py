"""Pipelines on this machine, each task as a process, through kfp.local."""

import os
import time
import warnings
from pathlib import Path

from kfp import local
from kfp.dsl.base_component import BaseComponent

from ganflow.pod import RUN_ID

ROOT = Path("artifacts/kfp")
CACHE = ROOT / "cache"


def run(pipeline: BaseComponent) -> None:
    """Run a pipeline; a task whose inputs and code are those of an earlier one is not run again.

    Raises RuntimeError where a task fails; what the task had to say is on stdout.
    """
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local")
    os.environ[RUN_ID] = f"local-{time.strftime('%Y%m%d-%H%M%S')}"  # a pod has it from Kubeflow
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(ROOT),
        enable_caching=True,
        cache_root=str(CACHE),
    )
    pipeline()
