import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes_server import KubernetesServer
from mlflow import MlflowClient

from ganflow import params, trainjob
from ganflow.params import Params
from ganflow.stages.prepare import prepare
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
    mlflow_keys=["MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD"],
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
    out, work = repository / "out", repository / "volume" / "work"
    train_on_nodes(small, prepared, out, work, "", 2, 0, SETTINGS)

    assert {"generator.safetensors", "discriminator.safetensors", "history.csv", "run.json"} <= {
        path.name for path in out.iterdir()
    }
    assert not work.exists()
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
        train_on_nodes(small, prepared, repository / "out", repository / "work", "parent", 3, 2, SETTINGS)
    (job,) = cluster.created
    assert cluster.deleted == [job["metadata"]["name"]]
    trainer = job["spec"]["trainer"]
    assert trainer["image"] == "ganflow:test"
    assert trainer["numNodes"] == 3
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "1", "memory": "2Gi", "nvidia.com/gpu": "2"}
    environment = {entry["name"]: entry["value"] for entry in trainer["env"]}
    assert environment["GANFLOW_PROCESSES"] == "2"
    assert environment["MLFLOW_RUN_ID"] == "parent"
    (jobs,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = jobs["template"]["spec"]["template"]["spec"]
    assert {volume["name"] for volume in pod["volumes"]} == {"checkpoints", "shared-memory"}
    assert pod["tolerations"] == SETTINGS.tolerations
    assert pod["nodeSelector"] == {"zone": "a"}
    assert pod["securityContext"]["runAsUser"] == 1000
    references = [entry["valueFrom"]["secretKeyRef"]["key"] for entry in pod["containers"][0]["env"]]
    assert references == ["MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD"]


def test_a_retried_launcher_follows_the_job_that_is_there(
    small: Params, prepared: Path, cluster: KubernetesServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod before was lost without a word: its TrainJob went on."""
    work = repository / "work"
    finish = 'mkdir -p "$GANFLOW_JOB/artifacts/train" && sleep 1 && echo "{}" > "$GANFLOW_JOB/artifacts/train/run.json"'
    monkeypatch.setattr(trainjob, "_COMMAND", finish)
    from kubeflow.trainer import TrainerClient

    trainjob._launch(TrainerClient(), trainjob._name(work), work, "", 1, 0, SETTINGS)
    train_on_nodes(small, prepared, repository / "out", work, "", 1, 0, SETTINGS)
    assert len(cluster.created) == 1
    assert (repository / "out" / "run.json").exists()


def test_a_failed_job_of_before_is_replaced(
    small: Params, prepared: Path, cluster: KubernetesServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = repository / "work"
    monkeypatch.setattr(trainjob, "_COMMAND", "exit 1")
    from kubeflow.trainer import TrainerClient

    trainjob._launch(TrainerClient(), trainjob._name(work), work, "", 1, 0, SETTINGS)
    cluster.nodes[trainjob._name(work)][0].process.wait()
    with pytest.raises(TrainJobFailedError):
        train_on_nodes(small, prepared, repository / "out", work, "", 1, 0, SETTINGS)
    assert len(cluster.created) == 2


def test_sigterm_leaves_no_job_behind(
    small: Params, prepared: Path, cluster: KubernetesServer, repository: Path
) -> None:
    """As when a run is ended in Kubeflow."""
    (repository / "params.json").write_text(json.dumps(params.dump(small)), encoding="utf-8")
    code = (
        "import json; from pathlib import Path; from ganflow import params, trainjob\n"
        "trainjob._COMMAND = 'sleep 60'\n"
        f"settings = trainjob.JobSettings(**json.loads({SETTINGS.to_text()!r}))\n"
        "loaded, work = params.load(Path('params.json')), Path('work').resolve()\n"
        f"trainjob.train_on_nodes(loaded, Path({str(prepared)!r}), Path('out'), work, '', 1, 0, settings)\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=repository)
    while not cluster.created and launcher.poll() is None:
        pass
    launcher.terminate()
    assert launcher.wait(60) == 143
    assert cluster.deleted == [cluster.created[0]["metadata"]["name"]]
