"""Every family through both engines and into the registry, with no special case for any."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image
from repositories import ROOT, Repository
from tiny_families import tiny_models

DISCRIMINATOR = ("discriminator_accuracy", "discriminator_accuracy_real", "discriminator_accuracy_fake")
MODELS = tiny_models()


def found_by_kubeflow(root: Path, name: str) -> Any:
    """A file among the artifacts of the one local run."""
    (path,) = root.glob(f"artifacts/kfp/ganflow-*/**/{name}")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", MODELS)
def test_from_params_to_registry(tmp_path: Path, family: str) -> None:
    repository = Repository(tmp_path)
    repository.set(f"model={json.dumps(MODELS[family])}", "train.images=400", "train.tick_every_images=200")

    assert repository.repro() == ["prepare", "train", "evaluate", "register"]
    by_dvc, metrics = repository.read("register/registration.json"), repository.read("evaluate/metrics.json")
    assert by_dvc["alias"] == "champion"
    assert metrics["fid_floor"] < metrics["fid"]
    assert set(DISCRIMINATOR) <= metrics.keys()
    has_one = any(metrics[name] is not None for name in DISCRIMINATOR)
    assert has_one != ("no_discriminator" in metrics)
    assert has_one == (repository.root / "artifacts/train/discriminator.safetensors").exists()

    # The same parameters and the same weights: Kubeflow's run finds the version that is there.
    repository.environment["PYTHONPATH"] = str(ROOT)
    repository.run("python", "-m", "pipelines", "run")
    by_kubeflow = found_by_kubeflow(repository.root, "registration.json")
    for key in ("model", "version", "alias", "fid", "weights_digest", "protocol_digest"):
        assert by_kubeflow[key] == by_dvc[key]

    client = MlflowClient(f"sqlite:///{repository.root}/mlflow.db")
    version = client.get_model_version_by_alias(by_dvc["model"], "champion")
    assert version.tags["ganflow.family"] == family
    repository.run("ganflow", "sample", "--model", f"models:/{by_dvc['model']}@champion", "-n", "4")
    with Image.open(repository.root / "samples.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 2
