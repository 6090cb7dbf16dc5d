"""The components as functions, and what may be imported where."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

import components
from components.evaluate import evaluate
from components.prepare import prepare
from components.register import register
from components.sweep import choose, open_sweep
from components.train import train
from ganflow import params
from ganflow.code import code_version
from ganflow.params import Params
from ganflow.tracking.store import connect
from pipelines.leaves import leaves_of, of_sections
from pipelines.training import SECTIONS

FOLDER = Path(components.__file__).parent
MODULES = sorted(path for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_component_imports_nothing_but_kfp_and_the_standard_library_at_its_top(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            root = name.partition(".")[0]
            assert root == "kfp" or root in sys.stdlib_module_names, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_body_is_thin(path: Path) -> None:
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt)]
        assert len(statements) <= 20, f"{path.name}: {function.name} has {len(statements)} statements"


class Artifacts:
    """Artifacts in a folder, as Kubeflow hands them to a component."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def make(self, kind: type[dsl.Artifact], name: str) -> Any:
        return kind(name=name, uri=str(self._root / name), metadata={})


@pytest.fixture
def small() -> Params:
    tree = {
        "data": {"resolution": 8},
        "model": {"family": "vanilla", "hidden_units": 16},
        "train": {"images": 960, "tick_every_images": 320, "sample_every_images": 640},
        "evaluate": {"images": 100},
        "register": {"max_fid": 1e6, "min_discriminator_accuracy": 0.0, "max_discriminator_accuracy": 1.0},
    }
    return params.parse(tree)


def own(small: Params, *sections: str) -> dict[str, object]:
    return {leaf.path: leaf.value for leaf in of_sections(leaves_of(small), sections)}


def test_from_leaves_to_a_registered_model(small: Params, repository: Path) -> None:
    """Each gets its own leaves alone; what else it has to know comes with the artifacts before it."""
    made = Artifacts(repository)
    prepared, summary = made.make(dsl.Dataset, "prepared"), made.make(dsl.Markdown, "summary")
    prepare(own(small, *SECTIONS["prepare"]), code_version("prepare"), "", "", "", prepared, summary)
    card = json.loads((Path(prepared.path) / "card.json").read_text(encoding="utf-8"))
    assert prepared.metadata["digest"] == card["digest"]
    assert card["digest"] in Path(summary.path).read_text(encoding="utf-8")

    (trial,) = open_sweep(own(small, "seed", "data", "model", "train", "tracking"), ['["train.beta1=0.4"]'])
    sweep = json.loads(trial)["parent_run"]
    trained, page = made.make(dsl.Model, "trained"), made.make(dsl.HTML, "page")
    train(own(small, *SECTIONS["train"]), trial, code_version("train"), prepared, trained, page)
    run = connect().get_run(trained.metadata["run_id"])
    assert run.data.tags["mlflow.parentRunId"] == sweep
    assert run.data.params["train.beta1"] == "0.4"
    assert run.data.params["data.resolution"] == "8"
    assert "data:image/png;base64," in Path(page.path).read_text(encoding="utf-8")

    evaluated, page = made.make(dsl.Metrics, "evaluated"), made.make(dsl.HTML, "evaluation")
    evaluate(own(small, "evaluate"), trial, code_version("evaluate"), prepared, trained, evaluated, page)
    metrics = json.loads((Path(evaluated.path) / "metrics.json").read_text(encoding="utf-8"))
    assert evaluated.metadata["fid"] == metrics["fid"]
    assert connect().get_run(run.info.run_id).data.metrics["evaluate/fid"] == metrics["fid"]

    best_trained, best_evaluated = made.make(dsl.Model, "best"), made.make(dsl.Metrics, "best_metrics")
    choose([trained], [evaluated], best_trained, best_evaluated, made.make(dsl.HTML, "trials"))
    assert best_trained.metadata == trained.metadata
    assert connect().get_run(sweep).info.status == "FINISHED"

    registration, summary = made.make(dsl.Artifact, "registration"), made.make(dsl.Markdown, "registered")
    register(
        own(small, "register"), code_version("register"), prepared, best_trained, best_evaluated, registration, summary
    )
    result = json.loads((Path(registration.path) / "registration.json").read_text(encoding="utf-8"))
    assert registration.metadata["alias"] == "champion"
    assert (result["run_id"], result["fid"]) == (run.info.run_id, metrics["fid"])
    holder = connect().get_model_version_by_alias("digits-8px", "champion")
    assert str(holder.version) == result["version"]
    assert "champion" in Path(summary.path).read_text(encoding="utf-8")


def test_prepared_data_comes_from_the_dvc_remote(
    small: Params, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as were prepared, though nothing is prepared here."""
    from dvc.repo import Repo

    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    made = Artifacts(repository)
    prepared, pulled = made.make(dsl.Dataset, "prepared"), made.make(dsl.Dataset, "pulled")
    summary = made.make(dsl.Markdown, "summary")
    prepare(own(small, "data"), code_version("prepare"), "", "", "", prepared, summary)
    with Repo.init(str(repository), no_scm=True) as dvc:
        with dvc.config.edit() as config:
            config["remote"]["team"] = {"url": str(tmp_path / "remote")}
        (stage,) = dvc.add(prepared.path)
        dvc.push(remote="team")
    md5 = stage.outs[0].hash_info.value

    monkeypatch.setattr("ganflow.stages.prepare.prepare", None)
    remote = str(tmp_path / "remote")
    prepare(own(small, "data"), code_version("prepare"), "", remote, md5, pulled, summary)
    assert pulled.metadata == prepared.metadata
    files = {path.name: path.read_bytes() for path in Path(prepared.path).iterdir()}
    assert {path.name: path.read_bytes() for path in Path(pulled.path).iterdir()} == files


def test_below_the_run_of_kubeflows_own_plugin(
    small: Params, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which opens a run for each task, and injects its id; that run stays as it is."""
    client = connect()
    plugins = client.create_run(client.create_experiment("of the plugin"), run_name="a task")
    monkeypatch.setenv("MLFLOW_RUN_ID", plugins.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", plugins.info.experiment_id)
    made = Artifacts(repository)
    prepared, trained = made.make(dsl.Dataset, "prepared"), made.make(dsl.Model, "trained")
    prepare(own(small, "data"), code_version("prepare"), "", "", "", prepared, made.make(dsl.Markdown, "summary"))
    page, evaluated = made.make(dsl.HTML, "page"), made.make(dsl.Metrics, "evaluated")
    train(own(small, *SECTIONS["train"]), "{}", code_version("train"), prepared, trained, page)
    evaluate(own(small, "evaluate"), "{}", code_version("evaluate"), prepared, trained, evaluated, page)
    registration, summary = made.make(dsl.Artifact, "registration"), made.make(dsl.Markdown, "registered")
    register(own(small, "register"), code_version("register"), prepared, trained, evaluated, registration, summary)

    run = client.get_run(trained.metadata["run_id"])
    assert run.data.tags["mlflow.parentRunId"] == plugins.info.run_id
    assert run.info.experiment_id == plugins.info.experiment_id
    assert {"train/generator_loss", "evaluate/fid"} <= set(run.data.metrics)
    assert registration.metadata["alias"] == "champion"
    after = client.get_run(plugins.info.run_id)
    assert (after.info.status, after.data.metrics, after.data.params) == ("RUNNING", {}, {})


def test_a_mistake_in_a_leaf_ends_with_one_message_and_status_2(
    small: Params, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Artifacts(repository)
    leaves = {**own(small, "data"), "data.resolution": 9}
    with pytest.raises(SystemExit) as ended:
        prepare(leaves, code_version("prepare"), "", "", "", made.make(dsl.Dataset, "a"), made.make(dsl.Markdown, "b"))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("ganflow: pipeline: 1 to put right:\n  data.resolution: ")


def test_a_trial_that_fails_marks_the_sweep_as_failed(small: Params, repository: Path) -> None:
    made = Artifacts(repository)
    prepared = made.make(dsl.Dataset, "prepared")
    prepare(own(small, "data"), code_version("prepare"), "", "", "", prepared, made.make(dsl.Markdown, "summary"))
    (trial,) = open_sweep(own(small, "seed", "data", "model", "train", "tracking"), ['["train.beta1=7"]'])
    trained, page = made.make(dsl.Model, "trained"), made.make(dsl.HTML, "page")
    with pytest.raises(SystemExit):
        train(own(small, *SECTIONS["train"]), trial, code_version("train"), prepared, trained, page)
    assert connect().get_run(json.loads(trial)["parent_run"]).info.status == "FAILED"
