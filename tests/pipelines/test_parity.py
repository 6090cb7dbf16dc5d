"""The same params.yaml through `dvc repro` and through kfp.local: the same bytes."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from repositories import ROOT, Repository

from ganflow.training import machine
from ganflow.training.weights import GENERATORS

EXPERIMENT = """say "GAN", it's 生成 \\ {{x}}"""  # what breaks texts with placeholders
WEIGHTS = (*GENERATORS.values(), "discriminator.safetensors")


class Outcome:
    """What a pipeline left: the folders of its stages, and its store."""

    def __init__(self, root: Path, folders: dict[str, Path]) -> None:
        self.folders = folders
        self.client = MlflowClient(f"sqlite:///{root}/mlflow.db")

    def read(self, stage: str, name: str) -> Any:
        return json.loads((self.folders[stage] / name).read_text(encoding="utf-8"))

    def digests(self, stage: str, *names: str) -> dict[str, str]:
        return {name: hashlib.sha256((self.folders[stage] / name).read_bytes()).hexdigest() for name in names}

    def history(self) -> list[dict[str, str]]:
        with (self.folders["train"] / "history.csv").open(newline="", encoding="utf-8") as file:
            return [{name: x for name, x in row.items() if name not in machine.VALUES} for row in csv.DictReader(file)]

    def run(self) -> Any:
        return self.client.get_run(self.read("train", "run.json")["run_id"])


def outputs_of(root: Path) -> dict[str, dict[str, Any]]:
    """Artifacts of the latest local run, by their names."""
    (latest,) = sorted(root.glob("artifacts/kfp/ganflow-*"))[-1:]
    artifacts: dict[str, dict[str, Any]] = {}
    for file in latest.rglob("executor_output.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        artifacts |= {name: entry["artifacts"][0] for name, entry in content["artifacts"].items()}
    return artifacts


def tasks_run(output: str) -> list[str]:
    """Tasks that were not taken from the cache."""
    lines = [line for line in output.splitlines() if "Executing task" in line]
    return [name for line in lines for name in ("prepare", "train", "evaluate", "register") if f"'{name}'" in line]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dvc_and_kubeflow_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_dvc, by_kfp = Repository(tmp_path / "dvc"), Repository(tmp_path / "kfp")
    special = [f"tracking.experiment={json.dumps(EXPERIMENT)}", "model.latent_dim=8", "train.flip=true"]
    for repository in (by_dvc, by_kfp):
        repository.set(*special)
    by_dvc.repro()
    by_kfp.environment["PYTHONPATH"] = str(ROOT)
    run = ("python", "-m", "pipelines", "run")
    assert tasks_run(by_kfp.run(*run)) == ["prepare", "train", "evaluate", "register"]

    artifacts = outputs_of(by_kfp.root)
    names = {"prepare": "prepared", "train": "trained", "evaluate": "evaluated", "register": "registration"}
    one = Outcome(by_dvc.root, {stage: by_dvc.root / "artifacts" / stage for stage in names})
    other = Outcome(by_kfp.root, {stage: Path(artifacts[name]["uri"]) for stage, name in names.items()})

    assert one.digests("train", *WEIGHTS) == other.digests("train", *WEIGHTS)
    assert one.history() == other.history()
    samples = [f"samples/{path.name}" for path in sorted((one.folders["train"] / "samples").iterdir())]
    assert len(samples) == 3
    assert one.digests("train", *samples) == other.digests("train", *samples)
    for name in ("metrics.json", "protocol.json", "samples.png", "real_and_generated.png"):
        assert one.digests("evaluate", name) == other.digests("evaluate", name), name
    packed = [path.name for path in sorted(one.folders["prepare"].iterdir())]
    assert one.digests("prepare", *packed) == other.digests("prepare", *packed)

    digest = one.read("prepare", "card.json")["digest"]
    assert digest in (by_dvc.root / "dvc.lock").read_text(encoding="utf-8")
    assert artifacts["prepared"]["metadata"]["digest"] == digest
    for outcome in (one, other):
        assert outcome.run().data.tags["ganflow.data_digest"] == digest
        (dataset,) = outcome.run().inputs.dataset_inputs
        assert digest.removeprefix("sha256:").startswith(dataset.dataset.digest)

    assert one.run().data.params == other.run().data.params
    assert one.run().data.params["tracking.experiment"] == EXPERIMENT
    assert artifacts["evaluated"]["metadata"]["fid"] == one.read("evaluate", "metrics.json")["fid"]
    registered = [outcome.read("register", "registration.json") for outcome in (one, other)]
    for key in ("model", "version", "alias", "fid", "weights_digest", "protocol_digest"):
        assert registered[0][key] == registered[1][key]

    assert tasks_run(by_kfp.run(*run, "-S", "evaluate.images=150")) == ["evaluate", "register"]
    assert tasks_run(by_kfp.run(*run, "-S", "evaluate.images=150", "-S", "register.max_fid=1.0")) == ["register"]
