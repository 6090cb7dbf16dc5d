"""The tables in the docs are those of the results that are kept; and nothing is trained twice."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from noise_folder import fill_with_noise

ROOT = Path(__file__).parents[1]


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import quality

    return quality


def test_the_docs_show_the_results_that_are_kept(quality: ModuleType) -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "quality.json").read_text(encoding="utf-8"))

    assert quality.tables(results) in (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for of in results["experiments"].values():
        assert len(of["seeds"]) >= 3
        for statistic in of["metrics"].values():
            assert statistic["mean"] == pytest.approx(np.mean(statistic["values"]))
            assert statistic["deviation"] == pytest.approx(np.std(statistic["values"], ddof=1), abs=1e-9)


def test_a_metric_that_only_some_families_have_is_shown(quality: ModuleType) -> None:
    one, two = ({"mean": value, "deviation": None, "values": [value]} for value in (1.5, 0.25))
    results = {"digits-vae": {"metrics": {"fid": one}}, "digits-cgan": {"metrics": {"fid": one, "agreement": two}}}

    assert "| `agreement` |  |  |  | 0.2500 |  |" in quality.tables({"experiments": results}).splitlines()


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was_and_trains_nothing_twice(
    quality: ModuleType,
    tmp_path: Path,
    mlflow_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work, results = tmp_path / "work", tmp_path / "results"
    overrides = [*fill_with_noise(tmp_path / "raw"), "model.hidden_units=8", "train.images=16000"]
    arguments = ["--only", "digits-mlp", "--seeds", "4", "--results", "short", "--work", str(work), "--set", *overrides]
    trial = work / "digits-mlp-4"
    trial.mkdir(parents=True)
    shutil.copyfile(mlflow_database, trial / "mlflow.db")

    # It is stopped when the training has left a checkpoint.
    process = subprocess.Popen([sys.executable, ROOT / "benchmarks" / "quality.py", *arguments])
    while not list(trial.glob(".ganflow/train/*/checkpoint*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert not (trial / "artifacts").exists()
    stopped = time.time()

    results.mkdir()
    monkeypatch.setattr(quality.trials, "RESULTS", results)
    monkeypatch.setattr(sys, "argv", ["quality.py", *arguments])
    assert quality.main() == 0

    assert "ganflow prepare" not in capsys.readouterr().out
    history = (trial / "artifacts" / "train" / "history.csv").read_text(encoding="utf-8").splitlines()
    assert [history[1].split(",")[0], history[-1].split(",")[0]] == ["160", "16000"]
    assert (trial / "artifacts" / "train" / "samples" / "000000000.png").stat().st_mtime < stopped  # it went on
    kept = json.loads((results / "short.json").read_text(encoding="utf-8"))
    assert kept["set"] == overrides
    assert kept["experiments"]["digits-mlp"]["seeds"] == [4]
    assert "seed: 4 " in (trial / "params.yaml").read_text(encoding="utf-8")
    assert kept["experiments"]["digits-mlp"]["metrics"]["fid"]["values"] == [
        json.loads((trial / "artifacts" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))["fid"]
    ]

    def planned(*settings: str) -> Any:
        return quality.trials.plan("digits-mlp", trial, [*overrides, "seed=4", *settings])

    assert quality.trials.is_trained(planned())
    assert quality.trials.is_trained(planned("evaluate.images=12"))
    assert not quality.trials.is_trained(planned("train.images=16016"))
    same, other = (quality.trials.prepared_folder(planned(setting)) for setting in ("seed=5", "data.seed=1"))
    assert same == quality.trials.prepared_folder(planned()) != other
    (trial / "artifacts" / "train" / "run.json").unlink()
    assert not quality.trials.is_trained(planned())
