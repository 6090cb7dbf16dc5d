"""What later stages add to the run of a training, or to a run linked to it."""

import csv
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from ganflow.data.card import DataCard
from ganflow.errors import UserError
from ganflow.evaluation.protocol import Protocol
from ganflow.params import Params, dump
from ganflow.tracking.delivery import LARGEST_BATCH, log_sample
from ganflow.tracking.runs import (
    LARGEST_PARAM_BATCH,
    RUN_FILE,
    TAG_KIND,
    TAG_PARENT,
    TAG_RESUMED_AT,
    TAG_RESUMED_FROM,
    RunRef,
    chunks,
    create_run,
    flat,
    provenance,
    read_run,
    reference,
    run_name,
    training_params,
)
from ganflow.tracking.store import connect, experiment_id, explained, find_run

_TAG_NAME = "mlflow.runName"
TAG_PROTOCOL = "ganflow.protocol"
TAG_TRAINED_BY = "ganflow.trained_by"
TAG_PICTURES = "ganflow.pictures_digest"
TAG_CAUTION = "ganflow.caution"
METRICS_FILE = "metrics.json"
PROTOCOL_FILE = "protocol.json"
MEASURED_FILE = "measured.json"


def log_evaluation(
    params: Params,
    card: DataCard,
    trained: Path,
    evaluated: Path,
) -> RunRef:
    """Log an evaluation: its parameters, metrics.json as `evaluate/...`, protocol.json, and the pictures.

    The first one goes to the run of the training, whose status stays as it is. MLflow does not let parameters change:
    under others, the evaluation has a run of its own, below that of the training. The same parameters find the same
    run again. Raises UserError where the store cannot be used.
    """
    client = connect()
    with explained(client.tracking_uri):
        training = training_run(client, params, card, trained)
        asked = flat({"evaluate": dump(params)["evaluate"]})
        run = _evaluation_run(client, training, asked, card)
        for batch in chunks([Param(key, value) for key, value in asked.items()], LARGEST_PARAM_BATCH):
            client.log_batch(run.info.run_id, params=batch)
        _log_results(client, run, evaluated, _measured_images(evaluated))
    return reference(client, run)


def log_folder(params: Params, card: DataCard, name: str, evaluated: Path) -> RunRef:
    """Log the evaluation of a folder of pictures, called `name`, to a run of its own.

    The same pictures under the same parameters find the same run again. Raises UserError where the store cannot be
    used.
    """
    client = connect()
    digest = str(_read_json(evaluated / PROTOCOL_FILE)["digest_of_pictures"])
    with explained(client.tracking_uri):
        tree = dump(params)
        asked = flat({section: tree[section] for section in ("data", "model", "evaluate")})  # the model: its ceiling
        experiment = experiment_id(client, params.tracking.experiment)
        for run in _search(client, experiment, f"tags.`{TAG_PICTURES}` = '{digest}'"):
            if run.data.params == asked:
                break
        else:
            tags = {TAG_KIND: "pictures", TAG_PICTURES: digest, **provenance("evaluate")}
            title = f"{params.data.registered_model}-{name}"
            run = create_run(client, experiment, title, params=asked, tags=tags, card=card)
            client.set_terminated(run.info.run_id, "FINISHED")
        _log_results(client, run, evaluated, 0)
    return reference(client, run)


def training_run(client: MlflowClient, params: Params, card: DataCard, trained: Path) -> Run:
    """Find the run that `trained` names.

    Where this store does not know it (the outputs come from a DVC cache, say), a run is made from what the training
    left, and linked to the lost one by tag.
    """
    known = read_run(trained)
    if (run := find_run(client, known.run_id if known else None)) is not None:
        return run
    lost = known.run_id if known else "unknown"
    experiment = experiment_id(client, params.tracking.experiment)
    name = run_name(params)
    restored = _search(
        client,
        experiment,
        f"tags.`{TAG_TRAINED_BY}` = '{lost}' and tags.`{TAG_KIND}` = 'restored' and tags.`{_TAG_NAME}` = '{name}' "
        "and attributes.status = 'FINISHED'",
    )
    if restored:
        return restored[0]
    tags = {TAG_KIND: "restored", TAG_TRAINED_BY: lost, **provenance("train")}
    run = create_run(client, experiment, name, params=training_params(params), tags=tags, card=card)
    _restore_history(client, run.info.run_id, trained)
    client.set_terminated(run.info.run_id, "FINISHED")
    return client.get_run(run.info.run_id)


def _evaluation_run(client: MlflowClient, training: Run, asked: Mapping[str, str], card: DataCard) -> Run:
    if _evaluated_with(training) in ({}, asked):
        return training
    training_id = training.info.run_id
    experiment = training.info.experiment_id
    links = f"tags.`{TAG_TRAINED_BY}` = '{training_id}' and tags.`{TAG_KIND}` = 'evaluation'"
    for run in _search(client, experiment, links):
        if _evaluated_with(run) == asked:
            return run
    trained_with = {key: value for key, value in training.data.params.items() if not key.startswith("evaluate.")}
    origin = {
        TAG_KIND: "evaluation",
        TAG_TRAINED_BY: training_id,
        TAG_PARENT: training_id,
        **provenance("evaluate"),
        **{tag: training.data.tags[tag] for tag in (TAG_RESUMED_FROM, TAG_RESUMED_AT) if tag in training.data.tags},
    }
    name = f"{training.info.run_name}-evaluation"
    run = create_run(client, experiment, name, params={**trained_with, **asked}, tags=origin, card=card)
    client.set_terminated(run.info.run_id, "FINISHED")
    return run


def _evaluated_with(run: Run) -> dict[str, str]:
    return {key: value for key, value in run.data.params.items() if key.startswith("evaluate.")}


def _search(client: MlflowClient, experiment: str, conditions: str) -> list[Run]:
    return list(client.search_runs([experiment], conditions, max_results=LARGEST_BATCH))


def _log_results(client: MlflowClient, run: Run, evaluated: Path, images: int) -> None:
    run_id = run.info.run_id
    now = _now()
    metrics = [
        Metric(f"evaluate/{name}", value, now, images)
        for name, value in read_metrics(evaluated).items()
        if value is not None and math.isfinite(value) and run.data.metrics.get(f"evaluate/{name}") != value
    ]
    protocol = read_protocol(evaluated)
    tags = [RunTag(TAG_PROTOCOL, protocol.digest), RunTag(TAG_CAUTION, "; ".join(protocol.cautions) or "none")]
    client.log_batch(run_id, metrics=metrics, tags=tags)
    for path in sorted([*evaluated.glob("*.json"), *evaluated.glob("*.png"), *evaluated.glob("sheets/*.png")]):
        if path.name != RUN_FILE:
            folder = (Path("evaluation") / path.relative_to(evaluated)).parent
            client.log_artifact(run_id, str(path), folder.as_posix())


def read_metrics(evaluated: Path) -> dict[str, float | None]:
    """Read the numbers of metrics.json; null stands for one that has no value."""
    tree = _read_json(evaluated / METRICS_FILE)
    return {
        name: None if value is None else float(value)
        for name, value in tree.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def read_protocol(evaluated: Path) -> Protocol:
    """Read how the numbers of metrics.json came about."""
    path = evaluated / PROTOCOL_FILE
    try:
        return Protocol.from_dict(_read_json(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}; run `ganflow evaluate` again") from None


def _measured_images(evaluated: Path) -> int:
    """Read at how many images the weights that were measured had been trained."""
    path = evaluated / MEASURED_FILE
    try:
        return int(_read_json(path)["images"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: does not say at how many images; run `ganflow evaluate` again") from None


def measured_weights(evaluated: Path) -> str:
    """Read the digest of the weights that were measured."""
    return str(_read_json(evaluated / MEASURED_FILE).get("weights_digest"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; run `ganflow evaluate` first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `ganflow evaluate` again") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: does not hold names and values; run `ganflow evaluate` again")
    return tree


def _restore_history(client: MlflowClient, run_id: str, trained: Path) -> None:
    now = _now()
    metrics = [
        Metric(f"train/{name}", value, now, images)
        for file in ("history.csv", "fid.csv")
        for images, values in _history(trained / file)
        for name, value in values
    ]
    for batch in chunks(metrics, LARGEST_BATCH):
        client.log_batch(run_id, metrics=batch)
    for picture in sorted((trained / "samples").glob("*.png")):
        if picture.stem.isdigit():
            log_sample(client, run_id, picture, int(picture.stem), now)


def _history(path: Path) -> list[tuple[int, list[tuple[str, float]]]]:
    """Read the curves that a training left: image counts, and the values that each has."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [
            (int(row["images"]), [(name, float(value)) for name, value in row.items() if name != "images" and value])
            for row in rows
        ]
    except FileNotFoundError:
        return []
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is not the history of a training ({error}); train again") from None


def _now() -> int:
    return time.time_ns() // 1_000_000
