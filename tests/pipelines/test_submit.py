"""What `python -m pipelines submit` sends to Kubeflow Pipelines, and how it follows what it started."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from kfp_server import LOGIN_PAGE, ROOT, KfpServer, Trouble, refusal, running, told
from ruamel.yaml import YAML

from pipelines.__main__ import main

STAGES = ["prepare", "train", "evaluate", "register"]  # in their order, which the data gives
CRON = "0 0 3 * * *"


@pytest.fixture
def kubeflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    with running(tmp_path, monkeypatch) as server:
        yield server


def submit(server: KfpServer, *more: str) -> dict[str, Any]:
    """Submit, which must succeed, and give the body of the request."""
    assert main(["submit", "--host", server.uri, *more]) == 0
    body: dict[str, Any] = server.submitted()
    return body


def pipeline(body: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = body["pipeline_spec"]["pipeline_spec"]
    return spec


def containers(body: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Container of each task, by the task's name."""
    executors = pipeline(body)["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor["container"] for name, executor in executors.items()}


def on_kubernetes(body: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of each task that only Kubernetes knows, by the task's name."""
    kubernetes = body["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]
    return {name.removeprefix("exec-"): one for name, one in kubernetes["deploymentSpec"]["executors"].items()}


def having(key: str, settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Choose the tasks that have a setting."""
    return [name for name in settings if key in settings[name]]


def edit(file: str, change: Callable[[Any], None]) -> None:
    yaml = YAML()
    tree = yaml.load(Path(file))
    change(tree)
    yaml.dump(tree, Path(file))


# The parameters.


def typed(values: Mapping[str, Any]) -> dict[str, tuple[type, Any]]:
    """Distinguish 1 from 1.0 and True, which are equal in Python."""
    return {name: (type(value), value) for name, value in values.items()}


def leaves(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section, content in YAML(typ="safe", pure=True).load(path).items():
        inner = content if isinstance(content, dict) else {"": content}
        found |= {f"{section}_{key}".removesuffix("_"): value for key, value in inner.items()}
    return found


def test_every_parameter_is_a_typed_input(kubeflow: KfpServer) -> None:
    expected = leaves(ROOT / "params.yaml") | {
        "train_images": 320,
        "train_beta1": 0.0,
        "train_flip": True,
        "data_name": "mine-7",
        "data_version": "second",
    }
    settings = {"train.images": "320", "train.beta1": "0", "train.flip": "true", "data.name": "mine-7"}
    overrides = [word for key, value in settings.items() for word in ("-S", f"{key}={value}")]
    body = submit(kubeflow, "--data-version", "second", *overrides)
    given = typed(body["runtime_config"]["parameters"])
    assert {name: given.get(name) for name in expected} == typed(expected)
    others = set(given) - set(expected)
    assert others  # the family's, which params.yaml leaves as they are
    assert all(name.startswith("model_") for name in others)
    declared = pipeline(body)["root"]["inputDefinitions"]["parameters"]
    assert set(declared) - set(given) == {"dvc_remote", "dvc_md5"}  # empty without --from-dvc
    assert {declared[name]["parameterType"] for name in given} == {
        "NUMBER_INTEGER",
        "NUMBER_DOUBLE",
        "STRING",
        "BOOLEAN",
    }


def test_a_text_arrives_as_it_was(kubeflow: KfpServer) -> None:
    text = "Größe \"7\", 'x' \\ {{x}} 日本"
    body = submit(kubeflow, "-S", f"tracking.experiment={json.dumps(text)}")
    assert body["runtime_config"]["parameters"]["tracking_experiment"] == text
    assert [each["display_name"] for each in kubeflow.experiments] == [text]


def test_another_params_file(kubeflow: KfpServer) -> None:
    Path("params.yaml").unlink()
    Path("mine.yaml").write_text("model: {family: vanilla}\ntrain: {images: 64}\n")
    body = submit(kubeflow, "--params", "mine.yaml")
    assert body["runtime_config"]["parameters"]["model_family"] == "vanilla"
    assert body["runtime_config"]["parameters"]["train_images"] == 64
    assert pipeline(body)["pipelineInfo"]["name"] == "ganflow-vanilla"


# The run.


def test_a_run(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    body = submit(kubeflow)
    (run,) = kubeflow.runs
    assert capsys.readouterr() == (f"pipelines: {kubeflow.uri}/#/runs/details/{run}\n", "")
    (experiment,) = kubeflow.experiments
    assert experiment["display_name"] == "ganflow"
    assert body["experiment_id"] == experiment["experiment_id"]
    assert body["display_name"].startswith("ganflow-dcgan 2")  # and the time
    assert "service_account" not in body
    assert list(kubeflow.schedules) == []
    tasks = pipeline(body)["root"]["dag"]["tasks"]
    assert set(tasks) == set(STAGES)
    assert set(tasks["train"]["dependentTasks"]) == {"prepare"}


def test_names(kubeflow: KfpServer) -> None:
    body = submit(kubeflow, "--name", 'for "Ada"', "--experiment", "Größen")
    assert body["display_name"] == 'for "Ada"'
    assert [each["display_name"] for each in kubeflow.experiments] == ["Größen"]


def test_the_experiment_is_found_again(kubeflow: KfpServer) -> None:
    for number in range(30):  # more than a page of the answer
        kubeflow.experiments.append({"experiment_id": f"e{number}", "display_name": f"other {number}", "namespace": ""})
    for _ in range(2):
        assert main(["submit", "--host", kubeflow.uri]) == 0
    assert len(kubeflow.named("create_experiment")) == 1
    assert [each.body["experiment_id"] for each in kubeflow.named("create_run")] == [
        kubeflow.experiments[-1]["experiment_id"]
    ] * 2


def test_the_service_account_of_the_cluster(kubeflow: KfpServer) -> None:
    edit("cluster.yaml", lambda tree: tree.update(service_account="trainer"))
    assert submit(kubeflow)["service_account"] == "trainer"


def test_the_image(kubeflow: KfpServer) -> None:
    body = submit(kubeflow, "--image", "registry.example/ganflow:2")
    assert {name: one["image"] for name, one in containers(body).items()} == dict.fromkeys(
        sorted(STAGES), "registry.example/ganflow:2"
    )
    told_to_pods = {one["podMetadata"]["annotations"]["ganflow/image"] for one in on_kubernetes(body).values()}
    assert told_to_pods == {"registry.example/ganflow:2"}


def test_the_installed_module(kubeflow: KfpServer) -> None:
    environment = {**os.environ, "KF_PIPELINES_ENDPOINT": kubeflow.uri, "KF_PIPELINES_TOKEN": "secret"}
    kubeflow.token = "secret"
    command = [sys.executable, "-m", "pipelines", "submit"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    (run,) = kubeflow.runs
    assert (done.returncode, done.stdout) == (0, f"pipelines: {kubeflow.uri}/#/runs/details/{run}\n")
    assert done.stderr == ""


# Where the tasks run.


def test_one_gpu(kubeflow: KfpServer) -> None:
    edit("cluster.yaml", lambda tree: tree["gpu"].update(node_selector={"gpu": "h200"}))
    body = submit(kubeflow, "--gpus", "1")
    asked = {name: one["resources"].get("accelerator") for name, one in containers(body).items()}
    accelerator = asked.pop("train")
    assert set(asked.values()) == {None}
    assert accelerator["resourceType"] == "nvidia.com/gpu"
    assert accelerator["resourceCount"] == "1"
    settings = on_kubernetes(body)
    assert having("tolerations", settings) == having("nodeSelector", settings) == ["train"]
    assert settings["train"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert settings["train"]["nodeSelector"]["labels"] == {"gpu": "h200"}


def test_no_gpu(kubeflow: KfpServer) -> None:
    edit("cluster.yaml", lambda tree: tree["gpu"].update(node_selector={"gpu": "h200"}))
    body = submit(kubeflow)
    assert [name for name, one in containers(body).items() if "accelerator" in one["resources"]] == []
    settings = on_kubernetes(body)
    assert having("tolerations", settings) == having("nodeSelector", settings) == []


@pytest.mark.parametrize("gpus", [[], ["--gpus", "1"]])
def test_what_the_training_alone_has(kubeflow: KfpServer, gpus: Sequence[str]) -> None:
    body = submit(kubeflow, *gpus)
    settings = on_kubernetes(body)
    assert having("emptyDirMounts", settings) == having("pvcMount", settings) == ["train"]
    (shared,) = settings["train"]["emptyDirMounts"]
    assert (shared["mountPath"], shared["medium"], shared["sizeLimit"]) == ("/dev/shm", "Memory", "1Gi")
    (checkpoints,) = settings["train"]["pvcMount"]
    assert checkpoints["mountPath"] == "/checkpoints"
    assert checkpoints["pvcNameParameter"] == {"runtimeValue": {"constant": "ganflow-checkpoints"}}
    assert having("env", containers(body)) == ["train"]
    assert containers(body)["train"]["env"] == [{"name": "GANFLOW_CHECKPOINTS", "value": "/checkpoints"}]
    tasks = pipeline(body)["root"]["dag"]["tasks"]
    assert having("retryPolicy", tasks) == ["train"]
    assert tasks["train"]["retryPolicy"]["maxRetryCount"] == 10
    # Kubeflow's own bound, an hour after the first pod's start, would end longer trainings.
    assert tasks["train"]["retryPolicy"]["backoffMaxDuration"] == f"{90 * 24 * 3600}s"


def test_what_every_task_has(kubeflow: KfpServer) -> None:
    body = submit(kubeflow, "--gpus", "1")
    settings = on_kubernetes(body)
    assert set(settings) == set(STAGES)
    for one in settings.values():
        (secret,) = one["secretAsEnv"]
        assert secret["secretNameParameter"] == {"runtimeValue": {"constant": "ganflow-mlflow"}}
        assert "MLFLOW_TRACKING_URI" in [pair["envVar"] for pair in secret["keyToEnv"]]
        fields = {entry["name"]: entry["fieldPath"] for entry in one["fieldPathAsEnv"]}
        assert fields["KFP_RUN_ID"] == "metadata.labels['pipeline/runid']"
        assert fields["GANFLOW_COMMIT"] == "metadata.annotations['ganflow/commit']"
        assert one["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
        assert one["imagePullPolicy"] == "IfNotPresent"


def test_resources(kubeflow: KfpServer) -> None:
    edit("cluster.yaml", lambda tree: tree["training"].update(cpu_limit="3"))
    asked = {name: one["resources"] for name, one in containers(submit(kubeflow)).items()}
    training = asked.pop("train")
    assert (training["resourceCpuRequest"], training["resourceCpuLimit"]) == ("2", "3")
    assert training["resourceMemoryRequest"] == training["resourceMemoryLimit"] == "8Gi"
    assert [(one["resourceCpuRequest"], one["resourceMemoryLimit"]) for one in asked.values()] == [("1", "4Gi")] * 3
    assert having("resourceCpuLimit", asked) == []


def test_a_cluster_with_other_volumes(kubeflow: KfpServer) -> None:
    def change(tree: Any) -> None:
        tree.update(data={"claim": "pictures", "path": "/pictures"}, dvc_secret="store", retries=0)
        tree["checkpoints"]["claim"] = ""

    edit("cluster.yaml", change)
    body = submit(kubeflow)
    settings = on_kubernetes(body)
    assert having("pvcMount", settings) == ["prepare"]
    assert settings["prepare"]["pvcMount"][0]["mountPath"] == "/pictures"
    assert {name: len(one["secretAsEnv"]) for name, one in settings.items()} == {
        name: 2 if name == "prepare" else 1 for name in STAGES
    }
    assert having("env", containers(body)) == []
    assert having("retryPolicy", pipeline(body)["root"]["dag"]["tasks"]) == []


# Following a run.


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 1, "hammers the server"
        self.now += seconds
        assert self.now < 3_000, "asks for ever"
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pipelines.api.time", clock)
    return clock


def wait(server: KfpServer, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, list[str]]:
    """Submit and wait; give the status, and what was said between the address of the run and its end."""
    status = main(["submit", "--host", server.uri, "--wait", *more])
    out, err = capsys.readouterr()
    lines = [line.removeprefix("pipelines: ") for line in out.splitlines()]
    (run,) = server.runs
    assert lines[0] == f"{server.uri}/#/runs/details/{run}"
    if status == 2:
        assert err.startswith(f"pipelines: {server.uri}: ")
        assert err.count("\n") == 1
        return status, [*lines[1:], err]
    assert err == ""
    assert lines[-1].endswith(lines[0])
    return status, lines[1:]


def of_tasks(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.partition(":")[0] in STAGES]


def test_waiting_for_success(kubeflow: KfpServer, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = wait(kubeflow, capsys)
    assert status == 0
    assert of_tasks(lines) == [f"{stage}: {state}" for stage in STAGES for state in ("running", "succeeded")]
    assert "succeeded" in lines[-1]


def test_only_the_tasks_are_shown(kubeflow: KfpServer, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """The API tells of every node of Argo's workflow: of the drivers, executors, attempts and the workflow itself."""
    _, lines = wait(kubeflow, capsys)
    assert [line for line in lines[:-1] if line not in of_tasks(lines)] == []


@pytest.mark.parametrize("end", ["FAILED", "CANCELED"])
def test_waiting_for_another_end(
    kubeflow: KfpServer, clock: Clock, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    kubeflow.fate = ("train", end)
    status, lines = wait(kubeflow, capsys)
    assert status == 1
    assert of_tasks(lines) == ["prepare: running", "prepare: succeeded", "train: running", "train: failed"]
    assert end.lower() in lines[-1]
    reasons = [line for line in lines if "the pod's container ended with status 1" in line]
    assert len(reasons) == (1 if end == "FAILED" else 0)


def test_waiting_for_a_sweep(kubeflow: KfpServer, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """The trainings have one name, and overlap."""
    status, lines = wait(kubeflow, capsys, "--sweep", "train.beta1=0.0,0.25,0.5")
    assert status == 0
    for stage in ("train", "evaluate"):
        for state in ("running", "succeeded"):
            assert sum(line.startswith(stage) and line.endswith(state) for line in lines) == 3, (stage, state)
    assert [line for line in lines if line.startswith("choose")] == ["choose: running", "choose: succeeded"]
    assert [line for line in lines if line.startswith(("iteration", "executor"))] == []


def test_an_outage_while_waiting(kubeflow: KfpServer, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.looks.extend([None, refusal(503, "restarting"), refusal(500, "no database"), Trouble.DROPPED, None])
    status, lines = wait(kubeflow, capsys)
    assert status == 0
    assert of_tasks(lines) == [f"{stage}: {state}" for stage in STAGES for state in ("running", "succeeded")]
    troubles = [line for line in lines if "asking again" in line]
    assert len(troubles) == 3
    assert "restarting" in troubles[0]
    assert "no database" in troubles[1]
    assert lines.index(troubles[0]) > lines.index("prepare: running")
    assert len(kubeflow.named("create_run")) == 1


def test_silence_while_waiting(kubeflow: KfpServer, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.looks.append(Trouble.SILENT)
    began = time.monotonic()
    status, lines = wait(kubeflow, capsys, "--timeout", "1")
    assert status == 0
    assert time.monotonic() - began < 15
    assert len([line for line in lines if "does not answer within 1 s" in line]) == 1


def test_an_outage_without_end(kubeflow: KfpServer, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.looks.extend([None, None])
    kubeflow.looks.extend([refusal(503, "gone")] * 300)
    status, lines = wait(kubeflow, capsys)
    assert status == 2
    assert "gone" in lines[-1]
    assert 600 < clock.now < 700


@pytest.mark.parametrize(
    "answer",
    [refusal(401, "Jwt is expired"), refusal(404, "Run not found"), LOGIN_PAGE],
    ids=["401", "404", "login page"],
)
def test_what_does_not_pass_by_itself(
    kubeflow: KfpServer, clock: Clock, capsys: pytest.CaptureFixture[str], answer: Any
) -> None:
    kubeflow.looks.append(None)
    kubeflow.looks.extend([answer] * 300)
    status, _ = wait(kubeflow, capsys)
    assert status == 2
    assert len(kubeflow.named("get_run")) == 2


def test_a_token_that_is_renewed_while_waiting(
    kubeflow: KfpServer, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("token")

    def renew() -> None:
        kubeflow.token = f"secret-{clock.now}"
        file.write_text(kubeflow.token)

    renew()
    clock.meanwhile = renew
    assert wait(kubeflow, capsys, "--token-file", str(file))[0] == 0
    assert len({request.headers["Authorization"] for request in kubeflow.named("get_run")}) > 2


def test_no_longer_waiting(kubeflow: KfpServer, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.meanwhile = interrupt
    assert main(["submit", "--host", kubeflow.uri, "--wait"]) == 130
    said = capsys.readouterr()
    assert said.err == f"pipelines: no longer waiting; the run goes on: {said.out.split()[1]}\n"
    assert [request.name for request in kubeflow.writes] == ["create_experiment", "create_run"]  # the run goes on


# Schedules.


def test_a_schedule(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    edit("cluster.yaml", lambda tree: tree.update(service_account="trainer"))
    assert main(["submit", "--host", kubeflow.uri, "--cron", CRON, "--name", "nightly", "-S", "train.images=320"]) == 0
    ((identity, made),) = kubeflow.schedules.items()
    assert capsys.readouterr().out.startswith(f"pipelines: schedule {identity} ")
    assert kubeflow.runs == {}
    assert made["trigger"] == {"cron_schedule": {"cron": CRON}}
    assert (made["mode"], made["max_concurrency"], made["no_catchup"]) == ("ENABLE", "1", True)
    assert (made["display_name"], made["service_account"]) == ("nightly", "trainer")
    assert made["experiment_id"] == kubeflow.experiments[0]["experiment_id"]
    assert typed(made["runtime_config"]["parameters"])["train_images"] == (int, 320)
    assert set(containers(made)) == set(STAGES)

    assert main(["schedules", "--host", kubeflow.uri]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split() == [identity, "enabled", *CRON.split(), "nightly"]

    assert main(["schedules", "--host", kubeflow.uri, "--stop", identity]) == 0
    assert identity in capsys.readouterr().out
    assert kubeflow.schedules == {}
    assert main(["schedules", "--host", kubeflow.uri]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_cron_expression_that_kubeflow_does_not_read(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    told(main(["submit", "--host", kubeflow.uri, "--cron", "nightly"]), capsys)
    assert kubeflow.schedules == {}


def test_a_cron_expression_of_five_fields(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Kubeflow's first field is the seconds, its last may be left out: crontab's "at three" is "hourly" to it."""
    message = told(main(["submit", "--host", kubeflow.uri, "--cron", "0 3 * * *"]), capsys)
    assert "--cron" in message
    assert "seconds" in message
    assert kubeflow.requests == []


# Sweeps.


def test_a_sweep(kubeflow: KfpServer) -> None:
    swept = ["--sweep", "train.beta1=0.0,0.5", "--sweep", "seed=1,2"]
    body = submit(kubeflow, *swept, "--parallel", "3")
    spec = pipeline(body)
    trials = spec["root"]["inputDefinitions"]["parameters"]["trials"]
    assert (
        body["runtime_config"]["parameters"]["trials"] == trials["defaultValue"]
    )  # Kubeflow's page shows what is given
    assert trials["parameterType"] == "LIST"
    assert [json.loads(trial) for trial in trials["defaultValue"]] == [
        ["train.beta1=0.0", "seed=1"],
        ["train.beta1=0.0", "seed=2"],
        ["train.beta1=0.5", "seed=1"],
        ["train.beta1=0.5", "seed=2"],
    ]
    tasks = spec["root"]["dag"]["tasks"]
    ((loop, task),) = [(name, task) for name, task in tasks.items() if "parameterIterator" in task]
    assert task["iteratorPolicy"] == {"parallelismLimit": 3}
    assert set(tasks) == {"open-sweep", "prepare", loop, "choose", "register"}
    assert set(spec["components"][task["componentRef"]["name"]]["dag"]["tasks"]) == {"train", "evaluate"}


def test_the_tasks_of_a_sweep(kubeflow: KfpServer) -> None:
    body = submit(kubeflow, "--sweep", "train.beta1=0.0,0.5", "--gpus", "1", "--image", "ganflow:2")
    every = {*STAGES, "open-sweep", "choose"}
    assert {name: one["image"] for name, one in containers(body).items()} == dict.fromkeys(every, "ganflow:2")
    assert [name for name, one in containers(body).items() if "accelerator" in one["resources"]] == ["train"]
    settings = on_kubernetes(body)
    assert set(having("secretAsEnv", settings)) == every
    assert having("emptyDirMounts", settings) == having("pvcMount", settings) == having("tolerations", settings)
    assert having("pvcMount", settings) == ["train"]
    (loop,) = [one for name, one in pipeline(body)["components"].items() if "dag" in one]
    assert having("retryPolicy", loop["dag"]["tasks"]) == ["train"]


# Mistakes, which are told before anybody is asked.


def ended(arguments: list[str]) -> int | str | None:
    """Status of a command, which argparse ends in its own way."""
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--gpus", "0"], "--gpus"),
        (["--gpus", "-1"], "--gpus"),
        (["--gpus", "two"], "--gpus"),
        (["--gpus", "1.5"], "--gpus"),
        (["--timeout", "0"], "--timeout"),
        (["-S", "train.imagse=1"], "train.imagse"),
        (["-S", "train.images=0"], "train.images"),
        (["-S", "train.images"], "train.images"),
        (["-S", "tracking.experiment={{$.x}}"], "tracking.experiment"),
        (["--params", "mine.yaml"], "mine.yaml"),
        (["--cluster", "mine.yaml"], "mine.yaml"),
        (["--sweep", "data.resolution=16,32"], "data.resolution"),
        (["--sweep", "evaluate.images=16,32"], "evaluate.images"),
        (["--sweep", "model.family=dcgan,vanilla"], "--sweep model.family=dcgan,vanilla:"),
        (["--sweep", "train.beta1=0.5,1.5"], "train.beta1=1.5"),
        (["--sweep", "train.imagse=1,2"], "train.imagse"),
        (["--sweep", "train.beta1="], "train.beta1="),
        (["--sweep", "seed=1,2", "--parallel", "0"], "--parallel"),
        (["--cron", "0 0 3 * * *", "--wait"], "--wait"),
        (["--cron", ""], "--cron"),
        (["--image", " "], "--image"),
        (["--data-version", "{{$"], "data_version"),
        (["--sweep", "train.batch_size=64,33", "--gpus", "2"], "train.batch_size"),
        (["--from-dvc"], "dvc"),
    ],
)
def test_a_mistake(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str], more: list[str], part: str) -> None:
    assert ended(["submit", "--host", kubeflow.uri, *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err
    assert "Traceback" not in err
    assert kubeflow.requests == []


@pytest.mark.parametrize(
    ("file", "change", "part"),
    [
        ("params.yaml", lambda tree: tree["train"].update(imagse=1), "train.imagse"),
        ("cluster.yaml", lambda tree: tree.update(imgae="ganflow"), "imgae"),
        ("cluster.yaml", lambda tree: tree["gpu"].update(selector={}), "gpu.selector"),
        ("cluster.yaml", lambda tree: tree.pop("mlflow_secret"), "mlflow_secret"),
        ("cluster.yaml", lambda tree: tree.update(user=0), "user"),
        ("cluster.yaml", lambda tree: tree["training"].update(memory="8 GB"), "training.memory"),
    ],
)
def test_a_mistake_in_a_file(
    kubeflow: KfpServer, capsys: pytest.CaptureFixture[str], file: str, change: Callable[[Any], None], part: str
) -> None:
    edit(file, change)
    assert main(["submit", "--host", kubeflow.uri]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"pipelines: {file}: ")
    assert f"\n  {part}: " in err
    assert kubeflow.requests == []
