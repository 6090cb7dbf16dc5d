"""The bodies' helpers: parameters out of leaves and artifacts, where a training resumes, and how a task ends."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ganflow import params, pod
from ganflow.code import Stage, code_version
from ganflow.errors import UserError
from ganflow.params import Params
from ganflow.tracking.runs import RunRef, write_run
from ganflow.training.loop import DivergedError, InterruptedTraining
from ganflow.trainjob import TrainJobFailedError

ODD = """say "GAN", it's 生成 \\ {x} %s\t1e3"""  # what breaks texts that are put together


@pytest.fixture
def all_params() -> Params:
    """Every type of leaf, at a value that is not its default."""
    tree = {
        "seed": 7,
        "data": {"resolution": 8, "validation_fraction": 0.25},
        "model": {"family": "dcgan", "width": 8, "noise": "uniform"},
        "train": {"flip": True, "generator_lr": 1e-05, "images": 123_456_789},
        "tracking": {"experiment": ODD},
    }
    return params.parse(tree)


def leaves(made_of: Params, *sections: str) -> dict[str, Any]:
    """Leaves by their dotted paths, as Kubeflow hands them to a task."""
    found: dict[str, Any] = {}
    for section, content in params.dump(made_of).items():
        if section in sections:
            entries = content.items() if isinstance(content, dict) else [("", content)]
            found |= {f"{section}.{key}" if key else section: value for key, value in entries}
    return found


def trial(*overrides: str) -> str:
    """A trial of a sweep, as `open_sweep` hands it to a training."""
    return json.dumps({"overrides": overrides, "parent_run": "0" * 32})


# Parameters


def test_leaves_alone_give_all_parameters_back(all_params: Params) -> None:
    made = pod.params_of(leaves(all_params, "seed", "data", "model", "train", "evaluate", "register", "tracking"))
    assert made == all_params


def test_leaves_and_the_sections_of_the_tasks_before_give_all_parameters_back(all_params: Params) -> None:
    prepared, trained = pod.sections(all_params, "data"), pod.sections(all_params, "seed", "model", "train", "tracking")
    made = pod.params_of(leaves(all_params, "evaluate", "register"), prepared, trained)
    assert params.dump(made) == params.dump(all_params)
    for section, content in params.dump(made).items():
        for key, value in content.items() if isinstance(content, dict) else ():
            assert type(value) is type(params.dump(all_params)[section][key]), f"{section}.{key}"


def test_sections_are_json_with_the_values_types(all_params: Params) -> None:
    text = pod.sections(all_params, "seed", "train", "tracking")
    tree = json.loads(text)
    assert set(tree) == {"seed", "train", "tracking"}
    assert (tree["seed"], type(tree["seed"])) == (7, int)
    assert tree["train"]["flip"] is True
    assert (tree["train"]["generator_lr"], type(tree["train"]["images"])) == (1e-05, int)
    assert tree["tracking"]["experiment"] == ODD
    assert "生成" in text, "readable on Kubeflow's pages"


def test_a_tasks_own_leaves_go_before_the_sections_above_and_overrides_before_both(all_params: Params) -> None:
    above = pod.sections(all_params, "model", "train")
    below = pod.params_of({"train.device": "cpu", "train.images": 5}, above)
    assert (below.train.device, below.train.images, below.train.flip) == ("cpu", 5, True)
    changed = pod.params_of({"train.images": 5}, above, trial=trial("train.images=6", "model.width=4", "seed=9"))
    assert (changed.train.images, changed.seed, changed.train.flip) == (6, 9, True)
    assert params.dump(changed)["model"]["width"] == 4


def test_of_two_tasks_before_the_later_one_counts(all_params: Params) -> None:
    one, other = (json.dumps({"train": {"images": n, "beta1": 0.1}}) for n in (1, 2))
    assert pod.params_of({}, one, other).train.images == 2
    assert pod.params_of({}, one, '{"train": {"images": 3}}').train.beta1 == 0.1, "sections are merged, not replaced"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tracking.experiment='a=b, \"c\"'", 'a=b, "c"'),
        ("tracking.experiment=生成", "生成"),
        ("tracking.experiment='1'", "1"),
        ("train.flip=true", True),
        ("train.beta1=0.25", 0.25),
        ("train.generator_lr=1e-4", 1e-4),
        ("seed=3", 3),
    ],
)
def test_an_override_keeps_its_type(text: str, value: object) -> None:
    made = pod.params_of({}, trial=trial(text))
    found = params.dump(made)
    for key in text.partition("=")[0].split("."):
        found = found[key]
    assert (found, type(found)) == (value, type(value))


def test_a_trial_names_what_it_changes_and_its_sweep() -> None:
    assert pod.overrides(trial("seed=1", "train.beta1=0.1")) == ["seed=1", "train.beta1=0.1"]
    assert pod.parent_run(trial()) == "0" * 32
    assert (pod.overrides("{}"), pod.parent_run("{}")) == ([], "")


def test_prepare_needs_no_model() -> None:
    made = pod.params_of({"data.resolution": 28, "data.name": "ours"})
    assert (made.data.resolution, made.data.registered_model) == (28, "ours-28px")
    assert json.loads(pod.sections(made, "data"))["data"]["resolution"] == 28


def test_the_model_of_a_task_before_is_not_replaced(all_params: Params) -> None:
    made = pod.params_of(leaves(all_params, "evaluate"), pod.sections(all_params, "model"))
    assert made.model == all_params.model


def test_one_call_leaves_nothing_for_the_next() -> None:
    pod.params_of({}, trial=trial("model.hidden_units=5"))
    assert params.dump(pod.params_of({}))["model"]["hidden_units"] == 256


def test_wrong_values_are_named_together() -> None:
    with pytest.raises(UserError) as caught:
        pod.params_of({"train.beta1": 2.0, "train.wings": 1, "model.family": "vanilla"})
    assert "pipeline: 2 to put right:" in str(caught.value)
    assert "train.beta1" in str(caught.value)
    assert "train.wings" in str(caught.value)


# What outlives a pod


def test_states_lie_on_the_volume_by_the_run_of_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANFLOW_CHECKPOINTS", str(tmp_path / "volume"))
    for run in ("run-1", "run-2"):
        monkeypatch.setenv("KFP_RUN_ID", run)
        assert pod.states() == tmp_path / "volume" / run
    monkeypatch.setenv("KFP_RUN_ID", "")
    assert pod.states() == tmp_path / "volume" / "no-run-id"
    monkeypatch.delenv("KFP_RUN_ID")
    assert pod.states() == tmp_path / "volume" / "no-run-id"


def test_without_a_volume_states_lie_in_the_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    monkeypatch.delenv("GANFLOW_CHECKPOINTS", raising=False)
    assert pod.states() == repository / ".ganflow"
    monkeypatch.setenv("GANFLOW_CHECKPOINTS", "")
    assert pod.states() == repository / ".ganflow"


def test_a_training_tells_the_next_tasks_its_run_and_its_parameters(all_params: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no MLflow run"):
        pod.about_training(all_params, tmp_path, "[]")
    write_run(tmp_path, RunRef("0" * 32, "sqlite:///x.db", "1"))
    about = pod.about_training(all_params, tmp_path, trial("seed=7"))
    assert (about["run_id"], pod.overrides(about["trial"])) == ("0" * 32, ["seed=7"])
    assert all(type(value) is str for value in about.values()), "Kubeflow's metadata would make a float of an integer"
    assert pod.params_of({}, about["params"]) == all_params


def test_a_volume_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "volume").write_text("no folder")
    monkeypatch.setenv("GANFLOW_CHECKPOINTS", str(tmp_path / "volume"))
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    with pytest.raises(UserError, match=f"{tmp_path}/volume/run-1: the volume for checkpoints cannot be written"):
        pod.states()


@pytest.mark.parametrize(("answers", "asked"), [([True], 1), ([False, True], 2), ([False] * 3, 3)])
def test_the_rest_of_a_journal_is_sent_when_the_store_answers(
    answers: list[bool],
    asked: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[Path] = []

    def sync(states: Path, *, ended: bool) -> int:
        assert ended, "another pod may be sending the journal of a training that goes on"
        calls.append(states)
        if not answers[len(calls) - 1]:
            raise UserError("the MLflow server does not answer")
        return 1

    monkeypatch.setattr(pod, "sync", sync)
    monkeypatch.setenv("GANFLOW_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    pod.send_rest()
    assert calls == [], "outside of a pod, people do it by hand"
    monkeypatch.setenv("KFP_POD_NAME", "a-pod")
    pod.send_rest(attempts=3, pause=0)
    assert calls == [tmp_path / "run-1"] * asked
    stays = f"`ganflow sync --states {tmp_path}/run-1` sends it"
    assert (stays in capsys.readouterr().err) == (not any(answers))


# How a task ends


@contextmanager
def ending_with(status: int) -> Iterator[None]:
    with pytest.raises(SystemExit) as ended:
        yield
    assert ended.value.code == status


@pytest.fixture
def _in_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "a-pod")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")


@pytest.fixture
def _on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


FAILURES = [
    (UserError("train.images: is too small"), 2),
    (DivergedError(640), 1),
    (TrainJobFailedError("the TrainJob x failed"), 1),
    (InterruptedTraining(320), 143),
]


@pytest.mark.usefixtures("_on_a_laptop")
@pytest.mark.parametrize(("failure", "status"), FAILURES)
def test_a_failure_is_one_line_and_a_status(
    failure: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with ending_with(status), pod.plain_failures():
        raise failure
    assert capsys.readouterr() == ("", f"ganflow: {failure}\n")


@pytest.mark.usefixtures("_in_pod")
@pytest.mark.parametrize(("failure", "status"), FAILURES)
def test_a_pod_says_that_its_failure_is_final_unless_it_was_stopped(
    failure: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with ending_with(status), pod.plain_failures():
        raise failure
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == f"ganflow: {failure}"
    if isinstance(failure, InterruptedTraining):
        assert rest == []
    else:
        (last,) = rest
        assert last.startswith("ganflow: this is final")


@pytest.mark.usefixtures("_in_pod")
@pytest.mark.parametrize("failure", [MemoryError(), KeyError("x"), SystemExit(5)])
def test_other_exceptions_pass(failure: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(failure)) as caught, pod.plain_failures("train", code_version("train")):
        raise failure
    assert caught.value is failure
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("_on_a_laptop")
def test_other_code_is_refused_before_the_body_runs(capsys: pytest.CaptureFixture[str]) -> None:
    ran = []
    with ending_with(2), pod.plain_failures("train", code_version("evaluate")):
        ran.append("body")
    said = capsys.readouterr().err
    assert ran == []
    assert said.count("\n") == 1
    assert code_version("evaluate") in said
    assert code_version("train") in said


@pytest.mark.usefixtures("_on_a_laptop")
def test_the_same_code_runs_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    ran = []
    with pod.plain_failures("train", code_version("train")):
        ran.append("body")
    with pod.plain_failures():
        ran.append("of a sweep, which has no stage")
    assert len(ran) == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("_in_pod")
@pytest.mark.parametrize("uri", ["", None])
@pytest.mark.parametrize("stage", ["train", None])
def test_a_pod_without_a_store_is_refused_before_the_body_runs(
    stage: Stage | None, uri: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    ran = []
    with ending_with(2), pod.plain_failures(stage, code_version("train")):
        ran.append("body")
    first, last = capsys.readouterr().err.splitlines()
    assert ran == []
    assert first.startswith("ganflow: MLFLOW_TRACKING_URI: is not set in this pod")
    assert last.startswith("ganflow: this is final")


def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, pod.plain_failures():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "ganflow: stopped\n"


def test_a_pod_without_a_volume_writes_where_every_pod_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GANFLOW_CHECKPOINTS", raising=False)
    monkeypatch.setenv("KFP_POD_NAME", "train-0")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert pod.states() == tmp_path / "ganflow"
