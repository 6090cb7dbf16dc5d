"""The parent run of a sweep, in a real store."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import load_dict
from mlflow.entities import Run

from ganflow import params
from ganflow.data.card import DataCard
from ganflow.errors import UserError
from ganflow.params import Params
from ganflow.tracking import runs, store
from ganflow.tracking.sweeps import Trial, best_of, close_sweep, open_sweep, part_of_sweep

TRIALS = [["train.beta1=0.1"], ["train.beta1=0.5", "seed=2"]]
AWAY = "http://127.0.0.1:9"

pytestmark = pytest.mark.usefixtures("repository")


def made(**train: Any) -> Params:
    return params.parse({"model": {"family": "vanilla"}, "train": train})


def client() -> MlflowClient:
    return MlflowClient(store.tracking_uri())


def run_of(run_id: str) -> Run:
    return client().get_run(run_id)


# Opening


def test_a_sweep_is_opened_once() -> None:
    first = open_sweep(made(), TRIALS)
    assert open_sweep(made(), TRIALS) == first
    assert open_sweep(made(), [tuple(trial) for trial in TRIALS]) == first, "however the list came about"
    assert len(client().search_runs([run_of(first).info.experiment_id])) == 1


def test_a_sweep_with_a_value_less_is_the_same_and_with_another_key_another() -> None:
    """The id is an input of each trial: the others are then found in Kubeflow's cache."""
    trials = [["train.beta1=0.1", "seed=1"], ["train.beta1=0.5", "seed=2"]]
    first = open_sweep(made(), trials)
    assert open_sweep(made(), trials[:1]) == open_sweep(made(), trials[::-1]) == first
    others = [
        open_sweep(made(beta2=0.9), trials),
        open_sweep(made(), [[*trials[0], "train.beta2=0.9"]]),
        open_sweep(made(), [["train.beta2=0.9"]]),
    ]
    assert len({first, *others}) == 4


def test_the_parent_has_what_the_trials_share_and_nothing_that_they_change() -> None:
    run = run_of(open_sweep(made(images=960), TRIALS))
    expected = runs.training_params(made(images=960))
    assert {"train.beta1", "seed"} <= expected.keys()
    assert run.data.params == {key: value for key, value in expected.items() if key not in {"train.beta1", "seed"}}
    assert run.data.params["train.images"] == "960"
    assert run.data.tags["ganflow.kind"] == "sweep"
    assert run.data.tags["mlflow.source.name"] == "ganflow sweep"
    assert run.info.run_name.startswith("digits-16px-vanilla-")
    assert run.info.run_name.endswith("-sweep")
    assert run.info.status == "RUNNING"


def test_an_ended_sweep_that_is_run_again_is_running() -> None:
    sweep = open_sweep(made(), TRIALS)
    client().set_terminated(sweep, "FAILED")
    assert open_sweep(made(), TRIALS) == sweep
    assert run_of(sweep).info.status == "RUNNING"


def test_a_deleted_sweep_is_made_anew() -> None:
    sweep = open_sweep(made(), TRIALS)
    client().delete_run(sweep)
    again = open_sweep(made(), TRIALS)
    assert again != sweep
    assert run_of(again).info.lifecycle_stage == "active"


def test_a_training_is_shown_below_its_sweep(card: DataCard, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the experiment of the sweep, which the training's own parameters need not name; MLFLOW_RUN_ID comes after."""
    sweep = open_sweep(made(), TRIALS)
    plugins = client().create_run(client().create_experiment("of Kubeflow's plugin"))
    monkeypatch.setenv("MLFLOW_RUN_ID", plugins.info.run_id)
    elsewhere = params.parse({"model": {"family": "vanilla"}, "tracking": {"experiment": "elsewhere"}})
    training = run_of(runs.open_run(elsewhere, card, parent_run=sweep).run_id)
    assert training.data.tags["mlflow.parentRunId"] == sweep
    assert training.info.experiment_id == run_of(sweep).info.experiment_id
    children = client().search_runs([training.info.experiment_id], f"tags.`mlflow.parentRunId` = '{sweep}'")
    assert [child.info.run_id for child in children] == [training.info.run_id]


# Choosing


@pytest.mark.parametrize("fids", list(itertools.permutations([3.0, 1.0, 2.0, None])))
def test_the_best_has_the_lowest_fid(fids: Sequence[float | None]) -> None:
    trials = [Trial(f"run-{index}", [], fid) for index, fid in enumerate(fids)]
    assert best_of(trials) is trials[fids.index(1.0)]


def test_the_first_of_equals_is_the_best() -> None:
    trials = [Trial(name, [], fid) for name, fid in (("z", None), ("y", 0.0), ("a", 0.0), ("b", 4.0))]
    assert best_of(trials) is trials[1]


@pytest.mark.parametrize("trials", [[], [Trial("a", [], None), Trial("b", ["seed=1"], None)]])
def test_without_any_fid_there_is_no_best(trials: list[Trial]) -> None:
    with pytest.raises(UserError, match="no trial of this sweep has a FID"):
        best_of(trials)


# Ending


def test_a_closed_sweep_names_its_best_trial_and_keeps_all() -> None:
    sweep = open_sweep(made(), TRIALS)
    trials = [Trial("run-a", TRIALS[0], None), Trial("run-b", TRIALS[1], 12.5), Trial("run-c", [], 13.0)]
    close_sweep(sweep, trials, trials[1])
    run = run_of(sweep)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"sweep/trials": 3.0, "sweep/best_fid": 12.5}
    assert run.data.tags["ganflow.best_run"] == "run-b"
    assert run.data.tags["ganflow.best_overrides"] == "train.beta1=0.5 seed=2"
    kept = load_dict(f"{run.info.artifact_uri}/sweep/trials.json")
    assert kept == {
        "trials": [
            {"run_id": "run-a", "overrides": ["train.beta1=0.1"], "fid": None},
            {"run_id": "run-b", "overrides": ["train.beta1=0.5", "seed=2"], "fid": 12.5},
            {"run_id": "run-c", "overrides": [], "fid": 13.0},
        ]
    }


def test_the_best_may_have_changed_nothing_and_a_sweep_may_be_closed_again() -> None:
    sweep = open_sweep(made(), TRIALS)
    for fid in (9.0, 8.0):
        best = Trial("run-a", [], fid)
        close_sweep(sweep, [best], best)
    run = run_of(sweep)
    assert run.data.tags["ganflow.best_overrides"] == "none"
    assert run.data.metrics == {"sweep/trials": 1.0, "sweep/best_fid": 8.0}


@pytest.mark.parametrize("failure", [MemoryError("no room"), UserError("a mistake"), KeyboardInterrupt()])
def test_a_part_that_fails_marks_the_sweep_as_failed(failure: BaseException) -> None:
    sweep = open_sweep(made(), TRIALS)
    with pytest.raises(type(failure)) as caught, part_of_sweep(sweep):
        raise failure
    assert caught.value is failure
    assert run_of(sweep).info.status == "FAILED"


def test_a_part_that_ends_well_leaves_the_sweep_running() -> None:
    sweep = open_sweep(made(), TRIALS)
    with part_of_sweep(sweep):
        pass
    assert run_of(sweep).info.status == "RUNNING"


def test_without_a_sweep_nothing_is_marked(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (repository / "mlflow.db").read_bytes()
    monkeypatch.setattr("ganflow.tracking.sweeps.connect", lambda: pytest.fail("the store was asked"))
    with pytest.raises(MemoryError), part_of_sweep(""):
        raise MemoryError
    with part_of_sweep(""):
        pass
    assert (repository / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize("run_id", ["0" * 32, "deleted"])
def test_a_sweep_that_is_gone_does_not_hide_the_failure(run_id: str) -> None:
    if run_id == "deleted":
        run_id = open_sweep(made(), TRIALS)
        client().delete_run(run_id)
    with pytest.raises(MemoryError), part_of_sweep(run_id):
        raise MemoryError


def test_a_store_that_is_away_does_not_hide_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    with pytest.raises(MemoryError, match="itself"), part_of_sweep("0" * 32):
        raise MemoryError("itself")
    with pytest.raises(UserError, match=AWAY):
        open_sweep(made(), TRIALS)
    with pytest.raises(UserError, match=AWAY):
        close_sweep("0" * 32, [], Trial("a", [], 1.0))
