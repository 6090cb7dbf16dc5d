"""A training pod that is lost, and the one that Kubeflow starts in its place."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repositories import ROOT

from ganflow import params
from ganflow.stages.prepare import prepare
from ganflow.tracking.store import connect
from ganflow.training.checkpoint import FILE

SMALL = params.parse(
    {
        "data": {"resolution": 8},
        "model": {"family": "vanilla", "hidden_units": 16},
        "train": {
            "images": 30_000,
            "tick_every_images": 1_000,
            "sample_every_images": 15_000,
            "checkpoint_every_images": 4_000,
        },
    }
)
TASK = """
import sys
from kfp import dsl
from components.train import train
from ganflow import params, pod
from ganflow.code import code_version
from pipelines.leaves import leaves_of, of_sections
from pipelines.training import SECTIONS
loaded = params.load(__import__("pathlib").Path("params.json"))
leaves = {leaf.path: leaf.value for leaf in of_sections(leaves_of(loaded), SECTIONS["train"])}
prepared = dsl.Dataset(uri="prepared", metadata={"params": pod.sections(loaded, "data")})
trained, page = dsl.Model(uri=sys.argv[1]), dsl.HTML(uri=sys.argv[1] + ".html")
train(leaves, "{}", code_version("train"), prepared, trained, page)
"""


@pytest.fixture
def prepared(repository: Path) -> Path:
    prepare(SMALL, repository / "prepared")
    (repository / "params.json").write_text(json.dumps(params.dump(SMALL)), encoding="utf-8")
    return repository


def start(folder: Path, name: str, run_id: str, retry: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "GANFLOW_CHECKPOINTS": str(folder / "volume"),
        "KFP_RUN_ID": run_id,
        "KFP_POD_NAME": f"{name}-{retry}",
        "KFP_RETRY_INDEX": str(retry),
    }
    with (folder / "pod.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", TASK, name], cwd=folder, env=environment, stdout=log, stderr=log)


@pytest.mark.slow
def test_the_pod_in_its_place_goes_on_in_the_same_run(prepared: Path) -> None:
    ends = {"killed": (signal.SIGKILL, -signal.SIGKILL), "stopped": (signal.SIGTERM, 143)}
    for name, (end, status) in ends.items():
        lost = start(prepared, name, f"run-{name}", 0)
        deadline = time.monotonic() + 60
        while not list((prepared / "volume" / f"run-{name}").glob(f"train/*/{FILE}")) and time.monotonic() < deadline:
            time.sleep(0.05)
        lost.send_signal(end)
        assert lost.wait(60) == status
        assert not (prepared / name / "run.json").exists()
        assert start(prepared, name, f"run-{name}", 1).wait(120) == 0, (prepared / "pod.log").read_text()
    assert start(prepared, "calm", "run-calm", 0).wait(120) == 0, (prepared / "pod.log").read_text()

    found = {name: json.loads((prepared / name / "run.json").read_text()) for name in (*ends, "calm")}
    client = connect()
    runs = client.search_runs([found["calm"]["experiment_id"]])
    assert sorted(run.info.run_id for run in runs) == sorted(run["run_id"] for run in found.values())
    assert {run.info.status for run in runs} == {"FINISHED"}

    def losses(name: str) -> list[tuple[int, float]]:
        history = client.get_metric_history(found[name]["run_id"], "train/generator_loss")
        return [(point.step, point.value) for point in history]

    assert len(losses("calm")) == 30
    for name in ends:
        assert losses(name) == losses("calm")
        for file in ("generator.safetensors", "generator_live.safetensors", "discriminator.safetensors"):
            assert (prepared / name / file).read_bytes() == (prepared / "calm" / file).read_bytes(), (name, file)
