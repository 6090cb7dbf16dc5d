"""Against real stores: a database in a file, and a server that is killed."""

import dataclasses
import json
import multiprocessing
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from PIL import Image
from servers import MlflowServer

from ganflow.data.card import DataCard
from ganflow.errors import UserError
from ganflow.evaluation.protocol import Protocol
from ganflow.params import Params, parse
from ganflow.tracking import delivery, evaluations, runs, store
from ganflow.tracking.delivery import Sender
from ganflow.tracking.runs import RunRef

DIGEST = "sha256:" + "0123456789abcdef" * 4
PROTOCOL = Protocol(
    extractor="classifier",
    extractor_digest="sha256:1",
    feature_dimension=64,
    resize="none",
    split="test",
    reals=500,
    fakes=500,
    compared=500,
    searched=2000,
    data_digest=DIGEST,
    code_version="1",
)


@pytest.fixture
def params() -> Params:
    return parse({"model": {"family": "dcgan"}})


class Writer:
    """Writes a journal as a training does."""

    def __init__(self, state: Path) -> None:
        self.state = state
        (state / "samples").mkdir(parents=True, exist_ok=True)
        self.time = 1_700_000_000_000

    def _append(self, text: str) -> None:
        with (self.state / "journal.jsonl").open("a") as file:
            file.write(text)

    def _line(self, images: int, **content: object) -> None:
        self.time += 1
        self._append(json.dumps({"images": images, "time": self.time, **content}) + "\n")

    def values(self, images: int) -> None:
        self._line(images, values={"train/generator_loss": images / 2, "train/discriminator_loss": images / 4})

    def samples(self, images: int) -> None:
        name = f"samples/{images:09d}.png"
        Image.new("L", (32, 16)).save(self.state / name)
        self._line(images, samples=name)

    def warning(self, images: int, kind: str) -> None:
        self._line(images, warning={"kind": kind, "text": f"it is {kind}"})

    def status(self, images: int, status: str) -> None:
        self._line(images, status=status)

    def torn(self) -> None:
        self._append('{"images": 9, "ti')


@pytest.fixture
def writer(repository: Path) -> Writer:
    return Writer(repository / ".ganflow" / "train" / "abc" / "state")


def opened(writer: Writer, params: Params, card: DataCard) -> RunRef:
    return runs.resume_run(params, card, writer.state)


def run_of(ref: RunRef) -> Run:
    return MlflowClient(store.tracking_uri()).get_run(ref.run_id)


def curve(ref: RunRef, name: str = "train/generator_loss") -> list[tuple[int, float]]:
    history = MlflowClient(store.tracking_uri()).get_metric_history(ref.run_id, name)
    return [(point.step, point.value) for point in history]


def pictures(ref: RunRef) -> list[str]:
    found = MlflowClient(store.tracking_uri()).list_artifacts(ref.run_id, "images")
    return [file.path for file in found]


# The store


def test_default_store_lies_at_home(repository: Path) -> None:
    assert store.tracking_uri() == f"sqlite:///{repository}/mlflow.db"


def test_relative_database_lies_at_home(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "inside").mkdir()
    monkeypatch.chdir(repository / "inside")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/my.db")
    assert store.tracking_uri() == f"sqlite:///{repository}/runs/my.db"


def test_absolute_database_and_servers_stay_as_they_are(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("sqlite:////data/my.db", "https://mlflow.example.org/prefix"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert store.tracking_uri() == uri


def test_artifacts_of_a_local_store_lie_at_home_wherever_it_is_used(
    repository: Path, params: Params, card: DataCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = repository / ".dvc" / "tmp" / "exps" / "tmp1"
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    run = run_of(runs.open_run(params, card))
    assert run.info.artifact_uri == (repository / "mlartifacts/ganflow").as_uri() + f"/{run.info.run_id}/artifacts"


def test_store_in_a_folder_with_odd_letters(
    tmp_path: Path, mlflow_database: Path, params: Params, card: DataCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "Zoë's 100%20 runs"
    root.mkdir()
    (root / "params.yaml").touch()
    (root / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(root)
    ref = runs.open_run(params, card)
    MlflowClient(store.tracking_uri()).log_text(ref.run_id, "hello", "note.txt")
    assert [file.name for file in root.rglob("note.txt")] == ["note.txt"]


def _find_experiment(gate: Barrier, answers: "Queue[str]") -> None:
    gate.wait()
    answers.put(store.experiment_id(store.connect(), "both"))


def test_two_that_start_at_once_share_a_new_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///new.db")
    fork = multiprocessing.get_context("fork")  # importing mlflow twice more takes longer than the test
    gate, answers = fork.Barrier(2), fork.Queue()
    both = [fork.Process(target=_find_experiment, args=(gate, answers)) for _ in range(2)]
    for process in both:
        process.start()
    assert [answers.get(timeout=100) for _ in both] == ["1", "1"]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]


def test_deleted_experiment_is_the_users_to_restore(repository: Path, params: Params, card: DataCard) -> None:
    ref = runs.open_run(params, card)
    MlflowClient(store.tracking_uri()).delete_experiment(ref.experiment_id)
    with pytest.raises(UserError, match=r"'ganflow' was deleted .* restore --experiment-id 1"):
        runs.open_run(params, card)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://me:s3cret@127.0.0.1:9", r"^http://127.0.0.1:9: the MLflow server does not answer .*refused"),
        ("http://nowhere.invalid:5000", r"^http://nowhere.invalid:5000: the MLflow server does not answer"),
        ("http://", "names no host"),
        ("nonsense://x/y", "^nonsense://x/y: MLflow cannot use this store"),
        ("mlruns", "^mlruns: MLflow cannot use this store"),
        ("postgresql://me:s3cret@127.0.0.1:9/x", r"^postgresql://127.0.0.1:9/x: MLflow cannot use this store"),
        ("sqlite:///params.yaml/x.db", "MLflow cannot use this store"),
        ("sqlite:///text.db", "file is not a database"),
    ],
)
def test_store_that_cannot_be_used(repository: Path, monkeypatch: pytest.MonkeyPatch, uri: str, said: str) -> None:
    (repository / "text.db").write_text("not a database, but long enough to be looked at" * 50)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    start = time.monotonic()
    with pytest.raises(UserError, match=said) as caught:
        store.connect()
    assert time.monotonic() - start < 12
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("status", "said"), [(401, "refuses access"), (403, "refuses access"), (500, "cannot use")])
def test_server_that_refuses(repository: Path, monkeypatch: pytest.MonkeyPatch, status: int, said: str) -> None:
    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def do_POST(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Refusal) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{refusing.server_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(UserError, match=f"^http://127.0.0.1:{refusing.server_port}: .*{said}"):
            store.connect()
        refusing.shutdown()


def test_server_that_accepts_and_stays_silent(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match=r"does not answer .*timed out"):
            store.connect()


# The run of a training


def test_run_shows_parameters_data_and_origin(
    repository: Path, params: Params, card: DataCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "bold-heron")
    monkeypatch.setenv("KFP_RUN_ID", "7")
    run = run_of(runs.open_run(params, card))
    assert run.info.status == "RUNNING"
    assert run.info.run_name.startswith("digits-16px-dcgan-")
    assert run.data.params["train.batch_size"] == "64"
    assert run.data.params["model.family"] == "dcgan"
    assert not [name for name in run.data.params if name.startswith(("evaluate", "register"))]
    assert run.data.tags["dvc.experiment"] == "bold-heron"
    assert run.data.tags["kfp.run_id"] == "7"
    assert run.data.tags["ganflow.data_digest"] == DIGEST
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", DIGEST[7:43])
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]


def test_git_commit_is_noted(repository: Path, params: Params, card: DataCard) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "params.yaml"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    tags = run_of(runs.open_run(params, card)).data.tags
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["mlflow.source.git.dirty"] == "false"
    (repository / "params.yaml").write_text("seed: 1")
    assert run_of(runs.open_run(params, card)).data.tags["mlflow.source.git.dirty"] == "true"


def test_run_of_kubeflow_is_the_parent(
    repository: Path, params: Params, card: DataCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(store.tracking_uri())
    experiment = client.create_experiment("kfp")
    parent = client.create_run(experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", parent.info.run_id)
    run = run_of(runs.open_run(params, card))
    assert run.info.run_id != parent.info.run_id
    assert run.info.experiment_id == experiment
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert client.get_run(parent.info.run_id).info.status == "RUNNING"
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert "mlflow.parentRunId" not in run_of(runs.open_run(params, card)).data.tags


def test_resumed_training_keeps_its_run(writer: Writer, params: Params, card: DataCard) -> None:
    assert opened(writer, params, card) == opened(writer, params, card)


def test_deleted_run_is_replaced_and_gets_the_whole_journal(writer: Writer, params: Params, card: DataCard) -> None:
    first = opened(writer, params, card)
    writer.values(8)
    with Sender(writer.state) as sender:
        assert sender.close() == 0
    MlflowClient(store.tracking_uri()).delete_run(first.run_id)
    second = opened(writer, params, card)
    assert second.run_id != first.run_id
    with Sender(writer.state) as sender:
        assert sender.close() == 0
    assert curve(second) == [(8, 4.0)]


def test_resume_goes_on_while_the_server_is_away(
    writer: Writer, params: Params, card: DataCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="does not answer"):
        opened(writer, params, card)
    known = RunRef("0" * 32, uri, "1")
    runs.write_run(writer.state, known)
    assert opened(writer, params, card) == known


# The journal on its way


def test_journal_arrives(writer: Writer, params: Params, card: DataCard) -> None:
    ref = opened(writer, params, card)
    with Sender(writer.state, interval=0.05) as sender:
        writer.samples(0)
        for images in range(8, 800, 8):
            writer.values(images)
        writer.samples(800)
        writer.warning(800, "saturated")
        writer.status(800, "FINISHED")
        writer.torn()
        assert sender.close() == 0
    assert curve(ref) == [(images, images / 2) for images in range(8, 800, 8)]
    run = run_of(ref)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == writer.time
    assert run.data.tags["mlflow.loggedImages"] == "True"
    assert run.data.tags["ganflow.warning.saturated"] == "at 800 images: it is saturated"
    assert len(pictures(ref)) == 4


def test_many_points_go_in_more_than_one_batch(writer: Writer, params: Params, card: DataCard) -> None:
    ref = opened(writer, params, card)
    for images in range(1200):
        writer.values(images)
    with Sender(writer.state) as sender:
        assert sender.close() == 0
    assert len(curve(ref)) == 1200


def test_pictures_are_named_as_mlflow_names_them(writer: Writer, params: Params, card: DataCard) -> None:
    ref = opened(writer, params, card)
    writer.samples(40)
    with Sender(writer.state) as sender:
        sender.close()
    ours = pictures(ref)
    for path in ours:
        MlflowClient(store.tracking_uri())._tracking_client._get_artifact_repo(ref.run_id).delete_artifacts(path)
    picture = Image.open(writer.state / "samples" / "000000040.png")
    MlflowClient(store.tracking_uri()).log_image(
        ref.run_id, picture, key="samples", step=40, timestamp=writer.time, synchronous=True
    )
    theirs = pictures(ref)
    uuid = len("0d2cf1c8-7d0f-5a43-8f8e-1e1a5d8c9a39")
    assert len(ours) == 2
    for our, their in zip(ours, theirs, strict=True):
        head = len("images/samples+step+40+timestamp+") + 14
        assert our[:head] == their[:head]
        assert our[head + uuid :] == their[head + uuid :]


def test_sending_again_changes_nothing(writer: Writer, params: Params, card: DataCard) -> None:
    ref = opened(writer, params, card)
    writer.values(8)
    writer.samples(8)
    writer.status(8, "FINISHED")
    for _ in range(2):
        with Sender(writer.state) as sender:
            assert sender.close() == 0
        (writer.state / "cursor.json").unlink()
    assert curve(ref) == [(8, 4.0)]
    assert len(pictures(ref)) == 2
    assert run_of(ref).info.status == "FINISHED"


def test_resumed_run_is_running_again(writer: Writer, params: Params, card: DataCard) -> None:
    ref = opened(writer, params, card)
    writer.values(8)
    writer.status(8, "KILLED")
    with Sender(writer.state) as sender:
        sender.close()
    assert run_of(ref).info.status == "KILLED"
    writer.values(16)
    with Sender(writer.state) as sender:
        sender.close()
    assert run_of(ref).info.status == "RUNNING"


def test_refused_point_does_not_hold_up_the_others(
    writer: Writer, params: Params, card: DataCard, caplog: pytest.LogCaptureFixture
) -> None:
    ref = opened(writer, params, card)
    writer.values(8)
    writer._line(12, values={"not/a/name?!": 1.0})
    writer._append("rubbish\n")
    writer.values(16)
    with Sender(writer.state) as sender:
        assert sender.close() == 0
    assert curve(ref) == [(8, 4.0), (16, 8.0)]
    assert "refuses the points at 12 images" in caplog.text
    assert "not JSON" in caplog.text


def test_picture_that_cannot_be_stored_waits_for_its_turn(
    writer: Writer, params: Params, card: DataCard, repository: Path
) -> None:
    ref = opened(writer, params, card)
    obstacle = repository / "mlartifacts"
    obstacle.write_text("a file in the place of a folder")
    writer.samples(0)
    writer.values(8)
    with Sender(writer.state, interval=0.05) as sender:
        assert sender.close(timeout=0.5) == 1
    assert curve(ref) == [(8, 4.0)]
    obstacle.unlink()
    assert delivery.sync(repository / ".ganflow") == 1
    assert len(pictures(ref)) == 2
    assert delivery.sync(repository / ".ganflow") == 0


def test_deleted_run_does_not_stop_a_training(
    writer: Writer, params: Params, card: DataCard, caplog: pytest.LogCaptureFixture
) -> None:
    ref = opened(writer, params, card)
    MlflowClient(store.tracking_uri()).delete_run(ref.run_id)
    writer.values(8)
    with Sender(writer.state, interval=0.05) as sender:
        assert sender.close(timeout=10) == 1
    assert caplog.text.count("was deleted") == 1


def test_sync_deletes_what_is_sent(writer: Writer, params: Params, card: DataCard, repository: Path) -> None:
    ref = opened(writer, params, card)
    writer.values(8)
    writer.status(8, "FINISHED")
    unsent = repository / ".ganflow" / "unsent" / "abc"
    unsent.parent.mkdir()
    writer.state.rename(unsent)
    assert delivery.sync(repository / ".ganflow") == 2
    assert not unsent.exists()
    assert run_of(ref).info.status == "FINISHED"


def test_sync_says_that_the_server_is_away_and_keeps_everything(writer: Writer, repository: Path) -> None:
    runs.write_run(writer.state, RunRef("0" * 32, "http://127.0.0.1:9", "1"))
    writer.values(8)
    with pytest.raises(UserError, match="does not answer"):
        delivery.sync(repository / ".ganflow")
    assert (writer.state / "journal.jsonl").exists()


def test_server_killed_in_the_middle_misses_no_point(
    writer: Writer, server: MlflowServer, params: Params, card: DataCard, caplog: pytest.LogCaptureFixture
) -> None:
    ref = opened(writer, params, card)
    steps = range(8, 808, 8)
    with Sender(writer.state, interval=0.05) as sender:
        for images in steps:
            writer.values(images)
            if images == 240:
                writer.samples(images)
                server.kill()
            if images == 480:
                time.sleep(0.3)
            time.sleep(0.005)
        writer.status(800, "FINISHED")
        server.start()
        assert sender.close(timeout=60) == 0
    (writer.state / "cursor.json").unlink()  # as after a kill between the store's answer and ours
    with Sender(writer.state) as sender:
        assert sender.close(timeout=40) == 0
    assert curve(ref) == [(images, images / 2) for images in steps]
    assert len(pictures(ref)) == 2
    assert run_of(ref).info.status == "FINISHED"
    assert caplog.text.count("takes no points") == 1
    assert caplog.text.count("is back") == 1


def test_server_that_never_comes_back_costs_a_training_nothing(writer: Writer) -> None:
    runs.write_run(writer.state, RunRef("0" * 32, "http://127.0.0.1:9", "1"))
    with Sender(writer.state, interval=0.05) as sender:
        start = time.monotonic()
        for images in range(100):
            writer.values(images)
        assert time.monotonic() - start < 1
        assert sender.close(timeout=1) == 100
        assert time.monotonic() - start < 5


# Evaluations


@pytest.fixture
def trained(repository: Path, params: Params, card: DataCard) -> Path:
    """What the train stage leaves, with its run."""
    folder = repository / "artifacts" / "train"
    (folder / "samples").mkdir(parents=True)
    (folder / "history.csv").write_text("images,generator_loss,discriminator_loss\n8,4.0,2.0\n16,8.0,\n")
    Image.new("L", (32, 16)).save(folder / "samples" / "000000016.png")
    ref = runs.open_run(params, card)
    runs.write_run(folder, ref)
    MlflowClient(store.tracking_uri()).set_terminated(ref.run_id, "FINISHED")
    return folder


@pytest.fixture
def evaluated(repository: Path) -> Path:
    folder = repository / "artifacts" / "evaluate"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"fid": 9.5, "discriminator_accuracy": None, "note": "text"}))
    (folder / "protocol.json").write_text(json.dumps(PROTOCOL.to_dict()))
    (folder / "measured.json").write_text(json.dumps({"images": 16, "weights_digest": "sha256:1"}))
    Image.new("L", (32, 16)).save(folder / "samples.png")
    return folder


def changed(params: Params, images: int) -> Params:
    return dataclasses.replace(params, evaluate=dataclasses.replace(params.evaluate, images=images))


def test_first_evaluation_joins_the_training(params: Params, card: DataCard, trained: Path, evaluated: Path) -> None:
    training = runs.read_run(trained)
    for _ in range(2):
        assert evaluations.log_evaluation(params, card, trained, evaluated) == training
    run = run_of(training)
    assert run.info.status == "FINISHED"
    assert run.data.params["evaluate.images"] == "10000"
    assert run.data.metrics["evaluate/fid"] == 9.5
    assert "evaluate/discriminator_accuracy" not in run.data.metrics
    assert run.data.tags["ganflow.protocol"] == PROTOCOL.digest
    assert run.data.tags["ganflow.caution"] == "none"
    assert curve(training, "evaluate/fid") == [(16, 9.5)]
    client = MlflowClient(store.tracking_uri())
    files = [file.path for file in client.list_artifacts(training.run_id, "evaluation")]
    names = ("measured.json", "metrics.json", "protocol.json", "samples.png")
    assert files == [f"evaluation/{name}" for name in names]


def test_cautions_are_tagged(params: Params, card: DataCard, trained: Path, evaluated: Path) -> None:
    few = dataclasses.replace(PROTOCOL, reals=60, fakes=60)
    (evaluated / "protocol.json").write_text(json.dumps(few.to_dict()))
    run = run_of(evaluations.log_evaluation(params, card, trained, evaluated))
    assert run.data.tags["ganflow.caution"] == few.cautions[0]


def test_an_evaluation_without_its_record_is_refused(
    params: Params, card: DataCard, trained: Path, evaluated: Path
) -> None:
    (evaluated / "measured.json").unlink()
    with pytest.raises(UserError, match=r"measured\.json: there is no such file; run `ganflow evaluate` first"):
        evaluations.log_evaluation(params, card, trained, evaluated)


def test_changed_evaluation_has_a_run_of_its_own(
    params: Params, card: DataCard, trained: Path, evaluated: Path
) -> None:
    training = evaluations.log_evaluation(params, card, trained, evaluated)
    other = evaluations.log_evaluation(changed(params, 100), card, trained, evaluated)
    third = evaluations.log_evaluation(changed(params, 200), card, trained, evaluated)
    assert len({training.run_id, other.run_id, third.run_id}) == 3
    assert evaluations.log_evaluation(changed(params, 100), card, trained, evaluated) == other
    assert evaluations.log_evaluation(params, card, trained, evaluated) == training
    run = run_of(other)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.endswith("-evaluation")
    assert run.data.tags["mlflow.parentRunId"] == training.run_id
    assert run.data.tags["ganflow.trained_by"] == training.run_id
    assert run.data.params["evaluate.images"] == "100"
    assert run.data.params["train.batch_size"] == "64"
    assert run_of(training).data.params["evaluate.images"] == "10000"


@pytest.mark.parametrize("lost", ["deleted", "elsewhere"])
def test_lost_training_run_is_made_again_from_its_outputs(
    params: Params, card: DataCard, trained: Path, evaluated: Path, lost: str
) -> None:
    old = runs.read_run(trained)
    if lost == "deleted":
        MlflowClient(store.tracking_uri()).delete_run(old.run_id)
    else:
        old = dataclasses.replace(old, run_id="f" * 32, tracking_uri="http://elsewhere")
        runs.write_run(trained, old)
    new = evaluations.log_evaluation(params, card, trained, evaluated)
    assert evaluations.log_evaluation(params, card, trained, evaluated) == new
    run = run_of(new)
    assert run.data.tags["ganflow.trained_by"] == old.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["train.batch_size"] == "64"
    assert run.data.metrics["evaluate/fid"] == 9.5
    assert curve(new) == [(8, 4.0), (16, 8.0)]
    assert curve(new, "train/discriminator_loss") == [(8, 2.0)]
    assert len(pictures(new)) == 2


def test_failed_evaluation_leaves_the_training_as_it_was(
    params: Params, card: DataCard, trained: Path, evaluated: Path
) -> None:
    (evaluated / "metrics.json").write_text("[")
    with pytest.raises(UserError, match=r"metrics\.json: cannot be read"):
        evaluations.log_evaluation(params, card, trained, evaluated)
    assert run_of(runs.read_run(trained)).info.status == "FINISHED"


def test_equal_points_are_one_point(repository: Path, params: Params, card: DataCard) -> None:
    """What sending again rests on: MLflow keeps one of two equal points, also beside a new one."""
    ref = runs.open_run(params, card)
    client = MlflowClient(store.tracking_uri())
    point = Metric("m", 1.0, 1_700_000_000_000, 8)
    client.log_batch(ref.run_id, metrics=[point])
    client.log_batch(ref.run_id, metrics=[point, Metric("m", 2.0, 1_700_000_000_001, 16)])
    assert curve(ref, "m") == [(8, 1.0), (16, 2.0)]
