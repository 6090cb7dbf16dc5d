"""Every family through both engines and into the registry, with no special case for any."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image
from repositories import ROOT, Repository
from tiny_families import tiny_models

from ganflow import cli

DISCRIMINATOR = ("discriminator_accuracy", "discriminator_accuracy_real", "discriminator_accuracy_fake")
MODELS = tiny_models()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository whose pictures are prepared, for they are the same for every family."""
    repository = Repository(tmp_path_factory.mktemp("repository"))
    repository.set()
    repository.run("dvc", "repro", "prepare")
    repository.environment["PYTHONPATH"] = str(ROOT)
    return repository


def of_latest_local_run(root: Path, name: str) -> Any:
    """A file among the artifacts of the latest local run."""
    latest = max(root.glob("artifacts/kfp/ganflow-*"), key=lambda folder: folder.stat().st_mtime)
    (path,) = latest.glob(f"**/{name}")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", MODELS)
def test_from_params_to_registry(
    prepared: Repository, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    repository, database = prepared, prepared.root / f"{family}.db"
    shutil.copyfile(mlflow_database, database)  # a registry without a champion
    store = repository.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
    repository.set(f"model={json.dumps(MODELS[family])}", "train.images=400", "train.tick_every_images=200")

    assert repository.repro() == ["train", "evaluate", "register"]
    by_dvc, metrics = repository.read("register/registration.json"), repository.read("evaluate/metrics.json")
    assert by_dvc["alias"] == "champion"
    assert metrics["fid_floor"] < metrics["fid"]
    assert set(DISCRIMINATOR) <= metrics.keys()
    has_one = any(metrics[name] is not None for name in DISCRIMINATOR)
    assert has_one != ("no_discriminator" in metrics)
    assert has_one == (repository.root / "artifacts/train/discriminator.safetensors").exists()

    # The same parameters and the same weights: Kubeflow's run finds the version that is there.
    repository.run("python", "-m", "pipelines", "run")
    by_kubeflow = of_latest_local_run(repository.root, "registration.json")
    for key in ("model", "version", "alias", "fid", "weights_digest", "protocol_digest"):
        assert by_kubeflow[key] == by_dvc[key]

    client = MlflowClient(store)
    version = client.get_model_version_by_alias(by_dvc["model"], "champion")
    assert version.tags["ganflow.family"] == family
    monkeypatch.chdir(repository.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert cli.main(["sample", "--model", f"models:/{by_dvc['model']}@champion", "-n", "4"]) == 0
    with Image.open("samples.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 2
