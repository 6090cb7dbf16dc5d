"""The MLflow run of one training: its parameters, data set, and where its code comes from."""

import hashlib
import json
import logging
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from getpass import getuser
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run

from ganflow import __version__
from ganflow.data.card import DataCard
from ganflow.errors import UserError
from ganflow.params import Params, dump
from ganflow.tracking.store import connect, experiment_id, explained, find_run, tracking_uri
from ganflow.training.disk import sync
from ganflow.urls import public

_Item = TypeVar("_Item")
_DIGEST_LENGTH = 36  # longest digest that MLflow keeps of a data set
LARGEST_PARAM_BATCH = 100
TAG_PARENT = "mlflow.parentRunId"
TAG_COMMIT = "mlflow.source.git.commit"
TAG_DATA_DIGEST = "ganflow.data_digest"
TAG_KIND = "ganflow.kind"
TAG_PRECISION = "ganflow.precision"
TAG_RESUMED_FROM = "ganflow.resumed_from"
TAG_RESUMED_AT = "ganflow.resumed_from_images"
RUN_FILE = "run.json"
_TAGS_BY_VARIABLE = {
    "DVC_EXP_NAME": "dvc.experiment",
    "GANFLOW_COMMIT": TAG_COMMIT,
    "GANFLOW_IMAGE": "ganflow.image",
    "KFP_RUN_ID": "kfp.run_id",
    "KFP_POD_NAME": "kfp.pod_name",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRef:
    """Where a run is found again: its id, the store (without credentials), and the experiment."""

    run_id: str
    tracking_uri: str
    experiment_id: str


def write_run(folder: Path, ref: RunRef) -> None:
    """Write the run's reference as run.json into a folder."""
    write_json(folder / RUN_FILE, asdict(ref))


def read_run(folder: Path) -> RunRef | None:
    """Read run.json of a folder; None where there is none."""
    path = folder / RUN_FILE
    try:
        return RunRef(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is not the reference of an MLflow run ({error}); delete it") from None


def open_run(
    params: Params, card: DataCard, *, parent_run: str = "", tags: Mapping[str, str] = MappingProxyType({})
) -> RunRef:
    """Open the run of one training: its parameters, its data set, where its code comes from, and further `tags`.

    Below the run `parent_run`, or that which MLFLOW_RUN_ID names, as Kubeflow's plugin does, where there is such a
    run: in its experiment, because MLflow shows a child only there. Raises UserError where the store cannot be used.
    """
    client = connect()
    with explained(client.tracking_uri):
        parent = find_run(client, parent_run or os.environ.get("MLFLOW_RUN_ID"))
        experiment = parent.info.experiment_id if parent else experiment_id(client, params.tracking.experiment)
        links = {TAG_PARENT: parent.info.run_id} if parent else {}
        run = create_run(
            client,
            experiment,
            run_name(params),
            params=training_params(params),
            tags={TAG_KIND: "training", **provenance("train"), **links, **tags},
            card=card,
        )
    return reference(client, run)


def resume_run(
    params: Params, card: DataCard, state: Path, *, parent_run: str = "", tags: Mapping[str, str] = MappingProxyType({})
) -> RunRef:
    """Give the run that a state folder belongs to, or open one with these `tags` and note it there.

    A run that this store does not know counts as none. A store that does not answer stops a training that starts,
    but not one that goes on: its journal is sent later.
    """
    known = read_run(state)
    if known is not None:
        try:
            client = connect()
            with explained(client.tracking_uri):
                run = find_run(client, known.run_id)
        except UserError as error:
            if known.tracking_uri != public(tracking_uri()):
                raise
            _log.warning("%s; training goes on, and its journal is sent later", error)
            return known
        if run is not None:
            return _noted(state, reference(client, run))
        _log.warning("MLflow run %s is not in %s: a new run is opened", known.run_id, public(client.tracking_uri))
    return _noted(state, open_run(params, card, parent_run=parent_run, tags=tags))


def run_name(params: Params) -> str:
    """Name a training for people: data, family, and six digits that stand for all of its parameters."""
    digest = hashlib.sha256(json.dumps(training_params(params), sort_keys=True).encode()).hexdigest()
    return f"{params.data.registered_model}-{params.model.family}-{digest[:6]}"


def training_params(params: Params) -> dict[str, str]:
    """List what a training depends on, as MLflow shows it: `train.batch_size` and so on."""
    tree = dump(params)
    return flat({section: tree[section] for section in tree if section not in {"evaluate", "register"}})


def _noted(state: Path, ref: RunRef) -> RunRef:
    state.mkdir(parents=True, exist_ok=True)
    write_run(state, ref)
    return ref


def reference(client: MlflowClient, run: Run) -> RunRef:
    """Say where a run is found again."""
    return RunRef(run.info.run_id, public(client.tracking_uri), run.info.experiment_id)


def create_run(
    client: MlflowClient,
    experiment: str,
    name: str,
    *,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    card: DataCard,
) -> Run:
    """Create a run with its name, parameters, tags and data set."""
    run = client.create_run(experiment, tags={**tags, TAG_DATA_DIGEST: card.digest}, run_name=name)
    for batch in chunks([Param(key, value) for key, value in params.items()], LARGEST_PARAM_BATCH):
        client.log_batch(run.info.run_id, params=batch)
    client.log_inputs(run.info.run_id, [_dataset(card)])
    return run


def _dataset(card: DataCard) -> DatasetInput:
    counts = {split: entry.count for split, entry in card.splits.items()}
    pictures = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *_picture_shape(card)]}}
    dataset = Dataset(
        name=card.name,
        digest=card.digest.removeprefix("sha256:")[:_DIGEST_LENGTH],
        source_type="code",
        source=json.dumps({"tags": {"mlflow.source.type": "LOCAL", "mlflow.source.name": card.source}}),
        schema=json.dumps({"mlflow_tensorspec": {"features": json.dumps([pictures]), "targets": None}}),
        profile=json.dumps({"num_rows": sum(counts.values()), **counts}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _picture_shape(card: DataCard) -> tuple[int, int, int]:
    return card.channels, card.resolution, card.resolution


def provenance(stage: str) -> dict[str, str]:
    """Say who ran which version of the code, and where.

    A container has no checkout: there, the environment names the commit, the image and the pipeline's run.
    """
    tags = {
        "mlflow.source.name": f"ganflow {stage}",
        "mlflow.source.type": "LOCAL",
        "ganflow.version": __version__,
    }
    try:
        tags["mlflow.user"] = getuser()
    except (KeyError, OSError):
        _log.debug("this user has no name")  # an arbitrary uid in a container
    tags |= {tag: value for name, tag in _TAGS_BY_VARIABLE.items() if (value := os.environ.get(name))}
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    if commit:
        tags[TAG_COMMIT] = commit
        tags["mlflow.source.git.dirty"] = str(bool(changes)).lower()
    return tags


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Name the leaves of a tree by their dotted paths."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return leaves


def chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """Cut a sequence into pieces of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def write_json(path: Path, content: Any) -> None:
    """Write a file as a whole: a reader sees the old one or the new one, and so does one after a power cut."""
    new = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sync(new)
    new.replace(path)
