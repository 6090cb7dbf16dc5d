import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubeflow.trainer import TrainerClient
from kubernetes_server import KubernetesServer
from mlflow import MlflowClient

from ganflow import params, trainjob
from ganflow.data.packed import PackedData
from ganflow.params import Params
from ganflow.stages.prepare import prepare
from ganflow.training.state import state_digest
from ganflow.trainjob import JobSettings, TrainJobFailedError, train_on_nodes

SETTINGS = JobSettings(
    image="ganflow:test",
    runtime="torch-distributed",
    claim="checkpoints",
    path="/checkpoints",
    user=1000,
    cpu="1",
    memory="2Gi",
    gpu_resource="nvidia.com/gpu",
    shared_memory="1Gi",
    mlflow_secret="mlflow",
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
    node_selector={"zone": "a"},
)


@pytest.fixture(scope="module")
def small() -> Params:
    tree = {
        "data": {"resolution": 8},
        "model": {"family": "dcgan", "width": 4},
        "train": {"images": 960, "batch_size": 32, "tick_every_images": 320, "checkpoint_every_images": 320},
    }
    return params.parse(tree)


@pytest.fixture(scope="module")
def prepared(small: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "prepared"
    prepare(small, folder)
    return folder


@pytest.fixture
def cluster(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("KFP_RUN_ID", "run-7")
    monkeypatch.setenv("GANFLOW_TRAINJOB", SETTINGS.to_text())
    monkeypatch.setattr(trainjob, "_SECRETS", str(repository / "secrets"))
    server = KubernetesServer(
        repository, secrets={"mlflow": {"MLFLOW_TRACKING_URI": f"sqlite:///{repository}/mlflow.db"}}
    )
    config = repository / "kubeconfig"
    server.write_kubeconfig(config)
    monkeypatch.setenv("KUBECONFIG", str(config))  # for other processes; in this one it was read with the module
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(config))
    yield server
    server.stop()


@pytest.mark.slow
def test_two_nodes_train_one_model(
    small: Params, prepared: Path, cluster: KubernetesServer, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, states = repository / "out", repository / "volume"
    train_on_nodes(small, prepared, out, states, "", 2, 0)

    assert {"generator.safetensors", "discriminator.safetensors", "history.csv", "run.json"} <= {
        path.name for path in out.iterdir()
    }
    assert not list((states / "jobs").iterdir())
    (job,) = cluster.created
    assert cluster.deleted == [job["metadata"]["name"]]
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    run = client.get_run(json.loads((out / "run.json").read_text())["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["kfp.run_id"] == "run-7"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert "960" in capsys.readouterr().out  # the first node's progress


def test_the_job_asks_for_what_the_settings_say(
    small: Params, prepared: Path, cluster: KubernetesServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainjob, "_COMMAND", "exit 3")
    with pytest.raises(TrainJobFailedError, match="failed"):
        train_on_nodes(small, prepared, repository / "out", repository / "states", "parent", 3, 2)
    (job,) = cluster.created
    assert cluster.deleted == [job["metadata"]["name"]]
    assert job["metadata"]["labels"] == trainjob.LABELS
    trainer = job["spec"]["trainer"]
    assert trainer["image"] == "ganflow:test"
    assert trainer["numNodes"] == 3
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "1", "memory": "2Gi", "nvidia.com/gpu": "2"}
    environment = {entry["name"]: entry["value"] for entry in trainer["env"]}
    assert environment["GANFLOW_PROCESSES"] == "2"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["MLFLOW_RUN_ID"] == "parent"
    (jobs,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert jobs["template"]["spec"]["template"]["metadata"]["labels"] == trainjob.LABELS
    pod = jobs["template"]["spec"]["template"]["spec"]
    assert {volume["name"] for volume in pod["volumes"]} == {"checkpoints", "shared-memory", "mlflow"}
    assert pod["tolerations"] == SETTINGS.tolerations
    assert pod["nodeSelector"] == {"zone": "a"}
    assert pod["securityContext"]["runAsUser"] == 1000
    (secret,) = (volume for volume in pod["volumes"] if "secret" in volume)
    assert secret["secret"] == {"secretName": "mlflow", "optional": True}


def started(small: Params, prepared: Path, states: Path) -> tuple[str, Path]:
    """A TrainJob that a launcher has started and then left alone: its name, and the folder of its nodes."""
    work = states / "jobs" / state_digest(small, PackedData(prepared).card)
    work.mkdir(parents=True)
    name = trainjob._name(work)
    trainjob._launch(TrainerClient(), name, work, "", 1, 0, SETTINGS)
    return name, work


@pytest.mark.parametrize(
    ("cpu", "processes", "threads"),
    [("2", 1, 2), ("2500m", 1, 2), ("8", 4, 2), ("1.5", 1, 1), ("400m", 1, 1), ("2", 8, 1)],
)
def test_threads_are_as_many_as_the_cpus_of_a_process(cpu: str, processes: int, threads: int) -> None:
    assert trainjob._threads(cpu, processes) == threads


def test_a_retried_launcher_follows_the_job_that_is_there(
    small: Params, prepared: Path, cluster: KubernetesServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps what MLflow has not had of its journal."""
    finish = (
        'cd "$GANFLOW_JOB" && mkdir -p artifacts/train .ganflow/unsent/run && sleep 1 && '
        "touch .ganflow/unsent/run/journal.jsonl artifacts/train/run.json"
    )
    monkeypatch.setattr(trainjob, "_COMMAND", finish)
    started(small, prepared, repository / "states")
    train_on_nodes(small, prepared, repository / "out", repository / "states", "", 1, 0)
    assert len(cluster.created) == 1
    assert (repository / "out" / "run.json").exists()
    assert (repository / "states" / "unsent" / "run" / "journal.jsonl").exists()


def test_a_failed_job_of_before_is_replaced(
    small: Params, prepared: Path, cluster: KubernetesServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainjob, "_COMMAND", "exit 1")
    name, _ = started(small, prepared, repository / "states")
    cluster.nodes[name][0].process.wait()
    with pytest.raises(TrainJobFailedError):
        train_on_nodes(small, prepared, repository / "out", repository / "states", "", 1, 0)
    assert len(cluster.created) == 2


def test_sigterm_leaves_no_job_behind(
    small: Params, prepared: Path, cluster: KubernetesServer, repository: Path
) -> None:
    """As when a run is ended in Kubeflow."""
    (repository / "params.json").write_text(json.dumps(params.dump(small)), encoding="utf-8")
    code = (
        "from pathlib import Path; from ganflow import params, trainjob\n"
        "trainjob._COMMAND = 'sleep 60'\n"
        "loaded, states = params.load(Path('params.json')), Path('states').resolve()\n"
        f"trainjob.train_on_nodes(loaded, Path({str(prepared)!r}), Path('out'), states, '', 1, 0)\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=repository)
    while not cluster.created and launcher.poll() is None:
        pass
    launcher.terminate()
    assert launcher.wait(60) == 143
    assert cluster.deleted == [cluster.created[0]["metadata"]["name"]]
