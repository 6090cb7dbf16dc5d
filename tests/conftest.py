"""Fixtures for more than one module."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from servers import MlflowServer

from ganflow.data.card import DataCard, SplitCard

# A busy machine is no fault of the code.
settings.register_profile("ganflow", deadline=None)
settings.load_profile("ganflow")

# Two workers share two cores; torch's threads would wait for each other. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones, so that no worker is left alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    """What one test draws from torch's generators is nothing to the next."""
    import torch

    with torch.random.fork_rng([]):
        yield


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, copying it does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_database: Path) -> Path:
    """A user's repository as the working directory, with an empty MLflow store of its own."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "repository"
    root.mkdir()
    (root / "params.yaml").touch()
    shutil.copyfile(mlflow_database, root / "mlflow.db")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def server(repository: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    folder = repository / "server"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    server = MlflowServer(folder)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    server.kill()


@pytest.fixture
def card() -> DataCard:
    """A data card for what needs one, and no data."""
    split = SplitCard(10, None)
    return DataCard(
        name="digits",
        source="digits",
        resolution=16,
        channels=1,
        classes=None,
        splits={"train": split, "validation": split, "test": split},
        pictures_a_shard=100,
        mean=[0.5],
        std=[0.5],
        digest="sha256:" + "0123456789abcdef" * 4,
        skipped=[],
        converted={},
    )
