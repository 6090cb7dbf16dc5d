"""cluster.yaml: what a cluster has and a laptop has not, and how a task is placed on it."""

import re
from collections.abc import Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

from kfp import dsl, kubernetes
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, to_json

from ganflow.errors import UserError
from ganflow.params import read_tree
from ganflow.pod import CHECKPOINTS, RUN_ID
from ganflow.trainjob import LABELS, SETTINGS, JobSettings

_CLOSED = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


def _matching(pattern: str, right: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"should be {right}, not {text!r}")
        return text

    return AfterValidator(check)


# What kfp takes, which is less than Kubernetes does.
Cpus = Annotated[str, _matching(r"[0-9]+(\.[0-9]+|m)?", "a number of CPUs such as 500m, 2 or 1.5")]
CpusOrNone = Annotated[str, _matching(r"([0-9]+(\.[0-9]+|m)?)?", "a number of CPUs such as 500m or 2, or empty")]
Bytes = Annotated[str, _matching(r"[0-9]+([EPTGMK]i?)?", "an amount of memory in whole units, such as 512Mi or 8Gi")]
Name = Annotated[str, _matching(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?", "a name of small letters, digits, . and -")]
Place = Annotated[str, _matching(r"/(.*[^/])", "an absolute path without / at its end")]

_MLFLOW_KEYS = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_DVC_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
_RETRY_WITHIN = f"{90 * 24 * 3600}s"
_RUN_LABEL = "metadata.labels['pipeline/runid']"


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Resources:
    """What a task asks of its node."""

    cpu: Cpus = "1"
    """CPUs, requested."""
    cpu_limit: CpusOrNone = ""
    """CPUs at most; empty: no limit, since waiting for CPUs harms nobody."""
    memory: Bytes = "4Gi"
    """Memory, requested and at most: a task that needs more is killed, which is final."""


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Toleration:
    """A taint of the GPU nodes that the training bears."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "NoExecute", "PreferNoSchedule"] = ""


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Gpu:
    """Where GPUs are, and under which name Kubernetes counts them."""

    resource: str = Field(default="nvidia.com/gpu", min_length=1)
    """Name of the resource."""
    tolerations: Sequence[Toleration] = (Toleration(key="nvidia.com/gpu"),)
    """Taints of GPU nodes."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels of the nodes to use."""


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Volume:
    """A persistent volume claim, and where the pods see it."""

    claim: Name = ""
    """Name of the claim in the namespace of the runs; empty: none."""
    path: Place
    """Folder in the pod."""


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Cluster:
    """All of cluster.yaml."""

    image: str = Field(min_length=1)
    """Image with ganflow and kfp in it; `--image` takes its place."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When a node fetches the image."""
    user: int = Field(default=1000, ge=1)
    """Numeric user and group of the pods, who must be able to write to the volumes."""
    mlflow_secret: Name
    """Secret with MLFLOW_TRACKING_URI and, where the server asks for them, _USERNAME and _PASSWORD or _TOKEN."""
    dvc_secret: Name = ""
    """Secret with AWS_ACCESS_KEY_ID and so on, for the DVC remote; empty: none is needed."""
    small: Resources = Resources()
    """For prepare, evaluate, register."""
    training: Resources = Resources(cpu="2", memory="8Gi")
    """For a training, and for each node of one on several."""
    shared_memory: Bytes = "1Gi"
    """Size of /dev/shm of a training."""
    gpu: Gpu = Gpu()
    """How a GPU is asked for, when --gpus does."""
    checkpoints: Volume = Volume(claim="ganflow-checkpoints", path="/checkpoints")
    """Where a training keeps what it resumes from; on several nodes all of them must be able to mount it."""
    data: Volume = Volume(path="/data")
    """Raw pictures, where they lie on a volume; data.root is then a folder below its path."""
    retries: int = Field(default=10, ge=0, le=1000)
    """How often the pod of a training is started again after an eviction or a deletion."""
    trainer_runtime: Name = "torch-distributed"
    """Kubeflow Trainer's runtime for a training on several nodes or GPUs."""
    service_account: Name = ""
    """Service account of the run's pods; empty: the cluster's default."""


_SCHEMA: TypeAdapter[Cluster] = TypeAdapter(Cluster)


def load_cluster(path: Path, image: str | None = None) -> Cluster:
    """Read a cluster.yaml, with another image where one is given. Raises UserError listing every problem."""
    tree: dict[str, Any] = read_tree(path, "--cluster", "image, mlflow_secret, ...")
    if image:
        tree["image"] = image
    try:
        return _SCHEMA.validate_json(to_json(tree))
    except ValidationError as error:
        problems = [_problem(details) for details in error.errors(include_url=False)]
        raise UserError("\n  ".join([f"{path}: {len(problems)} to put right:", *problems])) from None


def _problem(details: ErrorDetails) -> str:
    where = ".".join(map(str, details["loc"]))
    if details["type"] == "unexpected_keyword_argument":
        return f"{where}: there is no such entry"
    if details["type"] in {"missing", "missing_argument"}:
        return f"{where}: is missing"
    message = details["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return f"{where}: {message}"


def place(task: dsl.PipelineTask, cluster: Cluster, resources: Resources, commit: str, component: str) -> None:
    """Give a task what every one has: labels, image policy, user, resources, MLflow, and where it comes from."""
    for label, value in (*LABELS.items(), ("app.kubernetes.io/component", component)):
        kubernetes.add_pod_label(task, label, value)
    task.set_cpu_request(resources.cpu).set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if resources.cpu_limit:
        task.set_cpu_limit(resources.cpu_limit)
    kubernetes.set_image_pull_policy(task, cluster.image_pull_policy)
    kubernetes.set_security_context(task, run_as_user=cluster.user, run_as_group=cluster.user, run_as_non_root=True)
    kubernetes.use_secret_as_env(task, cluster.mlflow_secret, {key: key for key in _MLFLOW_KEYS}, optional=True)
    kubernetes.use_field_path_as_env(task, RUN_ID, _RUN_LABEL)
    _tell(task, "ganflow/commit", "GANFLOW_COMMIT", commit)
    _tell(task, "ganflow/image", "GANFLOW_IMAGE", cluster.image)


def place_trainjob(task: dsl.PipelineTask, cluster: Cluster) -> None:
    """Give the task that launches a TrainJob what the nodes of it need."""
    tolerations = [{key: value for key, value in asdict(one).items() if value} for one in cluster.gpu.tolerations]
    settings = JobSettings(
        image=cluster.image,
        runtime=cluster.trainer_runtime,
        claim=cluster.checkpoints.claim,
        path=cluster.checkpoints.path,
        user=cluster.user,
        cpu=cluster.training.cpu,
        memory=cluster.training.memory,
        gpu_resource=cluster.gpu.resource,
        shared_memory=cluster.shared_memory,
        mlflow_secret=cluster.mlflow_secret,
        service_account=cluster.service_account,
        tolerations=tolerations,
        node_selector=cluster.gpu.node_selector,
    )
    _tell(task, "ganflow/trainjob", SETTINGS, settings.to_text())


def _tell(task: dsl.PipelineTask, annotation: str, variable: str, value: str) -> None:
    """Set an environment variable by way of an annotation: as itself it would be part of Kubeflow's cache key."""
    kubernetes.add_pod_annotation(task, annotation, value)
    kubernetes.use_field_path_as_env(task, variable, f"metadata.annotations['{annotation}']")


def place_data(task: dsl.PipelineTask, cluster: Cluster) -> None:
    """Give a task the raw pictures, and the way to the DVC remote."""
    if cluster.data.claim:
        kubernetes.mount_pvc(task, cluster.data.claim, cluster.data.path)
    if cluster.dvc_secret:
        kubernetes.use_secret_as_env(task, cluster.dvc_secret, {key: key for key in _DVC_KEYS}, optional=True)


def place_checkpoints(task: dsl.PipelineTask, cluster: Cluster) -> None:
    """Give a training the volume to resume from, and retries after a deletion or an eviction."""
    if cluster.checkpoints.claim:
        kubernetes.mount_pvc(task, cluster.checkpoints.claim, cluster.checkpoints.path)
        task.set_env_variable(CHECKPOINTS, cluster.checkpoints.path)
    if cluster.retries:
        # Kubeflow's own hour is counted from the first pod on: a longer training could not be resumed.
        task.set_retry(cluster.retries, backoff_max_duration=_RETRY_WITHIN)


def place_training(task: dsl.PipelineTask, cluster: Cluster, gpus: int) -> None:
    """Give a training on one machine its GPU and its shared memory."""
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=cluster.shared_memory)
    if gpus:
        task.set_accelerator_type(cluster.gpu.resource).set_accelerator_limit(gpus)
        for toleration in cluster.gpu.tolerations:
            kubernetes.add_toleration(
                task,
                key=toleration.key or None,
                operator=toleration.operator,
                value=toleration.value or None,
                effect=toleration.effect or None,
            )
        for label, value in cluster.gpu.node_selector.items():
            kubernetes.add_node_selector(task, label, value)
