"""The four stages through `dvc repro`, as a user runs them, on a copy of the repository at a tiny size."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from repositories import Repository


def agrees(repository: Repository) -> None:
    """The registry, registration.json and metrics.json tell the same story."""
    client = MlflowClient(f"sqlite:///{repository.root}/mlflow.db")
    registration, metrics = repository.read("register/registration.json"), repository.read("evaluate/metrics.json")
    assert registration["fid"] == pytest.approx(metrics["fid"])
    version = client.get_model_version(registration["model"], str(registration["version"]))
    assert float(version.tags["ganflow.fid"]) == pytest.approx(metrics["fid"])
    assert version.run_id == repository.read("train/run.json")["run_id"]
    holder = client.get_model_version_by_alias(registration["model"], registration["alias"])
    assert holder.version == version.version


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_repro_from_params_to_registry(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    repository.set()

    assert repository.repro() == ["prepare", "train", "evaluate", "register"]
    assert repository.read("register/registration.json")["alias"] == "champion"
    agrees(repository)
    assert repository.repro() == []

    repository.set("evaluate.images=150")
    assert repository.repro() == ["evaluate", "register"]
    agrees(repository)

    repository.set("train.beta1=0.4")
    assert repository.repro() == ["train", "evaluate", "register"]
    agrees(repository)

    repository.set()
    assert repository.repro() == ["register"]  # training and evaluation come from DVC's run-cache
    agrees(repository)

    (tmp_path / "data/raw/new.png").write_bytes(b"a picture")
    assert "prepare" in repository.run("dvc", "status")
