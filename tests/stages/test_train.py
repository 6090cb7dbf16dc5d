"""The train stage on a tiny packed data set, with a real MLflow store."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from rounds import before_round, poison
from safetensors.torch import load_file

from ganflow import cli, params
from ganflow.data.format import Format
from ganflow.data.packed import PackedData
from ganflow.data.packing import pack
from ganflow.data.sources import ArraySource
from ganflow.errors import UserError
from ganflow.evaluation import classifier
from ganflow.evaluation.extractor import load_extractor
from ganflow.evaluation.validation import ValidationFid
from ganflow.params import Params
from ganflow.stages import train as stage
from ganflow.training import checkpoint, health, loop, weights
from ganflow.training.match import Match
from ganflow.training.precision import pick_precision
from ganflow.training.team import ALONE
from ganflow.training.weights import load_game, read_origin

TREE = {
    "seed": 3,
    "data": {"resolution": 8},
    "model": {"family": "vanilla", "hidden_units": 4, "latent_dim": 4},
    "train": {
        "images": 400,
        "batch_size": 8,
        "device": "cpu",
        "tick_every_images": 80,
        "sample_every_images": 200,
        "checkpoint_every_images": 120,
    },
}
TICKS = [80, 160, 240, 320, 400]
SAMPLES = [0, 200, 400]
WEIGHTS = ("generator.safetensors", "generator_live.safetensors", "discriminator.safetensors")
RECORD = ("history.csv", "warnings.json", "run.json")
PREPARED, TRAINED = Path("artifacts/prepare"), Path("artifacts/train")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set of sixty random pictures."""
    out = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    source = ArraySource({"train": (images, rng.integers(0, 2, 60))}, ["a", "b"])
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.1}
    pack(source, out, name="dots", source_name="digits", packed_format=Format(1, 8), seed=0, **fractions)  # type: ignore[arg-type]
    return out


@pytest.fixture
def ready(repository: Path, prepared: Path) -> Path:
    """A repository whose data is prepared."""
    (repository / "params.yaml").write_text(json.dumps(TREE))
    shutil.copytree(prepared, repository / PREPARED)
    return repository


def undisturbed(folder: Path) -> Path:
    """Train the same with other states and outputs, and give the outputs."""
    stage.train(params.parse(TREE), PREPARED, folder / "out", folder / "states")
    return folder / "out"


def assert_equal_weights(one: Path, other: Path) -> None:
    for name in WEIGHTS:
        assert (one / name).read_bytes() == (other / name).read_bytes()


def run_of(repository: Path, folder: Path = TRAINED) -> Run:
    reference = json.loads((folder / "run.json").read_text())
    return MlflowClient(f"sqlite:///{repository}/mlflow.db").get_run(reference["run_id"])


def all_runs(repository: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def points(repository: Path, run: Run, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "history.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def state_of(repository: Path) -> Path:
    (state,) = (path for path in (repository / ".ganflow" / "train").iterdir() if path.is_dir())
    return state


def journal(state: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (state / "journal.jsonl").read_text().splitlines()]


def assert_complete(repository: Path, run: Run) -> None:
    """MLflow has every point that history.csv has, once, and every grid of samples."""
    assert run.info.status == "FINISHED"
    rows = history(TRAINED)
    assert [row["images"] for row in rows] == TICKS
    for name in set(rows[0]) - {"images"}:
        assert points(repository, run, f"train/{name}") == [(row["images"], pytest.approx(row[name])) for row in rows]
    pictures = MlflowClient(f"sqlite:///{repository}/mlflow.db").list_artifacts(run.info.run_id, "images")
    steps = [int(picture.path.split("+")[2]) for picture in pictures if picture.path.endswith(".png")]
    assert sorted(steps) == SAMPLES


def test_a_training_from_start_to_end(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TRAINED.mkdir(parents=True)
    (TRAINED / "of_another_training.txt").touch()
    assert cli.main(["train"]) == 0
    assert {path.name for path in TRAINED.iterdir()} == {*WEIGHTS, *RECORD, "samples"}
    assert sorted(path.name for path in (TRAINED / "samples").iterdir()) == [f"{n:09d}.png" for n in SAMPLES]
    run = run_of(ready)
    assert_complete(ready, run)
    assert run.data.params["train.images"] == "400"
    assert run.data.params["model.hidden_units"] == "4"
    assert run.data.tags["ganflow.precision"] == pick_precision("auto", torch.device("cpu"))
    assert json.loads((TRAINED / "warnings.json").read_text()) == []
    assert set(history(TRAINED)[0]) == {
        *("images", "images_per_second", "data_wait", "host_memory_gib"),
        *("discriminator_loss", "discriminator_grad_norm", "generator_loss", "generator_grad_norm"),
        *("d_real", "d_fake", "batch_accuracy", "sample_variety"),
    }
    assert [path for path in (ready / ".ganflow" / "train").iterdir() if path.is_dir()] == []
    assert not (ready / ".ganflow" / "unsent").exists()

    game = load_game(TRAINED, "ema", torch.device("cpu"))
    made = game.generator(game.draw_inputs(4))
    assert made.shape == (4, 1, 8, 8)
    average, live = (load_file(TRAINED / name) for name in WEIGHTS[:2])
    assert all(torch.isfinite(tensor).all() for tensor in average.values())
    assert any(not torch.equal(average[name], live[name]) for name in average)


def test_a_warning_is_in_the_log_the_outputs_and_mlflow(
    ready: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, though the training is stopped and goes on."""
    monkeypatch.setattr(health, "_PERFECT", 0.0)
    with monkeypatch.context() as patched:
        before_round(patched, 264, lambda match: os.kill(os.getpid(), signal.SIGTERM))
        assert cli.main(["train"]) == 130
    assert cli.main(["train"]) == 0
    (warning,) = json.loads((TRAINED / "warnings.json").read_text())
    assert (warning["images"], warning["kind"]) == (240, "saturated")
    said = f"at 240 images {warning['text']}"
    assert [record.getMessage() for record in caplog.records if "saturates" in record.message] == [f"caution: {said}"]
    assert run_of(ready).data.tags["ganflow.warning.saturated"] == f"at 240 images: {warning['text']}"
    assert_complete(ready, run_of(ready))


def test_the_seed_decides_the_result(ready: Path) -> None:
    first, second = undisturbed(ready / "first"), undisturbed(ready / "second")
    assert_equal_weights(first, second)
    other = params.parse({**TREE, "seed": 4})
    stage.train(other, PREPARED, ready / "other", ready / "states")
    assert (ready / "other" / WEIGHTS[0]).read_bytes() != (first / WEIGHTS[0]).read_bytes()


DIES = """
import os, signal, sys
from ganflow.cli import main
from ganflow.training.match import Match
original = Match.play_round
def play_round(match):
    if match.images == 280:
        os.kill(os.getpid(), signal.SIGKILL)
    original(match)
Match.play_round = play_round
sys.exit(main(["train"]))
"""


def test_killed_and_started_again_is_as_undisturbed(ready: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", DIES], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    state = state_of(ready)
    assert (state / "checkpoint.safetensors").exists()
    before = journal(state)
    assert [line["images"] for line in before if "values" in line] == [80, 160, 240]
    run_id = json.loads((state / "run.json").read_text())["run_id"]
    assert not TRAINED.exists()

    assert cli.main(["train"]) == 0
    run = run_of(ready)
    assert run.info.run_id == run_id
    assert_complete(ready, run)
    assert len(all_runs(ready)) == 1
    stamps = {line["images"]: line["time"] for line in before if "values" in line}
    client = MlflowClient(f"sqlite:///{ready}/mlflow.db")
    sent = {m.step: m.timestamp for m in client.get_metric_history(run_id, "train/generator_loss")}
    assert {step: sent[step] for step in stamps} == stamps, "played again, the points keep their first time stamps"
    assert_equal_weights(TRAINED, undisturbed(ready / "undisturbed"))


@pytest.fixture
def handlers() -> Iterator[list[int]]:
    """Signals that reached nobody else, instead of ending the tests."""
    unheard: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        unheard.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    yield unheard
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_and_started_again(
    number: signal.Signals,
    ready: Path,
    handlers: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patched:
        before_round(patched, 136, lambda match: os.kill(os.getpid(), number))
        assert cli.main(["train"]) == 130
    message = capsys.readouterr().err
    assert "ganflow: stopped at 144 images, with a checkpoint: the same command goes on" in message
    folder = state_of(ready).relative_to(ready)
    assert f"`ganflow train --resume {folder} -S KEY.PATH=VALUE` goes on with another value" in message
    assert handlers == []
    os.kill(os.getpid(), number)
    assert handlers == [number], "the handlers from before are back"
    state = state_of(ready)
    last = journal(state)[-1]
    assert (last["images"], last["status"]) == (144, "KILLED")
    run = run_of(ready, state)
    assert run.info.status == "KILLED"
    assert [step for step, _ in points(ready, run, "train/generator_loss")] == [80]

    assert cli.main(["train"]) == 0
    assert run_of(ready).info.run_id == run.info.run_id
    assert_complete(ready, run_of(ready))
    assert_equal_weights(TRAINED, undisturbed(ready / "undisturbed"))


def test_a_second_signal_is_not_waited_for(handlers: list[int]) -> None:
    with stage._stop_signals() as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert handlers == [signal.SIGTERM]
        assert received == [signal.SIGTERM]
    with stage._stop_signals():
        pass
    signal.raise_signal(signal.SIGINT)
    assert handlers == [signal.SIGTERM, signal.SIGINT], "the handlers from before are back"


def test_divergence_ends_with_1_and_a_failed_run(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    TRAINED.mkdir(parents=True)
    (TRAINED / "earlier.txt").touch()
    with monkeypatch.context() as patched:
        before_round(patched, 176, poison)
        assert cli.main(["train"]) == 1
    message = capsys.readouterr().err
    assert "ganflow: a loss or a weight was not finite at 184 images; the last good checkpoint is kept" in message
    assert "Traceback" not in message
    state = state_of(ready)
    assert (state / "checkpoint.safetensors").exists()
    run = run_of(ready, state)
    assert run.info.status == "FAILED"
    assert [step for step, _ in points(ready, run, "train/generator_loss")] == [80, 160]
    assert [path.name for path in TRAINED.iterdir()] == ["earlier.txt"], "nothing is written over"

    assert cli.main(["train"]) == 0  # the accident does not come again
    assert_complete(ready, run_of(ready))
    assert run_of(ready).info.run_id == run.info.run_id


def test_rates_that_make_it_diverge(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any trick: Adam with the largest rates, and nothing remembered."""
    rates = ["generator_lr=1.0", "discriminator_lr=1.0", "beta1=0.999", "beta2=0.0", "images=20000"]
    status = cli.main(["train", *(part for rate in rates for part in ("-S", f"train.{rate}"))])
    message = capsys.readouterr().err
    (run,) = all_runs(ready)
    assert (status, run.info.status) == (1, "FAILED")
    assert "was not finite at" in message
    assert "Lower train.generator_lr and train.discriminator_lr" in message


def test_any_other_failure_is_a_failed_run(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(match: Match) -> None:
        raise MemoryError

    before_round(monkeypatch, 176, fail)
    with pytest.raises(MemoryError):
        cli.main(["train"])
    assert run_of(ready, state_of(ready)).info.status == "FAILED"


def test_what_mlflow_has_not_had_is_kept_and_sent_later(
    ready: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(stage.Sender, "_run", lambda sender: None)  # a store that is away
        assert cli.main(["train"]) == 0
    lines = len(TICKS) + len(SAMPLES) + 1
    assert f"{lines} journal lines did not reach MLflow; `ganflow sync` sends them" in caplog.text
    run = run_of(ready)
    assert run.info.status == "RUNNING"
    kept = ready / ".ganflow" / "unsent" / run.info.run_id
    assert not (kept / "checkpoint.safetensors").exists()

    capsys.readouterr()
    assert cli.main(["sync"]) == 0
    assert capsys.readouterr().out == f"ganflow: {lines} journal lines sent\n"
    assert_complete(ready, run_of(ready))
    assert not kept.exists()


def test_changed_parameters_have_a_state_and_a_run_of_their_own(
    ready: Path, handlers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        before_round(patched, 136, lambda match: os.kill(os.getpid(), signal.SIGTERM))
        assert cli.main(["train"]) == 130
    interrupted = state_of(ready)
    assert cli.main(["train", "-S", "train.beta1=0.4"]) == 0
    assert state_of(ready) == interrupted, "it can still be gone on with"
    assert len(all_runs(ready)) == 2


def test_a_device_that_is_not_there(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("there is an MPS device")
    assert cli.main(["train", "-S", "train.device=mps"]) == 2
    assert "train.device: torch finds no mps device here" in capsys.readouterr().err
    assert not (ready / ".ganflow" / "train").exists()
    with pytest.raises(UserError, match="torch finds no mps"):
        stage.train(params.parse({**TREE, "train": {"device": "mps"}}), PREPARED, TRAINED, ready / ".ganflow")


def test_two_that_train_the_same_take_turns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "train" / "digest"
    state.mkdir(parents=True)
    order: list[str] = []

    def other() -> None:
        with stage._alone(state):
            order.append("other")

    thread = threading.Thread(target=other)
    with stage._alone(state):
        thread.start()
        deadline = time.monotonic() + 10
        while "waiting for it to end" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
        shutil.rmtree(state)  # as a training does that has finished
    thread.join(10)
    assert order == ["first", "other"]
    assert "another process is training exactly this (digest)" in caplog.text
    assert state.is_dir()


def test_interrupted_training_keeps_its_count() -> None:
    assert loop.InterruptedTraining(5).images == loop.DivergedError(5).images == 5


# The best checkpoint

FIDS = {"fid_every_images": 60, "tick_every_images": 120}
MEASURED = [64, 120, 184, 240, 304, 360, 400]


@pytest.fixture(scope="module")
def classified(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data with its classifier."""
    out = tmp_path_factory.mktemp("classified") / "prepare"
    shutil.copytree(prepared, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_LEAST_IMAGES", 256)
        patch.setattr(classifier, "_MOST_IMAGES", 256)
        classifier.train_classifier(PackedData(out), 0, out)
    return out


def with_fids(**train: Any) -> Params:
    return params.parse({**TREE, "train": {**TREE["train"], **FIDS, **train}})  # type: ignore[dict-item]


def fid_of(folder: Path, prepared: Path) -> float:
    """Measure the averaged generator of finished weights once more."""
    packed, cpu = PackedData(prepared), torch.device("cpu")
    game = load_game(folder, "ema", cpu)
    return ValidationFid(packed, load_extractor("classifier", "", prepared, cpu)).of(game, game.generator)


def test_the_best_checkpoint_lies_beside_the_last(repository: Path, classified: Path) -> None:
    out = repository / "out"
    stage.train(with_fids(), classified, out, repository / "states")

    assert {path.name for path in out.iterdir()} == {*WEIGHTS, *RECORD, "fid.csv", "samples", "best"}
    assert {path.name for path in (out / "best").iterdir()} == {*WEIGHTS, "best.json"}
    run = run_of(repository, out)
    fids = points(repository, run, "train/validation_fid")
    assert [images for images, _ in fids] == MEASURED
    lowest = np.minimum.accumulate([fid for _, fid in fids]).tolist()
    assert points(repository, run, "train/best_fid") == list(zip(MEASURED, lowest, strict=True))
    with (out / "fid.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["images"]), float(row["validation_fid"])) for row in rows] == fids
    assert [float(row["best_fid"]) for row in rows] == lowest
    assert [row["images"] for row in history(out)] == [120, 240, 360, 400], "no row without losses, which plot as zero"
    assert not {"validation_fid", "best_fid"} & set(history(out)[0])

    kept = json.loads((out / "best" / "best.json").read_text())
    assert (kept["images"], kept["fid"]) == min(fids, key=lambda point: point[1])
    assert {read_origin(out / "best" / name).images for name in WEIGHTS} == {kept["images"]}
    assert fid_of(out / "best", classified) == pytest.approx(kept["fid"], rel=1e-6)
    assert fid_of(out, classified) == pytest.approx(fids[-1][1], rel=1e-6)
    assert [path for path in (repository / "states" / "train").iterdir() if path.is_dir()] == []


def test_a_best_checkpoint_has_the_networks_of_its_moment(
    repository: Path, classified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train to the same moment and no further: the best of a longer training is that training's last."""
    fids = iter([5.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr(stage.ValidationFid, "of", lambda *_: next(fids))
    longer, shorter = repository / "longer", repository / "shorter"
    stage.train(with_fids(), classified, longer, repository / "states")
    stage.train(with_fids(images=120, fid_every_images=0), classified, shorter, repository / "states")

    for name in WEIGHTS:
        best, last = (load_file(folder / name) for folder in (longer / "best", shorter))
        assert all(torch.equal(best[tensor], last[tensor]) for tensor in last)
    assert (longer / "best" / WEIGHTS[0]).read_bytes() != (longer / WEIGHTS[0]).read_bytes()


def test_measuring_changes_no_weight(repository: Path, classified: Path) -> None:
    for every in (0, 8, 1000):
        stage.train(with_fids(fid_every_images=every), classified, repository / str(every), repository / "states")

    for name in WEIGHTS:
        without, *measured = (load_file(repository / str(every) / name) for every in (0, 8, 1000))
        for other in measured:
            assert all(torch.equal(other[tensor], without[tensor]) for tensor in without)
    assert not (repository / "0" / "best").exists()
    assert not (repository / "0" / "fid.csv").exists()
    assert not points(repository, run_of(repository, repository / "0"), "train/best_fid")


@pytest.mark.parametrize("killed_at", [128, 200, 304])
def test_killed_and_started_again_has_the_same_best(
    killed_at: int, repository: Path, classified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.train(with_fids(), classified, repository / "undisturbed", repository / "others")

    def fail(match: Match) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        before_round(patched, killed_at, fail)
        with pytest.raises(MemoryError):
            stage.train(with_fids(), classified, repository / "out", repository / "states")
    stage.train(with_fids(), classified, repository / "out", repository / "states")

    assert_equal_weights(repository / "out", repository / "undisturbed")
    for path in (repository / "undisturbed" / "best").iterdir():
        assert (repository / "out" / "best" / path.name).read_bytes() == path.read_bytes()
    run, undisturbed = (run_of(repository, repository / name) for name in ("out", "undisturbed"))
    for name in ("train/validation_fid", "train/best_fid"):
        assert points(repository, run, name) == points(repository, undisturbed, name)


def test_a_broken_generator_diverges_by_its_fid(
    repository: Path, classified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_round(monkeypatch, 128, poison)
    with pytest.raises(loop.DivergedError) as caught:
        stage.train(with_fids(fid_every_images=8), classified, repository / "out", repository / "states")
    assert caught.value.images == 136
    assert not (repository / "out").exists()


def test_a_fid_without_a_classifier_is_refused_before_anything_is_trained(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Match, "play_round", lambda match: pytest.fail("a round was played"))
    assert cli.main(["train", "-S", "train.fid_every_images=100"]) == 2
    message = capsys.readouterr().err
    assert "holds no classifier" in message
    assert "train.fid_extractor: inception" in message
    missing = ["-S", "train.fid_extractor=inception", "-S", "evaluate.inception_weights=missing.pth"]
    assert cli.main(["train", "-S", "train.fid_every_images=100", *missing]) == 2
    assert "there is no file missing.pth" in capsys.readouterr().err
    assert all_runs(ready) == []
    assert not TRAINED.exists()


def test_a_fid_of_inception(ready: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[tuple[str, str]] = []

    def load(kind: str, weights: str, *_: Any) -> Any:
        asked.append((kind, weights))
        return SimpleNamespace(dim=2048)

    monkeypatch.setattr(stage, "load_extractor", load)
    fid = SimpleNamespace(reals=129, fakes=1000, protocol={}, of=lambda *_: 1.0)
    monkeypatch.setattr(stage, "ValidationFid", lambda *_: fid)
    inception = {"extractor": "classifier", "inception_weights": "given.pth"}
    tree = {**TREE, "train": {**TREE["train"], **FIDS, "fid_extractor": "inception"}, "evaluate": inception}  # type: ignore[dict-item]
    stage.train(params.parse(tree), PREPARED, TRAINED, ready / ".ganflow")
    assert asked == [("inception", "given.pth")]
    assert "caution: 129 validation pictures are too few for 2048 features" in caplog.text


def test_what_is_kept_for_mlflow_has_no_networks(
    repository: Path, classified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.Sender, "_run", lambda sender: None)  # a store that is away
    stage.train(with_fids(), classified, repository / "out", repository / "states")

    (kept,) = (repository / "states" / "unsent").iterdir()
    assert not (kept / "best").exists()
    assert (kept / "journal.jsonl").exists()
    assert (repository / "out" / "best" / "best.json").exists()


# From the checkpoint of another training

RATES = ["-S", "train.generator_lr=0.0001", "-S", "train.discriminator_lr=0.00005"]


def interrupt(images: int, *options: str) -> Path:
    """Start a training that is told to stop, and give the folder of its state."""
    before = set(Path(".ganflow/train").glob("*/"))
    with pytest.MonkeyPatch.context() as patched:
        before_round(patched, images - 8, lambda match: os.kill(os.getpid(), signal.SIGTERM))
        assert cli.main(["train", *options]) == 130
    (state,) = set(Path(".ganflow/train").glob("*/")) - before
    return state


def gone_on_by_hand(state: Path, **train: Any) -> Match:
    """Restore a checkpoint into a match that was made with other parameters, and play it to its end."""
    parsed = params.parse({**TREE, "train": {**TREE["train"], **train}})  # type: ignore[dict-item]
    match = stage._new_match(parsed, PackedData(PREPARED), torch.device("cpu"), ALONE)
    assert checkpoint.restore(match, state)
    while match.images < parsed.train.images:
        match.play_round()
    return match


def test_resumed_with_other_rates(ready: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = interrupt(216)
    of_source, points_of_source = run_of(ready, source), journal(source)
    by_hand = gone_on_by_hand(source, generator_lr=0.0001, discriminator_lr=0.00005, images=480)
    with_old_rates = gone_on_by_hand(source, images=480)

    assert cli.main(["train", "--resume", str(source), *RATES, "-S", "train.images=480"]) == 0

    made = load_file(TRAINED / "generator_live.safetensors")
    expected, other = by_hand.game.generator.state_dict(), with_old_rates.game.generator.state_dict()
    assert all(torch.equal(made[name], expected[name]) for name in expected)
    assert not any(torch.equal(made[name], other[name]) for name in other), "the rates are really the new ones"
    run = run_of(ready)
    assert run.info.run_id != of_source.info.run_id
    assert run.data.tags["ganflow.resumed_from"] == of_source.info.run_id
    assert run.data.tags["ganflow.resumed_from_images"] == "216"
    assert run.data.params["train.generator_lr"] == "0.0001"
    rows = history(TRAINED)
    assert [row["images"] for row in rows] == [80, 160, 240, 320, 400, 480]
    assert points(ready, run, "train/generator_loss") == [(row["images"], row["generator_loss"]) for row in rows]
    assert points(ready, run, "train/generator_loss")[:2] == points(ready, of_source, "train/generator_loss")
    assert sorted(path.name for path in (TRAINED / "samples").iterdir()) == [f"{n:09d}.png" for n in (0, 200, 400, 480)]
    assert run_of(ready, source).info.status == "KILLED", "the other training is as it was"
    assert journal(source) == points_of_source
    assert state_of(ready) == ready / source
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_resumed_training_is_resumed_by_the_same_command(ready: Path) -> None:
    """It has a state of its own, which neither the other training nor a plain one ever takes for theirs."""
    source = interrupt(144)
    command = ["--resume", str(source), *RATES]
    shutil.copytree(ready, ready.parent / "copy")
    assert cli.main(["train", *command]) == 0
    shutil.copytree(TRAINED, ready / "undisturbed")
    shutil.rmtree(ready / ".ganflow")
    shutil.copytree(ready.parent / "copy" / ".ganflow", ready / ".ganflow")

    state = interrupt(320, *command)
    assert [line["images"] for line in journal(state) if "values" in line] == [80, 160, 240, 320]
    run = run_of(ready, state)
    assert cli.main(["train", *RATES]) == 0
    assert run_of(ready).info.run_id != run.info.run_id, "a plain training begins at the beginning"
    assert (TRAINED / WEIGHTS[0]).read_bytes() != (ready / "undisturbed" / WEIGHTS[0]).read_bytes()
    assert cli.main(["train", *command]) == 0
    assert run_of(ready).info.run_id == run.info.run_id
    assert_equal_weights(TRAINED, ready / "undisturbed")
    assert_complete(ready, run_of(ready))


def test_resumed_with_nothing_changed_is_the_same_training(ready: Path) -> None:
    state = interrupt(144)
    run = run_of(ready, state)
    assert cli.main(["train", "--resume", str(state)]) == 0
    assert run_of(ready).info.run_id == run.info.run_id
    assert_complete(ready, run_of(ready))
    assert_equal_weights(TRAINED, undisturbed(ready / "undisturbed"))
    assert not state.exists()


def test_the_folder_of_a_resumed_training_can_be_named_too(ready: Path) -> None:
    source = interrupt(144)
    state = interrupt(320, "--resume", str(source), *RATES)
    run = run_of(ready, state)
    assert cli.main(["train", "--resume", str(state), *RATES]) == 0
    assert run_of(ready).info.run_id == run.info.run_id
    assert not state.exists()
    assert source.exists()


def test_a_resumed_training_whose_checkpoints_are_damaged_begins_as_it_did(ready: Path) -> None:
    source = interrupt(144)
    command = ["--resume", str(source), *RATES]
    shutil.copytree(ready, ready.parent / "copy")
    state = interrupt(320, *command)
    for path in state.glob("checkpoint*"):
        path.write_bytes(b"damaged")
    assert cli.main(["train", *command]) == 0
    assert_complete(ready, run_of(ready))
    shutil.copytree(TRAINED, ready / "damaged")
    shutil.rmtree(ready / ".ganflow")
    shutil.copytree(ready.parent / "copy" / ".ganflow", ready / ".ganflow")
    assert cli.main(["train", *command]) == 0
    assert_equal_weights(TRAINED, ready / "damaged")


def test_what_makes_a_checkpoint_unusable_is_named(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = interrupt(216)
    changed = ["-S", "seed=4", "-S", "model.hidden_units=5", "-S", "train.batch_size=16", "-S", "train.images=160"]
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(source), *changed]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"ganflow: --resume {source}: its checkpoint cannot be used with these parameters:",
        "  seed: 3 there, 4 here",
        "  model.hidden_units: 4 there, 5 here",
        "  train.batch_size: 8 there, 16 here",
        "  train.images: 216 are shown there, 160 are asked for here",
        "Take them back, or train from the beginning without --resume",
    ]
    assert len(all_runs(ready)) == 1
    assert not TRAINED.exists()
    assert cli.main(["train", "--resume", "missing"]) == 2
    assert "ganflow: --resume missing: holds no whole checkpoint" in capsys.readouterr().err


def test_what_another_version_left_is_taken_on_demand_alone(
    ready: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", "0.0.1")
        source = interrupt(144)
    with monkeypatch.context() as patched:
        before_round(patched, 0, lambda match: pytest.fail("it went on, or it began: unasked"))
        assert cli.main(["train", "--resume", str(source)]) == 0
    assert "was written by another version of ganflow's code or of torch" in caplog.text
    assert run_of(ready).data.tags["ganflow.resumed_from_images"] == "144"
    played: list[int] = []
    with monkeypatch.context() as patched:
        before_round(patched, 0, lambda match: played.append(0))
        assert cli.main(["train"]) == 0
    assert played == [0], "a plain training never takes it up"
    assert f"an interrupted training with another version of the code lies in {ready / source}" in caplog.text


def test_a_diverged_training_names_the_command_that_goes_on(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        before_round(patched, 176, poison)
        assert cli.main(["train", "--params", "./params.yaml", "-S", "train.beta1=0.4"]) == 1
    command = (
        f"ganflow train --resume {state_of(ready).relative_to(ready)} -S train.beta1=0.4 "
        "-S train.generator_lr=0.0001 -S train.discriminator_lr=0.0001"
    )
    assert f"ganflow: `{command}` goes on from the checkpoint with half the rates" in capsys.readouterr().err
    assert cli.main(command.split()[1:]) == 0
    run = run_of(ready)
    assert_complete(ready, run)
    assert run.data.params["train.generator_lr"] == "0.0001"
    assert run.data.tags["ganflow.resumed_from_images"] == "120"


def test_other_params_are_named_with_the_command(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ready / "my params.yaml"
    (ready / "params.yaml").rename(other)
    (ready / ".git").mkdir()
    before_round(monkeypatch, 176, poison)
    assert cli.main(["train", "--params", str(other)]) == 1
    assert f" --params '{other}' -S train.generator_lr" in capsys.readouterr().err


def test_divergence_before_the_first_checkpoint_names_no_command(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before_round(monkeypatch, 56, poison)
    assert cli.main(["train"]) == 1
    assert "--resume" not in capsys.readouterr().err


def test_a_training_that_starts_anew_mentions_the_interrupted_one(
    ready: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ganflow")
    source = interrupt(144)
    assert "an interrupted training" not in caplog.text
    assert cli.main(["train", "-S", "train.beta1=0.4", "-S", "train.images=240"]) == 0
    text = "an interrupted training with train.images 400 instead of 240, train.beta1 0.5 instead of 0.4 lies in "
    (message,) = (record.message for record in caplog.records if "interrupted" in record.message)
    assert message == f"{text}{ready / source}; --resume goes on from it"
    caplog.clear()
    assert cli.main(["train", "-S", "seed=4"]) == 0
    with stage._alone(ready / source):
        assert cli.main(["train", "-S", "train.beta1=0.4"]) == 0
    assert "an interrupted training" not in caplog.text, "it cannot be used, or it is being trained"


# A full disk


def full_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, when: Callable[[Path], bool]) -> None:
    """Let a writer find no room, after it has written half, whenever a path is such a one."""
    original = getattr(module, name)

    def write(first: Any, second: Any, *rest: Any) -> Any:
        path = second if isinstance(second, Path) else first
        if when(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return original(first, second, *rest)

    monkeypatch.setattr(module, name, write)


NO_ROOM_FOR = {
    "checkpoint.safetensors": (checkpoint, "save_file", "goes on from the checkpoint at 240 images"),
    "000000400.png": (loop, "write_whole", "goes on from the checkpoint at 360 images"),
    "discriminator.safetensors": (weights, "save_file", "goes on from the checkpoint at 400 images"),
    "samples": (stage.shutil, "copytree", "goes on from the checkpoint at 400 images"),
}


@pytest.mark.parametrize("file", NO_ROOM_FOR)
def test_a_full_disk_is_one_message_and_the_same_command_goes_on(
    file: str, ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, name, goes_on = NO_ROOM_FOR[file]
    with monkeypatch.context() as patched:
        seen: list[Path] = []

        def when(path: Path) -> bool:
            if path.name.removesuffix(".part") == file:
                seen.append(path)
            return bool(seen) and (file != "checkpoint.safetensors" or len(seen) == 3)

        full_at(patched, module, name, when)
        assert cli.main(["train"]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "No space left on device" in message
    assert "bytes are free there. Make room there, and the same command " + goes_on in message
    assert not TRAINED.exists()
    state = state_of(ready)
    run = run_of(ready, state)
    assert run.info.status == "FAILED"

    assert cli.main(["train"]) == 0
    assert run_of(ready).info.run_id == run.info.run_id
    assert_complete(ready, run_of(ready))
    assert_equal_weights(TRAINED, undisturbed(ready / "undisturbed"))


@pytest.mark.parametrize("room", range(20_000, 160_000, 20_000))
def test_a_disk_that_is_really_full(
    room: int, ready: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever the room ends: what there is of the training stays whole."""
    states, filler = small_disk / "states", small_disk / "filler"
    filler.write_bytes(bytes(2**20 - room))
    parsed = params.parse(TREE)
    with pytest.raises(UserError) as caught:
        stage.train(parsed, PREPARED, small_disk / "out", states)
    assert "No space left on device" in str(caught.value)
    assert not (small_disk / "out").exists()
    filler.unlink()
    stage.train(parsed, PREPARED, small_disk / "out", states)
    assert len(all_runs(ready)) == 1
    assert_equal_weights(small_disk / "out", undisturbed(ready / "undisturbed"))


# The end


@pytest.mark.parametrize("sent", [True, False])
def test_a_kill_while_the_state_is_put_away(sent: bool, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is nothing that a training could go on from in the same run, with other time stamps."""

    def killed(*_: Any, **__: Any) -> None:
        raise MemoryError

    retire = stage._retire

    def killed_while_it_retires(*arguments: Any) -> None:
        patched.setattr(stage.shutil, "rmtree", killed)
        patched.setattr(Path, "unlink", killed)
        retire(*arguments)

    with monkeypatch.context() as patched:
        if not sent:
            patched.setattr(stage.Sender, "_run", lambda sender: None)  # a store that is away
        patched.setattr(stage, "_retire", killed_while_it_retires)
        with pytest.raises(MemoryError):
            cli.main(["train"])
    run = run_of(ready)
    left = list((ready / ".ganflow").rglob("run.json"))
    assert len(left) == 1
    assert left[0].parent.name.endswith(".finished") == sent
    assert cli.main(["train"]) == 0
    assert run_of(ready).info.run_id != run.info.run_id
    assert [path for path in (ready / ".ganflow" / "train").iterdir() if path.is_dir()] == []
