"""The run of a sweep in MLflow: the parent of the trainings that differ in a few parameters."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from mlflow.entities import Metric, Param, RunTag

from ganflow.errors import UserError
from ganflow.params import Params
from ganflow.tracking.runs import LARGEST_PARAM_BATCH, TAG_KIND, chunks, provenance, run_name, training_params
from ganflow.tracking.store import connect, experiment_id, explained
from ganflow.training.loop import InterruptedTraining

_TAG_SWEEP = "ganflow.sweep"


class Trial(NamedTuple):
    """One training of a sweep: its run, what it changed, and how it scored."""

    run_id: str
    overrides: Sequence[str]
    fid: float | None


def open_sweep(params: Params, trials: Sequence[Sequence[str]]) -> str:
    """Give the id of the parent run of a sweep, made if there is none yet for what is swept and what stays the same.

    The values of the trials do not count: the id is an input of each of them, so that a sweep with a value more or
    less would not find the others in Kubeflow's cache. Raises UserError where the store cannot be used.
    """
    client = connect()
    swept = {text.partition("=")[0] for trial in trials for text in trial}
    fixed = {key: value for key, value in training_params(params).items() if key not in swept}
    content = json.dumps([fixed, sorted(swept)], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    with explained(client.tracking_uri):
        experiment = experiment_id(client, params.tracking.experiment)
        for run in client.search_runs([experiment], f"tags.`{_TAG_SWEEP}` = '{digest}'", max_results=1):
            client.update_run(run.info.run_id, status="RUNNING")
            return str(run.info.run_id)
        tags = {TAG_KIND: "sweep", _TAG_SWEEP: digest, **provenance("sweep")}
        run = client.create_run(experiment, tags=tags, run_name=f"{run_name(params)}-sweep")
        for batch in chunks([Param(key, value) for key, value in fixed.items()], LARGEST_PARAM_BATCH):
            client.log_batch(run.info.run_id, params=batch)
    return str(run.info.run_id)


@contextmanager
def part_of_sweep(run_id: str) -> Iterator[None]:
    """Mark the sweep as failed where a part of it fails; without a run id there is no sweep."""
    try:
        yield
    except InterruptedTraining:  # another pod goes on
        raise
    except BaseException:
        if run_id:
            with suppress(UserError):  # the failure itself is what people have to hear of
                _end(run_id, "FAILED")
        raise


def best_of(trials: Sequence[Trial]) -> Trial:
    """Choose the trial with the lowest FID, the first of equals. Raises UserError where none has a FID."""
    scored = [(trial.fid, index) for index, trial in enumerate(trials) if trial.fid is not None]
    if not scored:
        raise UserError("no trial of this sweep has a FID; see their evaluations")
    return trials[min(scored)[1]]


def close_sweep(run_id: str, trials: Sequence[Trial], best: Trial) -> None:
    """Note on the parent run which trial was the best, and end it. Raises UserError."""
    client = connect()
    now = time.time_ns() // 1_000_000
    with explained(client.tracking_uri):
        metrics = [Metric("sweep/trials", len(trials), now, 0)]
        if best.fid is not None:
            metrics.append(Metric("sweep/best_fid", best.fid, now, 0))
        tags = {"ganflow.best_run": best.run_id, "ganflow.best_overrides": " ".join(best.overrides) or "none"}
        client.log_batch(run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()])
        client.log_dict(run_id, {"trials": [trial._asdict() for trial in trials]}, "sweep/trials.json")
        client.set_terminated(run_id, "FINISHED")


def _end(run_id: str, status: str) -> None:
    client = connect()
    with explained(client.tracking_uri):
        client.set_terminated(run_id, status)
