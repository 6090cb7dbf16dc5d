"""A training on several nodes or GPUs: a TrainJob of Kubeflow Trainer, launched, followed and cleaned up.

The nodes share a volume with the pod that launches them. On it lies a folder that looks like a user's repository, with
params.yaml and the prepared data, in which every node runs `ganflow train` under torchrun.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from ganflow.data.packed import PackedData
from ganflow.params import Params, dump
from ganflow.training.state import state_digest
from ganflow.urls import public

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient
    from kubeflow.trainer.options import TrainingRuntimeSpecPatch

SETTINGS: Final = "GANFLOW_TRAINJOB"
LABELS: Final = {"app.kubernetes.io/part-of": "ganflow"}  # of every pod of a run; k8s/base/runs/network.yaml selects it

_DONE = "run.json"  # what `ganflow train` writes last
# As files, since Trainer takes no environment for its container from a patch, and its SDK none from a Secret.
_SECRETS = "/var/run/ganflow-mlflow"
_COMMAND = """
for file in "$GANFLOW_SECRETS"/MLFLOW_*; do
  if [ -f "$file" ]; then export "${file##*/}=$(cat "$file")"; fi
done
cd "$GANFLOW_JOB" && exec torchrun --nproc-per-node "$GANFLOW_PROCESSES" --no-python ganflow train
"""
_PASSED_ON = ("KFP_RUN_ID", "GANFLOW_COMMIT", "GANFLOW_IMAGE", "OMP_NUM_THREADS")
_COMPLETE, _FAILED = "Complete", "Failed"


class TrainJobFailedError(Exception):
    """The nodes ended without finished weights."""


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """What the nodes of a TrainJob need, from cluster.yaml."""

    image: str
    runtime: str
    claim: str
    path: str
    user: int
    cpu: str
    memory: str
    gpu_resource: str
    shared_memory: str
    mlflow_secret: str
    service_account: str = ""
    tolerations: list[dict[str, str]] = field(default_factory=list)
    node_selector: dict[str, str] = field(default_factory=dict)

    def to_text(self) -> str:
        """Write the settings as `from_environment` reads them."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_environment(cls) -> "JobSettings":
        """Read what pipelines/cluster.py put into the pod."""
        return cls(**json.loads(os.environ[SETTINGS]))


def train_on_nodes(  # noqa: PLR0917
    params: Params, prepared: Path, out: Path, states: Path, parent_run: str, nodes: int, gpus: int
) -> None:
    """Train on `nodes` machines with `gpus` GPUs each (0: one process on the CPUs of each).

    `states` is a folder on the shared volume. A pod that is started again finds the TrainJob of the one before it, or
    starts another that goes on from its checkpoint. Raises TrainJobFailedError.
    """
    settings = JobSettings.from_environment()
    work = states / "jobs" / state_digest(params, PackedData(prepared).card)
    trained, unsent = work / "artifacts" / "train", work / ".ganflow" / "unsent"
    if not (trained / _DONE).exists():
        _lay_out(work, params, prepared)
        _run(_name(work), work, parent_run, nodes, gpus, settings)
    if not (trained / _DONE).exists():
        raise TrainJobFailedError(f"the TrainJob ended well, but left no {_DONE} in {trained}")
    shutil.copytree(trained, out, dirs_exist_ok=True)
    if unsent.exists():  # what MLflow has not had yet of the journal
        shutil.copytree(unsent, states / "unsent", dirs_exist_ok=True)
    shutil.rmtree(work)


def _lay_out(work: Path, params: Params, prepared: Path) -> None:
    """Make the folder that the nodes work in; what a training left in it stays."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "params.yaml").write_text(json.dumps(dump(params)), encoding="utf-8")
    target = work / "artifacts" / "prepare"
    if not target.exists():
        copied = target.with_name(f".{target.name}.new")
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(prepared, copied)
        copied.rename(target)


def _name(work: Path) -> str:
    """Name the TrainJob by its folder, so that it is found again."""
    return f"ganflow-{hashlib.sha256(str(work).encode()).hexdigest()[:12]}"


def _run(name: str, work: Path, parent_run: str, nodes: int, gpus: int, settings: JobSettings) -> None:  # noqa: PLR0917
    from kubeflow.trainer import TrainerClient

    client = TrainerClient()
    with _end_on_sigterm():
        try:
            if not _exists(client, name):
                _launch(client, name, work, parent_run, nodes, gpus, settings)
            status = _follow(client, name, _say)
        finally:
            _delete(client, name)
    if status == _FAILED:
        raise TrainJobFailedError(f"the TrainJob {name} failed; what its first node said is above")


def _launch(  # noqa: PLR0917
    client: "TrainerClient", name: str, work: Path, parent_run: str, nodes: int, gpus: int, settings: JobSettings
) -> None:
    from kubeflow.trainer import CustomTrainerContainer
    from kubeflow.trainer.options import Labels, Name, RuntimePatch, TrainerCommand

    resources = {"cpu": settings.cpu, "memory": settings.memory}
    if gpus:
        resources[settings.gpu_resource] = str(gpus)
    environment = {
        "GANFLOW_JOB": str(work),
        "GANFLOW_PROCESSES": str(max(gpus, 1)),
        "GANFLOW_SECRETS": _SECRETS,
        "OMP_NUM_THREADS": str(_threads(settings.cpu, max(gpus, 1))),
        **{key: os.environ[key] for key in _PASSED_ON if os.environ.get(key)},
    }
    if run := parent_run or os.environ.get("MLFLOW_RUN_ID"):
        environment["MLFLOW_RUN_ID"] = run
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri == public(uri):  # it may come from Kubeflow's plugin, and not from the Secret
        environment["MLFLOW_TRACKING_URI"] = uri
    trainer = CustomTrainerContainer(
        image=settings.image, num_nodes=nodes, resources_per_node=resources, env=environment
    )
    client.train(
        runtime=settings.runtime,
        trainer=trainer,
        options=[
            Name(name),
            Labels(LABELS),
            TrainerCommand(["sh", "-c", _COMMAND]),
            RuntimePatch(training_runtime_spec=_patch(settings)),
        ],
    )


def _threads(cpu: str, processes: int) -> int:
    """Give the threads of a process: Trainer's SDK makes CPUs a limit, and more threads would wait for each other."""
    cpus = float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)
    return max(int(cpus / processes), 1)


def _patch(settings: JobSettings) -> "TrainingRuntimeSpecPatch":
    """Add to the runtime's pods: the volumes, MLflow's credentials, the user, and where the GPUs are."""
    from kubeflow.trainer.options import (
        ContainerPatch,
        JobSetSpecPatch,
        JobSetTemplatePatch,
        JobSpecPatch,
        JobTemplatePatch,
        PodSpecPatch,
        PodTemplatePatch,
        ReplicatedJobPatch,
        TrainingRuntimeSpecPatch,
    )

    volumes = [
        {"name": "checkpoints", "persistentVolumeClaim": {"claimName": settings.claim}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
        {"name": "mlflow", "secret": {"secretName": settings.mlflow_secret, "optional": True}},
    ]
    container = ContainerPatch(
        name="node",
        volume_mounts=[
            {"name": "checkpoints", "mountPath": settings.path},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "mlflow", "mountPath": _SECRETS, "readOnly": True},
        ],
        security_context={
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    )
    pod = PodSpecPatch(
        service_account_name=settings.service_account or None,
        volumes=volumes,
        containers=[container],
        security_context={"runAsUser": settings.user, "runAsGroup": settings.user, "fsGroup": settings.user},
        node_selector=settings.node_selector or None,
        tolerations=settings.tolerations or None,
    )
    job = JobTemplatePatch(spec=JobSpecPatch(template=PodTemplatePatch(metadata={"labels": LABELS}, spec=pod)))
    jobs = JobSetSpecPatch(replicated_jobs=[ReplicatedJobPatch(name="node", template=job)])
    return TrainingRuntimeSpecPatch(template=JobSetTemplatePatch(spec=jobs))


def _exists(client: "TrainerClient", name: str) -> bool:
    """Say whether there is such a job to follow; one that failed is cleared away."""
    status = _status(client, name)
    if status == _FAILED:
        _delete(client, name)
        while _status(client, name) is not None:  # the same name can be had again when the old job is gone
            time.sleep(1)
        return False
    return status is not None


def _status(client: "TrainerClient", name: str) -> str | None:
    try:
        return str(client.get_job(name).status)
    except RuntimeError as error:
        if getattr(error.__cause__, "status", None) == 404:
            return None
        raise


def _follow(client: "TrainerClient", name: str, say: Callable[[str], None], pause: float = 2.0) -> str:
    """Say what the first node says until the job ends, and give its status.

    Pods may be started again while their peers' names do not resolve yet, and the API may be away for a moment:
    neither is the end of the job.
    """
    patience, answered, shown = 600.0, time.monotonic(), 0
    while True:
        try:
            status = str(client.get_job(name).status)
        except (RuntimeError, TimeoutError):
            if time.monotonic() - answered > patience:
                raise
        else:
            answered = time.monotonic()
            ended = status in {_COMPLETE, _FAILED}
            with suppress(RuntimeError):  # there is no pod to hear yet, or it is gone
                for index, line in enumerate(client.get_job_logs(name, follow=not ended)):
                    if index >= shown:
                        say(line)
                        shown += 1
            if ended:
                return status
        time.sleep(pause)


def _delete(client: "TrainerClient", name: str) -> None:
    try:
        client.delete_job(name)
    except RuntimeError as error:
        if getattr(error.__cause__, "status", None) != 404:
            _say(f"ganflow: the TrainJob {name} could not be deleted ({error}); delete it by hand")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextmanager
def _end_on_sigterm() -> Iterator[None]:
    """Let SIGTERM pass through `finally`, so that a run that is ended in Kubeflow leaves no job behind."""

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
