"""The benchmark of FID runs, its contenders agree, and the figures that are kept reach what they are to reach."""

import importlib.util
import json
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a file of benchmarks/ as if it were run: with its folder on the path."""
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delitem(sys.modules, "machine", raising=False)
    return module


@pytest.fixture
def kept() -> dict[str, Any]:
    results: dict[str, Any] = json.loads((FOLDER / "results" / "fid.json").read_text(encoding="utf-8"))
    return results


def test_contenders_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for peer in ("pytorch_fid", "torchmetrics"):
        pytest.importorskip(peer, reason="the group `benchmarks` is not installed")
    fid = load("fid", monkeypatch)

    contenders = fid.distance_at(16, torch.device("cpu"), repeats=1)["contenders"]

    assert set(contenders) == {"ganflow", "scipy sqrtm", "pytorch-fid", "torch-fidelity", "torchmetrics"}
    assert contenders["ganflow"]["value"] > 0.01
    assert all(abs(row["relative_difference"]) < 1e-9 for row in contenders.values())


def test_the_machine_is_described_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    words = load("machine", monkeypatch).describe()

    assert {"cpu", "threads", "memory", "os", "python", "torch"} <= set(words)
    assert words["python"] == platform.python_version()
    told = " ".join(words.values())
    assert str(Path.home()) not in told
    assert not platform.node() or platform.node() not in told


def test_values_kept_are_equal_and_speeds_are_those_asked_for(kept: dict[str, Any]) -> None:
    assert list(kept["distance"]) == ["64", "192", "768", "2048"]
    for at in kept["distance"].values():
        assert abs(at["contenders"]["ganflow"]["relative_difference"]) < 1e-6
    assert kept["distance"]["2048"]["contenders"]["ganflow"]["times_as_fast_as_sqrtm"] >= 10
    whole = kept["evaluation"]["contenders"]
    assert abs(whole["ganflow"]["relative_difference"]) < 1e-4
    assert whole["ganflow"]["images_per_second"] == max(row["images_per_second"] for row in whole.values())
