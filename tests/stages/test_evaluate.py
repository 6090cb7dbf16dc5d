import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.entities import Run
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import tiny_models

from ganflow.data.grid import save_grid
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation import classifier, real_features
from ganflow.evaluation.protocol import Protocol
from ganflow.evaluation.sampling import generate
from ganflow.params import Params, parse
from ganflow.stages import evaluate as stage
from ganflow.stages.evaluate import evaluate, evaluate_folder, measure
from ganflow.stages.prepare import prepare
from ganflow.tracking import evaluations, runs, store
from ganflow.training.weights import Origin, load_game, others, save_weights, weights_digest

CPU = torch.device("cpu")
N = 150
SCORES = ("fid", "kid", "precision", "recall", "density", "coverage", "inception_score", "modes", "modes_kl")
DISCRIMINATOR = {
    *("discriminator_accuracy", "discriminator_accuracy_real", "discriminator_accuracy_fake"),
    *("discriminator_accuracy_low", "discriminator_accuracy_high"),
    *("discriminator_auc", "discriminator_auc_low", "discriminator_auc_high"),
    "discriminator_threshold",
    *("discriminator_advantage", "discriminator_advantage_low", "discriminator_advantage_high"),
    *("discriminator_calibration_error", "discriminator_converged"),
}
KEYS = {
    *(f"{name}{end}" for name in SCORES for end in ("", "_floor", "_ceiling")),
    *("kid_standard_error", "memorisation", "memorisation_low", "memorisation_high"),
    *DISCRIMINATOR,
    "discriminator_batch_accuracy_recent",
    "images",
}
PICTURES = {"samples.png", "real_and_generated.png", "nearest_pairs.png"}


@pytest.fixture(scope="module")
def params() -> Params:
    return parse(
        {
            "data": {"source": "digits", "resolution": 8},
            "model": {"family": "dcgan", "width": 4, "latent_dim": 16},
            "train": {"device": "cpu", "fid_every_images": 100},
            "evaluate": {"images": N, "batch_size": 100},
        }
    )


@pytest.fixture(scope="module")
def prepared(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "prepare"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_LEAST_IMAGES", 4_000)
        patch.setattr(classifier, "_PASSES", 1)
        prepare(params, folder)
    return folder


class Stage:
    """The stage on one prepared data set, with one folder for the features of real pictures."""

    def __init__(self, params: Params, prepared: Path, states: Path) -> None:
        self.params, self.prepared, self.states = params, prepared, states
        self.packed = PackedData(prepared)

    def asking(self, **evaluate: Any) -> Params:
        return replace(self.params, evaluate=replace(self.params.evaluate, **evaluate))

    def measure(self, trained: Path, out: Path, **evaluate: Any) -> dict[str, Any]:
        return measure(self.asking(**evaluate), self.prepared, trained, out, self.states)

    def evaluate(self, trained: Path, out: Path, **evaluated: Any) -> dict[str, Any]:
        return evaluate(self.asking(**evaluated), self.prepared, trained, out, self.states)

    def evaluate_folder(self, folder: Path, out: Path, **evaluate: Any) -> dict[str, Any]:
        return evaluate_folder(self.asking(**evaluate), self.prepared, folder, out, self.states)


@pytest.fixture(scope="module")
def given(params: Params, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(params, prepared, tmp_path_factory.mktemp("states"))


def write_trained(params: Params, folder: Path, resolution: int = 8, seed: int = 1, images: int = 100) -> Path:
    """Weights as they were drawn, the live generator's others than the averaged one's, and a history."""
    folder.mkdir(exist_ok=True)
    origin = Origin(params, 1, resolution, 10, images)
    torch.manual_seed(seed)
    game, other = origin.build(), origin.build()
    save_weights(game.generator, folder / "generator.safetensors", origin)
    save_weights(other.generator, folder / "generator_live.safetensors", origin)
    for name, network in others(game).items():
        save_weights(network, folder / name, origin)
    ticks = "".join(f"{images},{images / 20}\n" for images in range(1, 21))
    (folder / "history.csv").write_text(f"images,batch_accuracy\n{ticks}")
    return folder


@pytest.fixture
def trained(params: Params, tmp_path: Path) -> Path:
    return write_trained(params, tmp_path / "train")


def test_metrics_protocol_and_pictures(given: Stage, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    metrics = given.measure(trained, out)

    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert set(metrics) == KEYS
    assert metrics["images"] == N
    # Weights as they were drawn are as bad as those of the untrained generator.
    assert metrics["fid_floor"] < 0.1 * metrics["fid"]
    assert metrics["fid"] == pytest.approx(metrics["fid_ceiling"], rel=0.3)
    assert metrics["fid"] != metrics["fid_ceiling"]
    assert metrics["discriminator_batch_accuracy_recent"] == pytest.approx(np.mean(np.arange(11, 21) / 20))
    assert all(value is not None for value in metrics.values())
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["digest"] == Protocol.from_dict(protocol).digest
    assert (protocol["extractor"], protocol["reals"], protocol["fakes"]) == ("classifier", N, N)
    assert (protocol["source"], protocol["seed"]) == ("generator", 0)
    assert protocol["data_digest"] == given.packed.card.digest
    assert json.loads((out / "measured.json").read_text()) == {
        "checkpoint": "last",
        "images": 100,
        "weights_digest": weights_digest(trained / "generator.safetensors"),
    }
    assert {path.name for path in out.iterdir()} == {"metrics.json", "protocol.json", "measured.json", *PICTURES}


def test_pictures_show_real_left_and_generated_right(
    given: Stage, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids: dict[str, np.ndarray] = {}

    def record(images: torch.Tensor, path: Path, columns: int) -> None:
        grids[path.name] = np.asarray(images).reshape(-1, columns, 8, 8)
        save_grid(images, path, columns)

    monkeypatch.setattr(stage, "save_grid", record)
    given.measure(trained, tmp_path / "out")

    made = torch.cat(list(generate(load_game(trained, "ema", CPU), N, 100, seed=0))).numpy()[:, 0]
    assert abs(grids["samples.png"].reshape(-1, 8, 8).astype(int) - made[:100]).max() <= 1
    comparison, generated = grids["real_and_generated.png"], grids["samples.png"]
    assert comparison.shape == (10, 21, 8, 8)
    assert (comparison[:, :10].reshape(100, 8, 8) == given.packed.images("test")[:100][:, 0]).all()
    assert (comparison[:, 10] == 255).all()
    assert (comparison[:, 11:] == generated).all()
    with Image.open(tmp_path / "out" / "real_and_generated.png") as picture:
        assert picture.width > 2 * picture.height

    pairs = grids["nearest_pairs.png"]
    assert pairs.shape == (4, 14, 8, 8)
    assert (pairs[:, 2::3] == 255).all(), "a white gap after each pair but the last of a row"
    left, right = (pairs[:, side::3].reshape(20, 8, 8) for side in (0, 1))
    train = given.packed.images("train")[:][:, 0]
    network, _ = classifier.load_classifier(given.prepared)
    features, of_train = (network.features(torch.from_numpy(np.array(x[:, None]))) for x in (made, train))
    distances, nearest = torch.cdist(features, of_train).min(dim=1)
    chosen = distances.argsort()[:20]
    assert abs(left.astype(int) - made[chosen]).max() <= 1
    assert (right == train[nearest[chosen]]).all()


@pytest.mark.parametrize("n", [2, 5, 7])
def test_fewer_pictures_than_a_grid_has_places(
    n: int, given: Stage, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids: dict[str, np.ndarray] = {}
    monkeypatch.setattr(stage, "save_grid", lambda images, path, columns: grids.update({path.name: np.asarray(images)}))

    given.measure(trained, tmp_path / "out", images=n)

    assert len(grids["samples.png"]) == n
    white = [place for place, tile in enumerate(grids["nearest_pairs.png"]) if (tile == 255).all()]
    assert white == {2: [2], 5: [2, 5, 8, 11], 7: [2, 5, 8, 11, 16]}[n]
    assert len(grids["nearest_pairs.png"]) == 2 * n + len(white)


def test_measures_alike_every_time_whatever_the_seed(given: Stage, trained: Path, tmp_path: Path) -> None:
    first = given.measure(trained, tmp_path / "first")
    other = Stage(replace(given.params, seed=5), given.prepared, given.states)
    second = other.measure(trained, tmp_path / "second")

    assert first == second


def test_discriminator_meets_the_live_generator(given: Stage, trained: Path, tmp_path: Path) -> None:
    before = given.measure(trained, tmp_path / "out")
    (trained / "generator_live.safetensors").write_bytes((trained / "generator.safetensors").read_bytes())
    after = given.measure(trained, tmp_path / "out")

    assert after["fid"] == before["fid"]
    assert after["discriminator_auc"] != before["discriminator_auc"]


def test_a_history_without_accuracy(given: Stage, trained: Path, tmp_path: Path) -> None:
    (trained / "history.csv").write_text("images,loss\n1,2\n")

    assert set(given.measure(trained, tmp_path / "out")) == KEYS - {"discriminator_batch_accuracy_recent"}


def test_mistakes_are_named_and_leave_what_was_there(given: Stage, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("before")

    def message(given: Stage, trained: Path, **evaluate: Any) -> str:
        with pytest.raises(UserError) as raised:
            given.measure(trained, out, **evaluate)
        return str(raised.value)

    assert "run `ganflow train` first" in message(given, tmp_path / "nothing")
    unprepared = Stage(given.params, given.prepared, given.states)
    unprepared.prepared = tmp_path / "nothing"
    assert "run `ganflow prepare` first" in message(unprepared, trained)
    other = write_trained(given.params, tmp_path / "other", resolution=16)
    assert "pictures of (channels, height, width) (1, 16, 16)" in message(given, other)
    missing = str(tmp_path / "no.pth")
    assert "evaluate.inception_weights" in message(given, trained, extractor="inception", inception_weights=missing)
    assert [path.name for path in out.iterdir()] == ["metrics.json"]
    assert (out / "metrics.json").read_text() == "before"


def test_a_failure_while_writing_leaves_what_was_there(
    given: Stage, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    given.measure(trained, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(images: torch.Tensor, path: Path, columns: int) -> None:
        if path.name == "nearest_pairs.png":
            raise OSError(28, "No space left on device")
        save_grid(images, path, columns)

    monkeypatch.setattr(stage, "save_grid", full)
    other = write_trained(given.params, tmp_path / "other", seed=5)
    with pytest.raises(UserError, match=r"out: the evaluation cannot be written there \(No space"):
        given.measure(other, out)

    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_kill_while_writing_leaves_no_numbers_under_another_name(given: Stage, trained: Path, tmp_path: Path) -> None:
    """The record of whose numbers they are is there only if they are: `register` asks for it."""
    other = write_trained(given.params, tmp_path / "other", seed=5)
    fids = {
        weights_digest(folder / "generator.safetensors"): given.measure(folder, tmp_path / "before", images=60)["fid"]
        for folder in (other, trained)
    }
    original, seen = Path.replace, []

    def replace_once_less(path: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return original(path, target)

    for files in range(6):
        out, left = tmp_path / str(files), files
        shutil.copytree(tmp_path / "before", out)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", replace_once_less)
            with pytest.raises(KeyboardInterrupt):
                given.measure(other, out, images=60)
        metrics = json.loads((out / "metrics.json").read_text())
        seen.append(metrics["fid"])
        if (out / "measured.json").exists():
            assert metrics["fid"] == fids[json.loads((out / "measured.json").read_text())["weights_digest"]]
    assert set(seen) == set(fids.values()), "some kills come before metrics.json, and some after it"


def test_real_pictures_are_embedded_once_for_all_models(
    given: Stage, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = given.measure(trained, tmp_path / "out", images=60)
    monkeypatch.setattr(real_features, "compute", lambda *_: pytest.fail("features were computed"))

    other = write_trained(given.params, tmp_path / "other", seed=5)
    second = given.measure(other, tmp_path / "out", images=60)

    assert second["fid"] != first["fid"]
    assert second["fid_floor"] == first["fid_floor"]


def test_too_few_pictures_are_said_beside_the_numbers(
    given: Stage, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = given.measure(trained, tmp_path / "out", images=64)

    said = "64 pictures are too few for 64 features"
    assert said in caplog.text
    for name in ("metrics.json", "protocol.json"):
        assert said in json.loads((tmp_path / "out" / name).read_text())["caution"]
    assert all(value is None or isinstance(value, int | float) for value in metrics.values())

    given.measure(trained, tmp_path / "out", images=65)
    assert "caution" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_a_broken_generator(given: Stage, trained: Path, tmp_path: Path) -> None:
    path = trained / "generator.safetensors"
    tensors = {
        name: tensor * (torch.nan if tensor.is_floating_point() else 1) for name, tensor in load_file(path).items()
    }
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)

    with pytest.raises(UserError, match="not finite"):
        given.measure(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What families have of their own


def of_family(given: Stage, name: str, **changes: Any) -> Stage:
    """The stage for another family, on the same data."""
    model = parse({"model": {**tiny_models()[name], **changes}}).model
    return Stage(replace(given.params, model=model), given.prepared, given.states)


def test_sheets_are_those_of_the_family_and_of_no_other(
    given: Stage, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the averaged generator, and the same every time; what another family left is gone."""
    grids: dict[str, tuple[np.ndarray, int]] = {}

    def record(images: torch.Tensor, path: Path, columns: int) -> None:
        grids[path.name] = np.asarray(images), columns
        save_grid(images, path, columns)

    monkeypatch.setattr(stage, "save_grid", record)
    out, contents = tmp_path / "out", {}
    for name, sheets in (("stylegan", {"style_mixing", "truncation"}), ("cgan", {"labels"}), ("dcgan", set())):
        own = of_family(given, name)
        weights = write_trained(own.params, tmp_path / name)
        for _ in range(2):
            own.measure(weights, out, images=60)
            expected = {*PICTURES, "metrics.json", "protocol.json", "measured.json", *(["sheets"] if sheets else [])}
            assert {path.name for path in out.iterdir()} == expected
            found = {path.stem: path.read_bytes() for path in out.glob("sheets/*")}
            assert set(found) == sheets
            assert contents.setdefault(name, found) == found
        game = load_game(weights, "ema", CPU)
        with torch.no_grad():
            for sheet, made in game.sheets(torch.Generator().manual_seed(0)).items():
                pixels, columns = grids[f"{sheet}.png"]
                assert columns == made.columns
                assert np.array_equal(pixels, (made.images * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy())


def test_sheets_that_cannot_be_written_leave_those_before(
    given: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, out = of_family(given, "cgan"), tmp_path / "out"
    own.measure(write_trained(own.params, tmp_path / "one"), out, images=60)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert out / "sheets" / "labels.png" in before

    def full(images: torch.Tensor, path: Path, columns: int) -> None:
        if path.name == "labels.png":
            raise OSError(28, "No space left on device")
        save_grid(images, path, columns)

    monkeypatch.setattr(stage, "save_grid", full)
    with pytest.raises(UserError, match="cannot be written there"):
        own.measure(write_trained(own.params, tmp_path / "other", seed=5), out, images=60)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_a_family_without_discriminator_says_so(given: Stage, tmp_path: Path) -> None:
    own, out = of_family(given, "vae"), tmp_path / "out"
    weights = write_trained(own.params, tmp_path / "vae")
    (weights / "history.csv").write_text("images,generator_loss\n100,2\n")

    metrics = own.measure(weights, out)

    assert {name for name, value in metrics.items() if value is None} == DISCRIMINATOR
    assert set(metrics) == KEYS - {"discriminator_batch_accuracy_recent"}
    written = json.loads((out / "metrics.json").read_text())
    assert written.pop("no_discriminator") == "a variational autoencoder has no discriminator"
    assert written == metrics
    assert evaluations.read_metrics(out) == metrics, "the reason is no number"


def test_one_with_a_discriminator_gives_no_reason(given: Stage, trained: Path, tmp_path: Path) -> None:
    given.measure(trained, tmp_path / "out", images=60)
    assert "no_discriminator" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_scores_that_only_compare_have_a_threshold_of_their_own(given: Stage, trained: Path, tmp_path: Path) -> None:
    own = of_family(given, "r3gan")
    metrics = own.measure(write_trained(own.params, tmp_path / "r3gan"), tmp_path / "out")
    assert {name for name, value in metrics.items() if value is None} == {"discriminator_calibration_error"}
    assert metrics["discriminator_threshold"] != 0
    assert given.measure(trained, tmp_path / "out")["discriminator_threshold"] == 0


def test_a_generator_that_takes_labels_is_asked_for_them(
    given: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = of_family(given, "cgan")
    weights = write_trained(own.params, tmp_path / "cgan")

    metrics = own.measure(weights, tmp_path / "out")

    assert set(metrics) == KEYS | {"label_agreement"}
    game = load_game(weights, "ema", CPU)
    inputs = game.draw_inputs(1000, torch.Generator().manual_seed(0))[:N]
    with torch.no_grad():
        pictures = (game.generator(inputs) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    network, _ = classifier.load_classifier(given.prepared)
    agreed = [int(seen) == asked for seen, asked in zip(network(pictures).argmax(1), inputs[:, -1], strict=True)]
    assert metrics["label_agreement"] == pytest.approx(np.mean(agreed))
    assert 0 < metrics["label_agreement"] < 0.5, "as drawn, it does not know them"

    asked_of = []
    monkeypatch.setattr(stage, "label_agreement", lambda *of: asked_of.append(of) or 0.93)
    assert own.measure(weights, tmp_path / "out", images=60)["label_agreement"] == 0.93
    assert (
        of_family(given, "dcgan")
        .measure(write_trained(of_family(given, "dcgan").params, tmp_path / "dcgan"), tmp_path / "out", images=60)
        .keys()
        == KEYS
    )
    assert len(asked_of) == 1


# The best checkpoint


def test_the_best_checkpoint_is_measured_when_it_is_asked_for(given: Stage, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.checkpoint: .* holds no best checkpoint"):
        given.measure(trained, tmp_path / "best", checkpoint="best")
    best = write_trained(given.params, trained / "best", seed=5, images=15)
    (best / "history.csv").unlink()

    metrics = given.measure(trained, tmp_path / "best", checkpoint="best")

    assert json.loads((tmp_path / "best" / "measured.json").read_text()) == {
        "checkpoint": "best",
        "images": 15,
        "weights_digest": weights_digest(best / "generator.safetensors"),
    }
    alone = given.measure(best, tmp_path / "alone")
    # Of its own moment: the ten ticks up to 15 images, not those up to the end.
    assert metrics.pop("discriminator_batch_accuracy_recent") == pytest.approx(np.mean(np.arange(6, 16) / 20))
    assert metrics == alone
    assert metrics["fid"] != given.measure(trained, tmp_path / "last")["fid"]


def test_last_and_best_are_logged_apart(given: Stage, repository: Path, trained: Path) -> None:
    write_trained(given.params, trained / "best", seed=5, images=60)
    runs.write_run(trained, runs.open_run(given.params, given.packed.card))
    out = repository / "evaluate"

    logged = {}
    for name in ("last", "best"):
        metrics = given.evaluate(trained, out, checkpoint=name)
        logged[name] = run = run_in(out)
        assert run.data.metrics["evaluate/fid"] == metrics["fid"]
        assert run.data.params["evaluate.checkpoint"] == name
        (point,) = store.connect().get_metric_history(run.info.run_id, "evaluate/fid")
        assert point.step == {"last": 100, "best": 60}[name], "at the images of the weights that were measured"

    assert logged["last"].info.run_id == runs.read_run(trained).run_id
    assert logged["best"].data.tags["mlflow.parentRunId"] == logged["last"].info.run_id


def run_in(out: Path) -> Run:
    return store.connect().get_run(runs.read_run(out).run_id)


# Pictures made elsewhere


def write_pictures(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{index:04d}.png")
    return folder


def test_copies_of_the_test_pictures_are_perfect(given: Stage, repository: Path) -> None:
    packed = given.packed
    folder = write_pictures(repository / "peer", packed.images("test")[:N])
    out = repository / "out"

    metrics = given.evaluate_folder(folder, out)

    assert metrics["fid"] == pytest.approx(0, abs=1e-6)
    assert (metrics["precision"], metrics["recall"], metrics["coverage"]) == (1, 1, 1)
    assert metrics["memorisation"] == 0.5
    assert metrics["images"] == N
    assert set(metrics) == KEYS - {"discriminator_batch_accuracy_recent"}
    assert {name for name, value in metrics.items() if value is None} == DISCRIMINATOR
    written = json.loads((out / "metrics.json").read_text())
    assert written.pop("no_discriminator") == "pictures come without a discriminator"
    assert written == metrics
    protocol = json.loads((out / "protocol.json").read_text())
    assert (protocol["source"], protocol["pictures"]) == ("folder peer", N)
    assert protocol["digest_of_pictures"].startswith("sha256:")
    assert {path.name for path in out.iterdir()} == {"metrics.json", "protocol.json", "run.json", *PICTURES}


def test_pictures_are_measured_under_the_protocol_of_models(given: Stage, repository: Path, trained: Path) -> None:
    """The pictures that a generator made, as files, get the scores that it gets."""
    made = torch.cat(list(generate(load_game(trained, "ema", CPU), N, 100, seed=0))).numpy()
    folder = write_pictures(repository / "peer", made)

    of_folder = given.evaluate_folder(folder, repository / "folder")
    of_model = given.measure(trained, repository / "model")

    for name in KEYS - DISCRIMINATOR - {"discriminator_batch_accuracy_recent"}:
        # The error of KID pairs pictures by their order, which is another in a folder.
        tolerance = 0.01 if name == "kid_standard_error" else 1e-5
        assert of_folder[name] == pytest.approx(of_model[name], rel=tolerance, abs=1e-9), name
    protocols = [json.loads((repository / name / "protocol.json").read_text()) for name in ("folder", "model")]
    assert protocols[0]["digest"] == protocols[1]["digest"]


def test_training_pictures_are_found_out(given: Stage, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grids: dict[str, np.ndarray] = {}
    monkeypatch.setattr(stage, "save_grid", lambda images, path, columns: grids.update({path.name: np.asarray(images)}))
    folder = write_pictures(repository / "peer", given.packed.images("train")[-N:])

    metrics = given.evaluate_folder(folder, repository / "out")

    assert metrics["memorisation"] > 0.99
    tiles = grids["nearest_pairs.png"].reshape(4, 14, 8, 8)
    assert (tiles[:, 0::3] == tiles[:, 1::3]).all()


def test_a_folder_is_logged_to_a_run_of_its_own(given: Stage, repository: Path) -> None:
    packed, out = given.packed, repository / "out"
    folder = write_pictures(repository / "peer", packed.images("validation")[:100])

    metrics = given.evaluate_folder(folder, out)

    run, client = run_in(out), store.connect()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "digits-8px-peer"
    assert run.data.tags["ganflow.kind"] == "pictures"
    protocol = json.loads((out / "protocol.json").read_text())
    assert run.data.tags["ganflow.pictures_digest"] == protocol["digest_of_pictures"]
    assert run.data.tags["ganflow.protocol"] == protocol["digest"]
    assert run.data.metrics == {f"evaluate/{name}": value for name, value in metrics.items() if value is not None}
    assert {name.partition(".")[0] for name in run.data.params} == {"data", "model", "evaluate"}
    files = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert files == {"metrics.json", "protocol.json", *PICTURES}

    given.evaluate_folder(folder, repository / "again")
    assert run_in(repository / "again").info.run_id == run.info.run_id, "the same pictures: the same run"
    assert len(client.get_metric_history(run.info.run_id, "evaluate/fid")) == 1
    given.evaluate_folder(folder, repository / "asked", batch_size=50)
    given.evaluate_folder(folder, repository / "fewer", images=80)
    Image.fromarray(packed.images("train")[0][0]).save(folder / "0000.png")
    given.evaluate_folder(folder, repository / "changed")
    others = {run_in(repository / name).info.run_id for name in ("asked", "fewer", "changed")}
    assert len(others | {run.info.run_id}) == 4


@pytest.mark.parametrize(("there", "measured"), [(100, 100), (200, N)])
def test_as_many_are_compared_as_there_are(given: Stage, there: int, measured: int, repository: Path) -> None:
    folder = write_pictures(repository / "peer", given.packed.images("train")[:there])

    metrics = given.evaluate_folder(folder, repository / "out")

    protocol = json.loads((repository / "out" / "protocol.json").read_text())
    assert metrics["images"] == protocol["reals"] == protocol["fakes"] == measured
    assert protocol["pictures"] == there


def test_pictures_that_do_not_fit_are_named(given: Stage, repository: Path) -> None:
    folder = write_pictures(repository / "peer", given.packed.images("train")[:10])
    Image.new("L", (9, 8)).save(folder / "0003.png")
    with pytest.raises(UserError, match=r"peer/0003\.png: is 9x8 pixels, but the data set is 8x8"):
        given.evaluate_folder(folder, repository / "out")
    one = write_pictures(repository / "one", given.packed.images("train")[:1])
    with pytest.raises(UserError, match=r"one: a score needs two pictures at least"):
        given.evaluate_folder(one, repository / "out")
    with pytest.raises(UserError, match=r"nothing: cannot be read"):
        given.evaluate_folder(repository / "nothing", repository / "out")
    assert not (repository / "out").exists()
    client = store.connect()
    assert client.search_runs([found.experiment_id for found in client.search_experiments()]) == []


def test_the_numbers_of_a_folder_are_not_taken_for_those_of_a_model(
    given: Stage, repository: Path, trained: Path
) -> None:
    out = repository / "out"
    given.measure(trained, out)
    folder = write_pictures(repository / "peer", given.packed.images("test")[:100])

    given.evaluate_folder(folder, out)

    with pytest.raises(UserError, match=r"measured\.json: there is no such file"):
        evaluations.measured_weights(out)
