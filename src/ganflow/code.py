"""Which version of the code a stage runs: a digest of the files that dvc.yaml names as its dependencies."""

import hashlib
from pathlib import Path
from typing import Final, Literal

import ganflow

Stage = Literal["prepare", "train", "evaluate", "register"]

# The same paths as in dvc.yaml: Kubeflow is to run a stage again after the edits after which DVC does.
DEPENDENCIES: Final[dict[Stage, tuple[str, ...]]] = {
    "prepare": ("data", "evaluation/classifier.py", "stages/prepare.py"),
    "train": (
        "data/batches.py",
        "data/images.py",
        "data/prefetch.py",
        "models",
        "training",
        "evaluation/classifier.py",
        "evaluation/extractor.py",
        "evaluation/fid.py",
        "evaluation/frechet.py",
        "evaluation/inception.py",
        "evaluation/sampling.py",
        "evaluation/statistics.py",
        "evaluation/validation.py",
        "stages/game.py",
        "stages/train.py",
    ),
    "evaluate": ("evaluation", "stages/evaluate.py", "stages/game.py"),
    "register": ("registry.py", "stages/register.py"),
}


def code_version(stage: Stage) -> str:
    """Name the code of one stage: ganflow's version and twelve digits of a SHA-256, as in `0.1.0+3f2a90c41b7d`."""
    package = Path(ganflow.__file__).parent
    content = hashlib.sha256()
    for path in DEPENDENCIES[stage]:
        for source in sorted((package / path).rglob("*.py")) or [package / path]:
            content.update(f"{source.relative_to(package).as_posix()}\n".encode())
            content.update(source.read_bytes())
    return f"{ganflow.__version__}+{content.hexdigest()[:12]}"
