"""A sweep through kfp.local, from the command to the registry."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from repositories import ROOT, Repository


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trials_are_children_of_one_run_and_the_best_is_registered(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    repository.set()
    repository.environment["PYTHONPATH"] = str(ROOT)
    repository.run("python", "-m", "pipelines", "run", "--sweep", "train.generator_lr=0.00001,0.002")

    client = MlflowClient(f"sqlite:///{repository.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("ganflow").experiment_id])
    (parent,) = (run for run in runs if run.data.tags["ganflow.kind"] == "sweep")
    trials = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    assert {run.data.params["train.generator_lr"] for run in trials} == {"1e-05", "0.002"}
    assert {run.info.status for run in runs} == {"FINISHED"}

    fids = {run.data.metrics["evaluate/fid"]: run for run in trials}
    assert len(fids) == 2
    best = fids[min(fids)]
    assert parent.data.metrics["sweep/best_fid"] == min(fids)
    assert parent.data.tags["ganflow.best_run"] == best.info.run_id
    assert "train.generator_lr" not in parent.data.params
    (version,) = client.search_model_versions("name = 'digits-8px'")
    assert version.run_id == best.info.run_id
