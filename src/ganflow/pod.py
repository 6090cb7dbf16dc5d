"""What the body of a Kubeflow component needs beside its stage, in a pod and under kfp.local alike."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Final

from ganflow import report
from ganflow.code import Stage, code_version
from ganflow.errors import UserError
from ganflow.home import state_folder
from ganflow.params import Params, dump, nest, overlay, override, parse
from ganflow.tracking.delivery import sync
from ganflow.tracking.runs import read_run
from ganflow.training.loop import DivergedError, InterruptedTraining
from ganflow.trainjob import TrainJobFailedError

# Set on the pods by pipelines/cluster.py.
CHECKPOINTS: Final = "GANFLOW_CHECKPOINTS"
RUN_ID: Final = "KFP_RUN_ID"

_ANY_MODEL = {"family": "vanilla"}  # for prepare, which knows nothing of the model, where all parameters need one
_POD = "KFP_POD_NAME"  # set by the backend
_TERMINATED = 143  # what a shell says of a process that SIGTERM ended
_INTERRUPTED = 130  # and of one that Ctrl-C ended


def params_of(leaves: Mapping[str, Any], *above: str, trial: str = "{}") -> Params:
    """Put the parameters of a task together: its own leaves, by dotted path, and the sections of the tasks before it.

    `above` are texts that `sections` made, which came with the input artifacts. `trial` is that of a sweep, as JSON.
    Raises UserError.
    """
    tree: dict[str, Any] = {}
    for text in above:
        tree = overlay(tree, json.loads(text))
    if not any(leaf.startswith("model.") for leaf in leaves):
        tree.setdefault("model", _ANY_MODEL)
    return parse(override(overlay(tree, nest(leaves)), overrides(trial)), "pipeline")


def overrides(trial: str) -> list[str]:
    """What a trial of a sweep changes, as `key.path=value`."""
    return list(json.loads(trial).get("overrides", ()))


def parent_run(trial: str) -> str:
    """Id of the MLflow run of the sweep that a trial is part of; empty outside of a sweep."""
    return str(json.loads(trial).get("parent_run", ""))


def sections(params: Params, *names: str) -> str:
    """Write sections of the parameters as JSON text, in which an integer stays one, unlike in KFP's metadata."""
    tree = dump(params)
    return json.dumps({name: tree[name] for name in names}, ensure_ascii=False)


def states() -> Path:
    """Folder of what a training resumes from: on the volume for checkpoints, one for each run of a pipeline.

    A retried pod has the id of the same run, and so finds the checkpoint of the pod before it.
    """
    volume = os.environ.get(CHECKPOINTS)
    if not volume:  # a pod may not be able to write where it starts, and what it writes is gone with it anyway
        return Path(gettempdir(), "ganflow") if _POD in os.environ else state_folder()
    folder = Path(volume, os.environ.get(RUN_ID) or "no-run-id")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: the volume for checkpoints cannot be written ({error.strerror}) by user {os.getuid()}; let its "
            "owner be the user of cluster.yaml, or the other way round"
        ) from None
    return folder


def send_rest(attempts: int = 20, pause: float = 30.0) -> None:
    """Send MLflow what it missed of the journals, patiently: in a pod, nobody does it later by hand."""
    if _POD not in os.environ:
        return
    for attempt in range(attempts):
        try:
            sync(states(), ended=True)
        except UserError as error:
            _say(f"{error}; attempt {attempt + 1} of {attempts}")
            if attempt + 1 < attempts:
                time.sleep(pause)
        else:
            return
    _say(f"the rest of the journal stays in {states()}: `ganflow sync --states {states()}` sends it")


def about_training(params: Params, trained: Path, trial: str) -> dict[str, str]:
    """Say what the tasks after a training have to know of it: metadata of its artifact."""
    run = read_run(trained)
    if run is None:
        raise UserError(f"{trained}: names no MLflow run; train again")
    return {
        "run_id": run.run_id,
        "trial": trial,
        "params": sections(params, "seed", "data", "model", "train", "tracking"),
    }


def training_page(params: Params, trained: Path) -> str:
    """Page of a training, titled by its data set and family."""
    return report.training_page(trained, f"{params.data.registered_model}, {params.model.family}")


@contextmanager
def plain_failures(stage: Stage | None = None, code: str = "") -> Iterator[None]:
    """Run the body of a component: check first that this image has its code, and end failures as the command line does.

    A mistake of the user's ends with status 2, a training that diverged with 1, one that was told to stop with 143.
    """
    try:
        if stage is not None:
            _require_code(stage, code)
        _require_store()
        yield
    except UserError as error:
        _end(f"{error}", 2)
    except (DivergedError, TrainJobFailedError) as error:
        _end(f"{error}", 1)
    except InterruptedTraining as error:
        _end(f"{error}", _TERMINATED, final=False)
    except KeyboardInterrupt:  # on one machine
        _end("stopped", _INTERRUPTED, final=False)


def _require_code(stage: Stage, code: str) -> None:
    if code != code_version(stage):
        raise UserError(
            f"{stage}: the pipeline was compiled for the code {code}, but the code here is {code_version(stage)}; "
            "build the image from the checkout that compiles the pipeline. On one machine: the code was edited "
            "meanwhile; run again"
        )


def _require_store() -> None:
    if _POD in os.environ and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "MLFLOW_TRACKING_URI: is not set in this pod, whose own disk is gone with it; the Secret that cluster.yaml "
            "names in mlflow_secret must exist in the namespace of the run and have this key"
        )


def _end(message: str, status: int, *, final: bool = True) -> None:
    _say(message)
    if final and _POD in os.environ:
        _say("this is final: Kubeflow starts a pod again that was deleted or evicted, not one that failed")
    sys.exit(status)


def _say(text: str) -> None:
    print(f"ganflow: {text}", file=sys.stderr, flush=True)
