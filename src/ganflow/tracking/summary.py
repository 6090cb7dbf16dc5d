"""Mean and deviation over the runs that differ in their seed alone, from what MLflow holds of them."""

import difflib
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Run

from ganflow.errors import UserError
from ganflow.params import override
from ganflow.tracking.evaluations import TAG_CAUTION, TAG_PROTOCOL
from ganflow.tracking.runs import TAG_DATA_DIGEST, TAG_KIND, TAG_RESUMED_AT, flat, write_json
from ganflow.tracking.store import connect, explained, tracking_uri
from ganflow.urls import public

_SEED = "seed"
_KINDS = {"training", "restored", "evaluation"}
_PROTOCOL_TAGS = (TAG_PROTOCOL, TAG_DATA_DIGEST, TAG_CAUTION)  # the first stands for the others
_MEASURED, _BEST_FID = "evaluate/", "train/best_fid"
# They say where and how something was computed, and what was kept of it; the digests tell other data and weights apart.
_WITHOUT_EFFECT = {
    "data.root",
    "train.device",
    "train.sample_every_images",
    "train.checkpoint_every_images",
    "evaluate.inception_weights",
    "evaluate.batch_size",
    "tracking.experiment",
}
_IN_LABEL = {"data.source", "data.name", "data.resolution", "model.family"}
_PAGE = 1000  # runs that are asked for at once
_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class EvaluatedRun:
    """A run with the numbers of an evaluation, as plain values."""

    run_id: str
    started: int
    """Milliseconds since 1970."""
    params: Mapping[str, str]
    """What ganflow logged, by dotted path; `seed` is among it."""
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """Finite ones: `evaluate/...`, and `train/best_fid` where the training measured on its way."""


@dataclass(frozen=True)
class Statistic:
    """One metric over the seeds that have it."""

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The arithmetic mean."""
        return fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation, with n - 1 in the denominator; None for a single value."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Configuration:
    """Runs that nothing but the seed tells apart, one for each seed."""

    identity: Mapping[str, str]
    """The parameters that they share, and the tags that their numbers depend on; none that cannot change a number."""
    runs: Mapping[int, EvaluatedRun]
    """The latest run of each seed, by rising seed."""
    repeated: int
    """Number of earlier runs of the same seeds, which do not count."""

    @property
    def label(self) -> str:
        """Data set, resolution and family, as in the name of a run."""
        name = self.identity["data.name"] or self.identity["data.source"]
        return f"{name}-{self.identity['data.resolution']}px-{self.identity['model.family']}"

    @property
    def params(self) -> dict[str, str]:
        """What of the identity is parameters."""
        return {key: value for key, value in self.identity.items() if key not in _PROTOCOL_TAGS}

    @property
    def statistics(self) -> dict[str, Statistic]:
        """Each metric that any of the runs has."""
        names = sorted({name for run in self.runs.values() for name in run.metrics})
        return {
            name: Statistic({seed: run.metrics[name] for seed, run in self.runs.items() if name in run.metrics})
            for name in names
        }


def read_runs(experiment: str) -> list[EvaluatedRun]:
    """Read the finished runs of an MLflow experiment that have the numbers of an evaluation.

    Makes neither a store nor an experiment. Raises UserError where there is none of them, or no such run.
    """
    uri = tracking_uri()
    _require_store(uri)
    client = connect(uri)
    with explained(uri):
        runs = [read for run in _finished_runs(client, experiment) if (read := _evaluated(run)) is not None]
    if not runs:
        raise UserError(
            f"experiment {experiment!r} in {public(uri)}: no finished run has the numbers of an evaluation; "
            "run `make repro`, or `ganflow evaluate` on what was trained"
        )
    return runs


def select(runs: Sequence[EvaluatedRun], conditions: Sequence[str]) -> list[EvaluatedRun]:
    """Keep the runs whose parameters have the values of all `key.path=value`. Raises UserError where none is left."""
    chosen = list(runs)
    for key, wanted in flat(override({}, conditions)).items():
        kept = [run for run in chosen if key in run.params and _equal(run.params[key], wanted)]
        if not kept:
            asked = " ".join(f"-S {condition}" for condition in conditions)
            raise UserError(f"{asked}: no evaluated run has this; {_present(key, chosen)}")
        chosen = kept
    return chosen


def configurations(runs: Iterable[EvaluatedRun]) -> list[Configuration]:
    """Group runs by all that can change their numbers but the seed; the group with the newest run comes last."""
    groups: dict[frozenset[tuple[str, str]], list[EvaluatedRun]] = {}
    for run in sorted(runs, key=lambda run: run.started):
        groups.setdefault(frozenset(_identity(run).items()), []).append(run)
    newest_last = sorted(groups.values(), key=lambda group: group[-1].started)
    return [_configuration(group) for group in newest_last]


def render(shown: Sequence[Configuration]) -> str:
    """Write configurations as text of at most 100 columns, where no name or value is longer than that.

    Each has a heading with the parameters in which it differs from the others, and a table: the deviation to two
    significant digits, the mean to the same place.
    """
    differing = _differing(shown)
    return "\n\n".join(f"{_heading(each, differing)}\n\n{_table(each)}" for each in shown)


def write(path: Path, experiment: str, shown: Sequence[Configuration]) -> None:
    """Write all of it as JSON, the numbers as they are. Raises UserError."""
    try:
        write_json(path, {"experiment": experiment, "configurations": [_tree(each) for each in shown]})
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name a file in a folder that exists") from None


def round_together(mean: float, deviation: float | None) -> tuple[str, str | None]:
    """Write a deviation with two significant digits, and its mean to the same place.

    A mean without a deviation, or with one of zero, has four significant digits, or all before the point; a whole
    number stays one.
    """
    if deviation:
        place = _place(deviation, 2)
        return _rounded(mean, place), _rounded(deviation, place)
    place = 0 if mean.is_integer() else min(0, _place(mean, 4))
    return _rounded(mean, place), None if deviation is None else "0"


def _require_store(uri: str) -> None:
    """Refuse a database file that is missing, which a client would make."""
    if uri.startswith("sqlite:"):
        path = sqlalchemy.make_url(uri).database
        if not path or not Path(path).exists():
            raise UserError(
                f"{uri}: there is no such store of runs yet; run `make repro` first, or set MLFLOW_TRACKING_URI to "
                "the store that has them"
            )


def _finished_runs(client: MlflowClient, name: str) -> Iterator[Run]:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        names = ", ".join(known.name for known in client.search_experiments(max_results=20)) or "none"
        raise UserError(
            f"experiment {name!r}: is not in {public(client.tracking_uri)}, which has {names}; choose one with "
            "--experiment, or run `make repro` first"
        )
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"experiment {name!r}: was deleted in {public(client.tracking_uri)}; restore it with `mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}`, or choose another one with --experiment"
        )
    token = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
            "attributes.status = 'FINISHED'",
            max_results=_PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _evaluated(run: Run) -> EvaluatedRun | None:
    """Take what is needed of a run; None where it holds no evaluation of ganflow's."""
    tags, params = run.data.tags, run.data.params
    metrics = {
        name: value
        for name, value in run.data.metrics.items()
        if (name.startswith(_MEASURED) or name == _BEST_FID) and math.isfinite(value)
    }
    measured = any(name.startswith(_MEASURED) for name in metrics)
    if tags.get(TAG_KIND) not in _KINDS or TAG_PROTOCOL not in tags or _SEED not in params or not measured:
        return None
    return EvaluatedRun(run_id=run.info.run_id, started=run.info.start_time, params=params, tags=tags, metrics=metrics)


def _equal(logged: str, wanted: str) -> bool:
    """Compare as text, or as numbers: 2e-4 is 0.0002, and 1 is 1.0."""
    try:
        return logged == wanted or float(logged) == float(wanted)
    except ValueError:
        return False


def _present(key: str, runs: Iterable[EvaluatedRun]) -> str:
    """Say which values a parameter has, or that there is no such parameter."""
    if values := {run.params[key] for run in runs if key in run.params}:
        return f"there is {key}={', '.join(sorted(values))}"
    near = difflib.get_close_matches(key, {name for run in runs for name in run.params}, n=1)
    return f"{key} is not a parameter of theirs" + (f"; did you mean {near[0]}?" if near else "")


def _identity(run: EvaluatedRun) -> dict[str, str]:
    params = {key: value for key, value in run.params.items() if key != _SEED and key not in _WITHOUT_EFFECT}
    # A training that began with another one's checkpoint is not that which its parameters alone would make.
    return params | {tag: run.tags[tag] for tag in (*_PROTOCOL_TAGS, TAG_RESUMED_AT) if tag in run.tags}


def _configuration(group: Sequence[EvaluatedRun]) -> Configuration:
    latest = {int(run.params[_SEED]): run for run in group}
    return Configuration(_identity(group[-1]), dict(sorted(latest.items())), len(group) - len(latest))


def _differing(shown: Sequence[Configuration]) -> list[str]:
    """Name what tells configurations apart beside their labels and protocols."""
    keys = sorted({key for each in shown for key in each.identity} - _IN_LABEL - {*_PROTOCOL_TAGS})
    return [key for key in keys if len({each.identity.get(key) for each in shown}) > 1]


def _heading(each: Configuration, differing: Sequence[str]) -> str:
    own = [f"{key}={each.identity[key]}" for key in differing if key in each.identity]
    count, seeds = len(each.runs), ", ".join(map(str, each.runs))
    said = f"{count} run{'s'[: count > 1]}, seed{'s'[: count > 1]} {seeds}"
    if each.repeated:
        said += f" ({each.repeated} earlier of these seeds left out)"
    said += f"; protocol {each.identity[TAG_PROTOCOL].removeprefix('sha256:')[:8]}"
    lines = [" ".join([each.label, *own]), said]
    if (caution := each.identity.get(TAG_CAUTION, "none")) != "none":
        lines.append(f"Caution: {caution}")
    return "\n".join(
        textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    )


def _table(each: Configuration) -> str:
    rows = [("metric", "mean", "deviation", "n")]
    for name, statistic in each.statistics.items():
        mean, deviation = round_together(statistic.mean, statistic.deviation)
        rows.append((name, mean, deviation or "", str(len(statistic.values))))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"  {name:<{widths[0]}}  {mean:>{widths[1]}} {'±' if deviation else ' '} {deviation:<{widths[2]}}"
        f"  {n:>{widths[3]}}"
        for name, mean, deviation, n in rows
    )


def _tree(each: Configuration) -> dict[str, Any]:
    return {
        "label": each.label,
        "params": each.params,
        "protocol_digest": each.identity[TAG_PROTOCOL],
        "data_digest": each.identity.get(TAG_DATA_DIGEST),
        "caution": each.identity.get(TAG_CAUTION, "none"),
        "runs": {str(seed): run.run_id for seed, run in each.runs.items()},
        "repeated_runs": each.repeated,
        "metrics": {
            name: {
                "mean": statistic.mean,
                "deviation": statistic.deviation,
                "n": len(statistic.values),
                "values": {str(seed): value for seed, value in statistic.values.items()},
            }
            for name, statistic in each.statistics.items()
        },
    }


def _place(value: float, digits: int) -> int:
    """Give the power of ten of the last of so many significant digits, after rounding to them."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2]) - digits + 1


def _rounded(value: float, place: int) -> str:
    nearest = round(value, -place) + 0.0  # no negative zero
    return f"{nearest:.{max(0, -place)}f}"
