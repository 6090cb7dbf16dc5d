"""The comparison of benchmarks/resume.py sees what differs, and the results that are kept are of a run without any."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import resume

    return resume


def test_the_results_that_are_kept() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "resume.json").read_text(encoding="utf-8"))
    assert results["differences"] == []
    assert results["kills"]["made"] == sum(results["kills"]["fell"].values()) >= 50
    training = sum(n for where, n in results["kills"]["fell"].items() if "start-up" not in where)
    assert training >= results["kills"]["made"] / 2
    assert [outage["signal"] for outage in results["server"]["outages"]] == ["SIGTERM", "SIGKILL"]
    assert all(outage["to_images"] - outage["from_images"] >= 4000 for outage in results["server"]["outages"])


Found = tuple[list[str], dict[str, dict[str, Any]]]
Find = Callable[..., Found]


@pytest.fixture
def find(tmp_path: Path, mlflow_database: Path, benchmark: ModuleType) -> Find:
    """Leaves what a training does, with a few things changed, and lets the benchmark collect it."""

    def left(**changed: Any) -> Found:
        repository = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        trained = repository / "artifacts" / "train"
        (trained / "samples").mkdir(parents=True)
        shutil.copyfile(mlflow_database, repository / "mlflow.db")
        save_file({"x": np.full(3, changed.get("weight", 1.0))}, trained / "generator.safetensors")
        rate, loss = changed.get("rate", 9.0), changed.get("loss", 0.5)
        if "table" not in changed:
            (trained / "history.csv").write_text(f"images,loss,images_per_second\n100,{loss},{rate}\n")
        (trained / "samples" / "000000100.png").write_bytes(changed.get("picture", b"picture"))
        client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
        experiment = client.create_experiment("ganflow", artifact_location=(repository / "mlartifacts").as_uri())
        for _ in range(changed.get("runs", 1)):
            run = client.create_run(experiment).info.run_id
            points = [(100, loss, 1), (200, loss, 2), *changed.get("more", [])]
            metrics = [Metric("train/loss", value, time, step) for step, value, time in points]
            client.log_batch(run, [*metrics, Metric("train/images_per_second", rate, 1, 100)])
            client.set_terminated(run, changed.get("status", "FINISHED"))
        found: Found = benchmark._found(repository, client.tracking_uri)
        return found

    return left


@pytest.mark.parametrize(
    ("changed", "wrong", "different"),
    [
        ({}, [], []),
        ({"rate": 8.0}, [], []),
        ({"weight": 1.0000001}, [], ["weights: generator.safetensors"]),
        ({"loss": 0.25}, [], ["tables: history.csv", "points: train/loss"]),
        ({"picture": b"other"}, [], ["samples: samples/000000100.png"]),
        ({"more": [(300, 0.5, 3)]}, [], ["points: train/loss"]),
        ({"more": [(200, 0.5, 3)]}, ["train/loss has 2 points at 200"], ["points: train/loss"]),
        ({"table": None}, [], ["tables: history.csv"]),
        ({"runs": 2}, ["2 runs in MLflow"], []),
        ({"status": "KILLED"}, ["the run is KILLED"], []),
    ],
)
def test_what_differs_is_seen(
    changed: dict[str, Any], wrong: list[str], different: list[str], find: Find, benchmark: ModuleType
) -> None:
    nothing_wrong, expected = find()
    said, found = find(**changed)
    assert nothing_wrong == []
    assert said == wrong
    assert benchmark._different(expected, found) == different
