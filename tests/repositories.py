"""A user's checkout with its own git, DVC cache and MLflow store, at a tiny size."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    """A copy of what a user has cloned."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".dvc/config", ".dvc/.gitignore", ".gitignore"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
        shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "data/raw").mkdir(parents=True)
        (root / "data/raw/.gitkeep").touch()
        ours = ("MLFLOW_", "DVC_", "KFP_", "GANFLOW_")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.run("git", "init", "--quiet")

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def set(self, *overrides: str) -> None:
        tree = params.override({"seed": 1, "model": {"family": "vanilla"}}, [*TINY, *overrides])
        (self.root / "params.yaml").write_text(json.dumps(params.dump(params.parse(tree))), encoding="utf-8")

    def repro(self) -> list[str]:
        """Run the pipeline and name the stages whose command ran."""
        lines = self.run("dvc", "repro").splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage")]

    def read(self, name: str) -> Any:
        return json.loads((self.root / "artifacts" / name).read_text(encoding="utf-8"))
