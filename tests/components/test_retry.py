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
            "images": 60_000,
            "tick_every_images": 1_000,
            "sample_every_images": 30_000,
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
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_pod_in_its_place_goes_on_in_the_same_run(prepared: Path, end: signal.Signals) -> None:
    lost = start(prepared, "lost", "run-7", 0)
    deadline = time.monotonic() + 60
    while not list((prepared / "volume" / "run-7").glob(f"train/*/{FILE}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    lost.send_signal(end)
    assert lost.wait(60) == (-signal.SIGKILL if end is signal.SIGKILL else 143)
    assert not (prepared / "lost" / "run.json").exists()

    assert start(prepared, "lost", "run-7", 1).wait(120) == 0, (prepared / "pod.log").read_text()
    assert start(prepared, "calm", "run-8", 0).wait(120) == 0, (prepared / "pod.log").read_text()

    resumed, undisturbed = (json.loads((prepared / name / "run.json").read_text()) for name in ("lost", "calm"))
    client = connect()
    runs = client.search_runs([resumed["experiment_id"]])
    assert {run.info.run_id for run in runs} == {resumed["run_id"], undisturbed["run_id"]}
    assert {run.info.status for run in runs} == {"FINISHED"}
    points = [
        [(point.step, point.value) for point in client.get_metric_history(run["run_id"], "train/generator_loss")]
        for run in (resumed, undisturbed)
    ]
    assert len(points[0]) == 60
    assert points[0] == points[1]
    for name in ("generator.safetensors", "generator_live.safetensors", "discriminator.safetensors"):
        assert (prepared / "lost" / name).read_bytes() == (prepared / "calm" / name).read_bytes(), name
