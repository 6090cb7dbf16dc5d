import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import golden
import pytest
from google.protobuf.json_format import MessageToDict
from repositories import ROOT

from ganflow import params
from ganflow.code import code_version
from ganflow.experiments import resolve
from ganflow.params import Params
from pipelines.cluster import load_cluster
from pipelines.leaves import leaves_of
from pipelines.training import SECTIONS, Site, sweep_pipeline, training_pipeline

TYPES = {int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE", bool: "BOOLEAN", str: "STRING"}


@pytest.fixture(scope="module")
def default() -> Params:
    return params.load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def spec(default: Params) -> Mapping[str, Any]:
    content: Mapping[str, Any] = MessageToDict(training_pipeline(default).pipeline_spec)
    return content


def site(**more: Any) -> Site:
    return Site(load_cluster(ROOT / "cluster.yaml"), **more)


@pytest.mark.parametrize("name", golden.NAMES)
def test_it_compiles_to_what_is_kept(name: str) -> None:
    kept = (golden.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert golden.compiled(name) == kept, "the compiled pipeline has changed; `make golden` keeps the new one"


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml")))
def test_every_parameter_is_a_typed_input_with_its_default_and_meaning(experiment: str) -> None:
    loaded = resolve(experiment, folder=ROOT / "experiments")
    inputs = MessageToDict(training_pipeline(loaded).pipeline_spec)["root"]["inputDefinitions"]["parameters"]
    paths = {
        f"{section}.{key}" if isinstance(content, dict) else section
        for section, content in params.dump(loaded).items()
        for key in (content if isinstance(content, dict) else [section])
    }
    assert {path.replace(".", "_") for path in paths} == set(inputs) - {"data_version", "dvc_remote", "dvc_md5"}
    for leaf in leaves_of(loaded):
        declared = inputs[leaf.name]
        assert declared["parameterType"] == TYPES[type(leaf.value)], leaf.path
        assert declared["defaultValue"] == leaf.value, leaf.path
        assert declared["description"] == leaf.note, leaf.path


@pytest.mark.parametrize("stage", SECTIONS)
def test_a_task_has_its_own_parameters_alone(spec: Mapping[str, Any], default: Params, stage: Any) -> None:
    """So that a change of another section leaves it in the cache."""
    inputs = spec["root"]["dag"]["tasks"][stage]["inputs"]["parameters"]
    of_pipeline = {entry["componentInputParameter"] for entry in inputs.values() if "componentInputParameter" in entry}
    own = {leaf.name for leaf in leaves_of(default) if leaf.path.partition(".")[0] in SECTIONS[stage]}
    if stage == "train":
        own.add("evaluate_inception_weights")  # where Inception lies, for its FIDs
    assert of_pipeline - {"data_version", "dvc_remote", "dvc_md5"} == own
    assert inputs["code"]["runtimeValue"]["constant"] == code_version(stage)


def test_every_section_has_a_task() -> None:
    in_schema = set(params.json_schema()["properties"])
    assert {entry.partition(".")[0] for entries in SECTIONS.values() for entry in entries} == in_schema


def test_register_alone_is_never_cached(spec: Mapping[str, Any]) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    assert {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")} == {
        "prepare",
        "train",
        "evaluate",
    }


def test_stages_follow_each_other(spec: Mapping[str, Any]) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    assert {name: set(task.get("dependentTasks", ())) for name, task in tasks.items()} == {
        "prepare": set(),
        "train": {"prepare"},
        "evaluate": {"prepare", "train"},
        "register": {"prepare", "train", "evaluate"},
    }


def test_a_sweep_trains_in_a_loop_and_registers_one(default: Params) -> None:
    pipeline = sweep_pipeline(default, [["seed=1", 'model.loss="minimax"'], ["seed=2"]], 3)
    content = MessageToDict(pipeline.pipeline_spec)
    trials = content["root"]["inputDefinitions"]["parameters"]["trials"]
    assert [json.loads(text) for text in trials["defaultValue"]] == [["seed=1", 'model.loss="minimax"'], ["seed=2"]]
    tasks = content["root"]["dag"]["tasks"]
    (loop,) = (task for task in tasks.values() if "parameterIterator" in task)
    assert loop["iteratorPolicy"]["parallelismLimit"] == 3
    inside = content["components"][loop["componentRef"]["name"]]["dag"]["tasks"]
    assert set(inside) == {"train", "evaluate"}
    assert {"open-sweep", "prepare", "choose", "register"} <= set(tasks)
    assert not tasks["choose"]["cachingOptions"]


def test_the_pipeline_has_the_signature_that_kubeflow_reads(default: Params) -> None:
    component = training_pipeline(default)
    function = component.pipeline_func
    assert list(inspect.signature(function).parameters)[: len(leaves_of(default))] == [
        leaf.name for leaf in leaves_of(default)
    ]


def executors(pipeline: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What Kubeflow starts for each task, and how Kubernetes is to place it."""
    spec, platform = MessageToDict(pipeline.pipeline_spec), MessageToDict(pipeline.platform_spec)
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return spec["deploymentSpec"]["executors"], placed


def test_only_the_training_has_a_gpu_checkpoints_and_retries(default: Params) -> None:
    pipeline = training_pipeline(default, site(gpus=1, commit="abc"))
    started, placed = executors(pipeline)
    for name, executor in started.items():
        resources = executor["container"]["resources"]
        trains = name == "exec-train"
        assert ("accelerator" in resources) == trains
        assert ("tolerations" in placed[name]) == trains
        assert ("pvcMount" in placed[name]) == trains
        assert ("emptyDirMounts" in placed[name]) == trains
        assert executor["container"]["image"] == "ganflow:0.1.0"
    assert started["exec-train"]["container"]["env"] == [{"name": "GANFLOW_CHECKPOINTS", "value": "/checkpoints"}]
    tasks = MessageToDict(pipeline.pipeline_spec)["root"]["dag"]["tasks"]
    assert {name for name, task in tasks.items() if "retryPolicy" in task} == {"train"}


def test_provenance_reaches_the_pod_without_touching_the_cache_key(default: Params) -> None:
    """Environment variables and inputs are part of Kubeflow's key; annotations are not."""
    one, other = (training_pipeline(default, site(commit=commit)) for commit in ("abc", "def"))
    assert MessageToDict(one.pipeline_spec) == MessageToDict(other.pipeline_spec)
    for executor in executors(one)[1].values():
        assert executor["podMetadata"]["annotations"]["ganflow/commit"] == "abc"
        variables = {entry["name"]: entry["fieldPath"] for entry in executor["fieldPathAsEnv"]}
        assert variables["GANFLOW_COMMIT"] == "metadata.annotations['ganflow/commit']"
        assert variables["KFP_RUN_ID"] == "metadata.labels['pipeline/runid']"
        (secret,) = executor["secretAsEnv"]
        assert secret["secretName"] == "ganflow-mlflow"
        assert {entry["envVar"] for entry in secret["keyToEnv"]} >= {"MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD"}


def test_several_nodes_are_launched_from_a_small_pod(default: Params) -> None:
    started, placed = executors(training_pipeline(default, site(gpus=2, nodes=2)))
    assert "accelerator" not in started["exec-train-distributed"]["container"]["resources"]
    settings = json.loads(placed["exec-train-distributed"]["podMetadata"]["annotations"]["ganflow/trainjob"])
    assert (settings["image"], settings["claim"]) == ("ganflow:0.1.0", "ganflow-checkpoints")
    assert settings["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert settings["memory"] == "8Gi"


def test_without_a_cluster_nothing_of_one_is_compiled(default: Params) -> None:
    assert not MessageToDict(training_pipeline(default).platform_spec)
    assert Path("cluster.yaml").name not in str(MessageToDict(training_pipeline(default).pipeline_spec))
