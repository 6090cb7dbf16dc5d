"""The four stages through `dvc repro`, as a user runs them, on a copy of the repository at a tiny size."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ganflow import params

ROOT = Path(__file__).parents[1]
TINY = [
    "data.resolution=8",
    "model.hidden_units=16",
    "train.images=2000",
    "train.tick_every_images=500",
    "train.sample_every_images=1000",
    "evaluate.images=200",
    "register.max_fid=100000.0",
    "register.min_discriminator_accuracy=0.0",
    "register.max_discriminator_accuracy=1.0",
]


class Repository:
    """A user's checkout with its own git, DVC cache and MLflow store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".dvc/config", ".dvc/.gitignore", ".gitignore"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
        shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "data/raw").mkdir(parents=True)
        (root / "data/raw/.gitkeep").touch()
        self.run("git", "init", "--quiet")

    def run(self, *command: str) -> str:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        done = subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def set(self, *overrides: str) -> None:
        tree = params.override({"seed": 1, "model": {"family": "vanilla"}}, [*TINY, *overrides])
        (self.root / "params.yaml").write_text(json.dumps(params.dump(params.parse(tree))), encoding="utf-8")

    def repro(self) -> list[str]:
        """Run the pipeline and name the stages whose command ran."""
        lines = self.run("dvc", "repro").splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage")]

    def read(self, name: str) -> Any:
        return json.loads((self.root / "artifacts" / name).read_text(encoding="utf-8"))

    def agrees(self) -> None:
        """The registry, registration.json and metrics.json tell the same story."""
        client = MlflowClient(f"sqlite:///{self.root}/mlflow.db")
        registration, metrics = self.read("register/registration.json"), self.read("evaluate/metrics.json")
        assert registration["fid"] == pytest.approx(metrics["fid"])
        version = client.get_model_version(registration["model"], str(registration["version"]))
        assert float(version.tags["ganflow.fid"]) == pytest.approx(metrics["fid"])
        assert version.run_id == self.read("train/run.json")["run_id"]
        holder = client.get_model_version_by_alias(registration["model"], registration["alias"])
        assert holder.version == version.version


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_repro_from_params_to_registry(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    repository.set()

    assert repository.repro() == ["prepare", "train", "evaluate", "register"]
    assert repository.read("register/registration.json")["alias"] == "champion"
    repository.agrees()
    assert repository.repro() == []

    repository.set("evaluate.images=150")
    assert repository.repro() == ["evaluate", "register"]
    repository.agrees()

    repository.set("train.beta1=0.4")
    assert repository.repro() == ["train", "evaluate", "register"]
    repository.agrees()

    repository.set()
    assert repository.repro() == ["register"]  # training and evaluation come from DVC's run-cache
    repository.agrees()

    (tmp_path / "data/raw/new.png").write_bytes(b"a picture")
    assert "prepare" in repository.run("dvc", "status")
