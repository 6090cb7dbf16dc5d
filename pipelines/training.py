"""The pipelines: one training from data to registry, and a sweep of several from the same data."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components import evaluate, prepare, register, sweep, train, train_distributed
from ganflow.code import DEPENDENCIES, Stage, code_version
from ganflow.params import Params
from pipelines import cluster as clusters
from pipelines.cluster import Cluster
from pipelines.leaves import Leaf, leaves_of, of_sections, signature_of, with_leaves

Inputs = Mapping[str, Any]

# A leaf by its path goes with a whole section: train.fid_extractor may be Inception too.
SECTIONS: Mapping[Stage, Sequence[str]] = {
    "prepare": ("data",),
    "train": ("seed", "model", "train", "tracking", "evaluate.inception_weights"),
    "evaluate": ("evaluate",),
    "register": ("register",),
}
_OF_SWEEP = ("seed", "data", "model", "train", "tracking")
_NO_IMAGE = "python"  # kfp.local runs tasks in our own Python
_MORE: Mapping[str, tuple[type, str, str]] = {
    "data_version": (str, "", "Change it when the pictures below data.root changed: Kubeflow's cache cannot see them."),
    "dvc_remote": (str, "", "URL of the DVC remote that has the prepared data."),
    "dvc_md5": (str, "", "Digest in dvc.lock of the prepared data to pull instead of preparing; empty: prepare."),
}


@dataclass(frozen=True)
class Site:
    """Where a pipeline is to run: None for a cluster is this machine."""

    cluster: Cluster | None = None
    gpus: int = 0
    nodes: int = 1
    commit: str = "unknown"

    @property
    def processes(self) -> int:
        """Processes of the training: one for each GPU, or for each node."""
        return max(self.gpus, 1) * self.nodes


def training_pipeline(params: Params, site: Site = Site()) -> BaseComponent:
    """Make the pipeline prepare -> train -> evaluate -> register, with a typed input for every parameter."""
    leaves = leaves_of(params)
    tasks = _Tasks(leaves, site)

    def build(inputs: Inputs) -> None:
        prepared = tasks.prepare(inputs)
        trained = tasks.train(inputs, prepared, trial="{}")
        evaluated = tasks.evaluate(inputs, prepared, trained, trial="{}")
        tasks.register(inputs, prepared, trained.outputs["trained"], evaluated.outputs["evaluated"])

    about = f"Prepare {params.data.registered_model}, train {params.model.family}, evaluate and register it."
    return _pipeline(f"ganflow-{params.model.family}", about, leaves, _MORE, build)


def sweep_pipeline(
    params: Params,
    trials: Sequence[Sequence[str]],
    parallel: int,
    site: Site = Site(),
) -> BaseComponent:
    """Make the pipeline that trains once for each of `trials`, lists of key.path=value, and registers the best.

    The trials are an input as well, as texts: a list of lists would be harder to type on Kubeflow's page.
    """
    leaves = leaves_of(params)
    tasks = _Tasks(leaves, site)

    def build(inputs: Inputs) -> None:
        opened = tasks.open_sweep(inputs)
        prepared = tasks.prepare(inputs)
        with dsl.ParallelFor(opened.output, name="trials", parallelism=parallel) as trial:
            trained = tasks.train(inputs, prepared, trial)
            evaluated = tasks.evaluate(inputs, prepared, trained, trial)
        chosen = tasks.choose(
            trained=dsl.Collected(trained.outputs["trained"]),
            evaluated=dsl.Collected(evaluated.outputs["evaluated"]),
        )
        tasks.register(inputs, prepared, chosen.outputs["best_trained"], chosen.outputs["best_evaluated"])

    note = "What each trial changes: for each a JSON list of key.path=value."
    more = {**_MORE, "trials": (list, [json.dumps(list(trial)) for trial in trials], note)}
    about = f"Train {params.model.family} on {params.data.registered_model} several times, and register the best."
    return _pipeline(f"ganflow-{params.model.family}-sweep", about, leaves, more, build)


class _Tasks:
    """Makes the tasks of a pipeline, each with its own parameters alone, placed on the cluster."""

    def __init__(self, leaves: Sequence[Leaf], site: Site) -> None:
        self._leaves, self._site = leaves, site
        image = site.cluster.image if site.cluster else _NO_IMAGE
        make = dsl.component(base_image=image, install_kfp_package=False)
        bodies: dict[Stage, Callable[..., Any]] = {
            "prepare": prepare.prepare,
            "train": train_distributed.train_distributed if site.processes > 1 else train.train,
            "evaluate": evaluate.evaluate,
            "register": register.register,
        }
        self._stages = {stage: make(with_leaves(body, self._of(SECTIONS[stage]))) for stage, body in bodies.items()}
        self._open = make(with_leaves(sweep.open_sweep, self._of(_OF_SWEEP)))
        self._choose = make(sweep.choose)
        self._code = {stage: code_version(stage) for stage in DEPENDENCIES}

    def prepare(self, inputs: Inputs) -> dsl.PipelineTask:
        task = self._stage("prepare", inputs, **{name: inputs[name] for name in _MORE})
        if self._site.cluster:
            clusters.place_data(task, self._site.cluster)
        return task

    def train(self, inputs: Inputs, prepared: dsl.PipelineTask, trial: Any) -> dsl.PipelineTask:
        cluster, gpus, nodes = self._site.cluster, self._site.gpus, self._site.nodes
        several = {"nodes": nodes, "gpus": gpus} if self._site.processes > 1 else {}
        task = self._stage("train", inputs, prepared=prepared.outputs["prepared"], trial=trial, **several)
        if cluster:
            clusters.place_checkpoints(task, cluster)
            if several:
                clusters.place_trainjob(task, cluster)
            else:
                clusters.place_training(task, cluster, gpus)
        return task

    def evaluate(
        self, inputs: Inputs, prepared: dsl.PipelineTask, trained: dsl.PipelineTask, trial: Any
    ) -> dsl.PipelineTask:
        artifacts = {"prepared": prepared.outputs["prepared"], "trained": trained.outputs["trained"]}
        return self._stage("evaluate", inputs, trial=trial, **artifacts)

    def register(self, inputs: Inputs, prepared: dsl.PipelineTask, trained: Any, evaluated: Any) -> None:
        task = self._stage(
            "register", inputs, prepared=prepared.outputs["prepared"], trained=trained, evaluated=evaluated
        )
        task.set_caching_options(enable_caching=False)

    def open_sweep(self, inputs: Inputs) -> dsl.PipelineTask:
        """Not cached: the run may have been deleted since; for the same trials it is the same run."""
        task = self._open(trials=inputs["trials"], **self._values(inputs, _OF_SWEEP))
        self._place(task, "sweep").set_caching_options(enable_caching=False)
        return task

    def choose(self, **arguments: Any) -> dsl.PipelineTask:
        """Not cached: it ends the sweep's run."""
        task = self._choose(**arguments)
        self._place(task, "sweep").set_caching_options(enable_caching=False)
        return task

    def _stage(self, stage: Stage, inputs: Inputs, **arguments: Any) -> dsl.PipelineTask:
        values = self._values(inputs, SECTIONS[stage])
        return self._place(self._stages[stage](code=self._code[stage], **values, **arguments), stage)

    def _place(self, task: dsl.PipelineTask, component: str) -> dsl.PipelineTask:
        if self._site.cluster:
            trains_here = component == "train" and self._site.processes == 1
            resources = self._site.cluster.training if trains_here else self._site.cluster.small
            clusters.place(task, self._site.cluster, resources, self._site.commit, component)
        return task

    def _of(self, sections: Sequence[str]) -> tuple[Leaf, ...]:
        return of_sections(self._leaves, sections)

    def _values(self, inputs: Inputs, sections: Sequence[str]) -> dict[str, Any]:
        return {leaf.name: inputs[leaf.name] for leaf in self._of(sections)}


def _pipeline(
    name: str,
    about: str,
    leaves: Sequence[Leaf],
    more: Mapping[str, tuple[type, Any, str]],
    build: Callable[[Inputs], None],
) -> BaseComponent:
    """Make a pipeline whose signature is generated; Kubeflow calls it with positional arguments in that order."""
    signature = signature_of(leaves, {key: (kind, default) for key, (kind, default, _) in more.items()})
    notes = {leaf.name: leaf.note for leaf in leaves} | {key: note for key, (_, _, note) in more.items()}

    def function(*channels: Any) -> None:
        build(dict(zip(signature.parameters, channels, strict=True)))

    function.__name__ = name.replace("-", "_")
    function.__annotations__ = {key: entry.annotation for key, entry in signature.parameters.items()}
    function.__signature__ = signature  # type: ignore[attr-defined]
    arguments = "\n".join(f"    {key}: {note}" for key, note in notes.items())
    function.__doc__ = inspect.cleandoc(about) + f"\n\nArgs:\n{arguments}\n"
    made: BaseComponent = dsl.pipeline(name=name, description=about)(function)
    return made
