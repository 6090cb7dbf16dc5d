import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounds import before_round, poison
from safetensors.torch import load_file, save_file
from tiny_families import tiny_models
from torch import Tensor

from ganflow import params
from ganflow.data.batches import Batches
from ganflow.data.grid import save_grid
from ganflow.data.quantise import to_uint8
from ganflow.training import checkpoint, health, loop, machine
from ganflow.training.best import Best
from ganflow.training.disk import FullDiskError
from ganflow.training.health import Health
from ganflow.training.journal import Journal
from ganflow.training.match import Match

CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "vanilla": {"family": "vanilla", "hidden_units": 4, "latent_dim": 4},  # with dropout
    "dcgan": {"family": "dcgan", "width": 4, "latent_dim": 4, "discriminator_norm": "batch"},
}
ALL = {**tiny_models(), **MODELS}
TRAIN: dict[str, Any] = {
    "images": 160,
    "batch_size": 8,
    "translation": 1,
    "flip": True,
    "tick_every_images": 40,
    "sample_every_images": 80,
    "checkpoint_every_images": 64,
}


def new_match(family: str = "vanilla", pictures: int = 50, **train: Any) -> Match:
    parsed = params.parse({"model": ALL[family], "train": {**TRAIN, **train}})
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (pictures, 1, 8, 8), dtype=np.uint8)
    batches = Batches(images, np.arange(pictures) % 3, parsed.train.batch_size, 0, CPU)
    return Match(parsed.model.build(1, 8, 3), batches, parsed.train, CPU)


def fixed_inputs(match: Match) -> Tensor:
    return match.game.draw_inputs(loop.SAMPLES, torch.Generator().manual_seed(0))


def run(
    match: Match,
    state: Path,
    stop: Callable[[], bool] = lambda: False,
    *,
    best: Callable[[Path], Best] | None = None,
    judge: Health | None = None,
) -> Match:
    state.mkdir(exist_ok=True)
    kept = best(state) if best else None
    loop.train(match, fixed_inputs(match), state, Journal(state), stop, best=kept, health=judge)
    return match


def weights(match: Match) -> dict[str, Tensor]:
    live, average = match.game.state_dict(), match.average.network.state_dict()
    return {**live, **{f"average.{name}": tensor for name, tensor in average.items()}}


def images_of(kind: str, state: Path) -> list[int]:
    return [line["images"] for line in Journal(state).lines() if kind in line]


def history(state: Path) -> list[dict[str, str]]:
    Journal(state).write_history(state / "history.csv")
    with (state / "history.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in machine.VALUES} for row in csv.DictReader(file)]


# What is due, and when


def test_ticks_samples_and_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    original = checkpoint.save

    def save(match: Match, folder: Path, recipe: Any) -> None:
        saved.append(match.images)
        original(match, folder, recipe)

    monkeypatch.setattr(checkpoint, "save", save)
    match = run(new_match(), tmp_path)
    assert match.images == 160
    assert images_of("values", tmp_path) == [40, 80, 120, 160]
    assert images_of("samples", tmp_path) == [0, 80, 160]
    assert saved == [64, 128, 160]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "000000000.png",
        "000000080.png",
        "000000160.png",
    ]


def test_counts_that_the_batches_do_not_meet(tmp_path: Path) -> None:
    """Each is due at the first round that reaches it, and all of them at the end."""
    due = {"tick_every_images": 30, "sample_every_images": 1000, "checkpoint_every_images": 1000}
    match = run(new_match(images=100, **due), tmp_path)
    assert match.images == 104
    assert images_of("values", tmp_path) == [32, 64, 96, 104]
    assert images_of("samples", tmp_path) == [0, 104]
    assert checkpoint.restore(restored := new_match(), tmp_path)
    assert restored.images == 104


def test_more_often_than_rounds_is_every_round(tmp_path: Path) -> None:
    run(new_match(images=24, tick_every_images=1, sample_every_images=3), tmp_path)
    assert images_of("values", tmp_path) == [8, 16, 24]
    assert images_of("samples", tmp_path) == [0, 8, 16, 24]


def test_the_values_of_a_tick_are_the_means_of_its_rounds(tmp_path: Path) -> None:
    run(new_match(tick_every_images=8), tmp_path / "fine")
    run(new_match(tick_every_images=80), tmp_path / "coarse")
    fine, coarse = history(tmp_path / "fine"), history(tmp_path / "coarse")
    summed = {"discriminator_loss", "generator_loss", "discriminator_grad_norm", "generator_grad_norm"}
    summed |= {"d_real", "d_fake", "batch_accuracy"}
    assert set(fine[0]) == {"images", "sample_variety", *summed}
    for name in summed:
        for tick, rows in zip(coarse, (fine[:10], fine[10:]), strict=True):
            assert float(tick[name]) == pytest.approx(np.mean([float(row[name]) for row in rows]), rel=1e-5)


def test_samples_are_the_averages_answer_to_the_fixed_inputs(tmp_path: Path) -> None:
    match = new_match("dcgan")
    with torch.no_grad():
        first = to_uint8(match.average.network(fixed_inputs(match))).numpy()
    run(match, tmp_path)
    with torch.no_grad():
        last = to_uint8(match.average.network(fixed_inputs(match))).numpy()
    for images, pictures in ((0, first), (160, last)):
        save_grid(pictures, tmp_path / "expected.png", loop.SAMPLE_COLUMNS)
        found = tmp_path / "samples" / f"{images:09d}.png"
        assert found.read_bytes() == (tmp_path / "expected.png").read_bytes()
    assert not np.array_equal(first, last)


def by_hand(pictures: Tensor) -> float:
    """Give the mean distance to the nearest other picture."""
    flat = pictures.flatten(1)
    nearest = [min(float((one - two).norm()) for j, two in enumerate(flat) if i != j) for i, one in enumerate(flat)]
    return float(np.mean(nearest))


@pytest.mark.parametrize(("pictures", "compared"), [(50, 50), (200, 64)])
def test_the_variety_of_the_samples_beside_as_many_real_pictures(pictures: int, compared: int, tmp_path: Path) -> None:
    """Of a small data set, all of them once, though a batch goes over into its next epoch."""
    match = new_match("dcgan", pictures=pictures)
    before = torch.get_rng_state()
    real = torch.cat([match.batches.batch(position).images for position in range(0, 200, 8)])[:compared]
    assert torch.equal(before, torch.get_rng_state())
    run(match, tmp_path)
    with torch.no_grad():
        made = match.average.network(fixed_inputs(match)[:compared])
    assert course(tmp_path, "sample_variety")[-1] == (160, pytest.approx(by_hand(made) / by_hand(real), rel=1e-4))


def test_real_pictures_that_are_all_alike_have_no_variety(tmp_path: Path) -> None:
    run(new_match(pictures=1), tmp_path)
    assert "sample_variety" not in history(tmp_path)[0]


@pytest.mark.parametrize("family", ALL)
def test_how_often_one_looks_does_not_change_the_result(family: str, tmp_path: Path) -> None:
    often, seldom = (
        run(new_match(family, tick_every_images=n, sample_every_images=n, checkpoint_every_images=n), tmp_path / str(n))
        for n in (8, 500)
    )
    torch.testing.assert_close(weights(often), weights(seldom), rtol=0, atol=0)


# Interrupted, killed, resumed


@pytest.mark.parametrize("stopped_at", [56, 80])
@pytest.mark.parametrize("family", ALL)
def test_stopped_and_resumed_is_as_undisturbed(family: str, stopped_at: int, tmp_path: Path) -> None:
    undisturbed = run(new_match(family), tmp_path / "undisturbed")

    first, state = new_match(family), tmp_path / "stopped"
    with pytest.raises(loop.InterruptedTraining) as caught:
        run(first, state, lambda: first.images >= stopped_at)
    assert caught.value.images == stopped_at
    torch.rand(7)  # the next process begins with other random numbers
    resumed = run(new_match(family), state)

    torch.testing.assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)
    assert history(state) == history(tmp_path / "undisturbed")
    assert images_of("samples", state) == [0, 80, 160]
    for picture in (tmp_path / "undisturbed" / "samples").iterdir():
        assert (state / "samples" / picture.name).read_bytes() == picture.read_bytes()


@pytest.mark.parametrize("family", MODELS)
def test_killed_and_resumed_is_as_undisturbed(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves no checkpoint of its own: the ticks since the last one are played again."""
    undisturbed = run(new_match(family), tmp_path / "undisturbed")
    state = tmp_path / "killed"

    def killed(match: Match) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        before_round(patched, 104, killed)
        with pytest.raises(MemoryError):
            run(new_match(family), state)
    assert images_of("values", state) == [40, 80]
    recorded = (state / "journal.jsonl").read_text()
    resumed = run(new_match(family), state)
    torch.testing.assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)
    assert history(state) == history(tmp_path / "undisturbed")
    assert (state / "journal.jsonl").read_text().startswith(recorded), "the first lines and their time stamps stay"


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damaged", [1, 2])
@pytest.mark.parametrize("family", MODELS)
def test_gone_back_for_damage_is_as_undisturbed(
    family: str, damaged: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To the checkpoint before, or to the beginning: more is played again, and recorded once."""
    undisturbed = run(new_match(family), tmp_path / "undisturbed", best=every(16))
    state = tmp_path / "killed"

    def killed(match: Match) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        before_round(patched, 144, killed)
        with pytest.raises(MemoryError):
            run(new_match(family), state, best=every(16))
    recorded = (state / "journal.jsonl").read_text()
    for name in (checkpoint.FILE, checkpoint.PREVIOUS)[:damaged]:
        flip_last_bit(state / name)
    played: list[int] = []
    with monkeypatch.context() as patched:
        before_round(patched, 0 if damaged == 2 else 64, lambda match: played.append(match.images))
        resumed = run(new_match(family), state, best=every(16))

    assert len(played) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"] * damaged
    torch.testing.assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)
    assert history(state) == history(tmp_path / "undisturbed")
    assert best_files(state) == best_files(tmp_path / "undisturbed")
    assert (state / "journal.jsonl").read_text().startswith(recorded)
    assert images_of("samples", state) == [0, 80, 160]
    assert {path.name for path in (state / "samples").iterdir()} == {f"{n:09d}.png" for n in (0, 80, 160)}
    for picture in (tmp_path / "undisturbed" / "samples").iterdir():
        assert (state / "samples" / picture.name).read_bytes() == picture.read_bytes()


def test_a_kill_while_a_picture_is_written_again_leaves_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its line is in the journal already, and it may be on its way to the tracker."""
    first = new_match()
    with pytest.raises(loop.InterruptedTraining):
        run(first, tmp_path, lambda: first.images >= 80)
    (tmp_path / checkpoint.PREVIOUS).replace(tmp_path / checkpoint.FILE)  # the one of 64
    picture = tmp_path / "samples" / "000000080.png"
    content = picture.read_bytes()
    written: list[Path] = []

    def torn(path: Path, content: bytes) -> None:
        written.append(path)
        path.open("wb").write(content[:9])
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", torn)
        with pytest.raises(MemoryError):
            run(new_match(), tmp_path)
    assert len(written) == 1
    assert picture.read_bytes() == content
    run(new_match(), tmp_path)
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {f"{n:09d}.png" for n in (0, 80, 160)}


def test_a_disk_that_is_full_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run(new_match(), tmp_path / "undisturbed")
    original, state = checkpoint.save_file, tmp_path / "full"

    def full(tensors: dict[str, Tensor], path: Path, texts: dict[str, str]) -> None:
        if texts["images"] == "128":
            raise OSError(28, "No space left on device")
        original(tensors, path, texts)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        with pytest.raises(FullDiskError, match=r"checkpoint.safetensors: No space left"):
            run(new_match(), state)
    found = checkpoint.last(state)
    assert found is not None
    assert found.images == 64
    resumed = run(new_match(), state)
    torch.testing.assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)
    assert history(state) == history(tmp_path / "undisturbed")


def test_checkpoints_keep_the_recipe(tmp_path: Path) -> None:
    match = new_match()
    loop.train(match, fixed_inputs(match), tmp_path, Journal(tmp_path), lambda: False, recipe={"seed": 7})
    found = checkpoint.last(tmp_path)
    assert found is not None
    assert found.recipe == {"seed": 7}


def test_a_stop_in_the_last_round_is_a_finish(tmp_path: Path) -> None:
    match = new_match()
    run(match, tmp_path, lambda: match.images >= 160)
    assert images_of("values", tmp_path)[-1] == 160


def test_a_finished_training_has_nothing_left_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = run(new_match(), tmp_path)
    recorded = (tmp_path / "journal.jsonl").read_text()
    monkeypatch.setattr(Match, "play_round", lambda match: pytest.fail("a round was played"))
    again = run(new_match(), tmp_path)
    torch.testing.assert_close(weights(again), weights(finished), rtol=0, atol=0)
    assert (tmp_path / "journal.jsonl").read_text() == recorded


# Divergence


@pytest.mark.parametrize("family", MODELS)
def test_divergence_names_the_images_and_keeps_the_good_checkpoint(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        before_round(patched, 88, poison)
        with pytest.raises(loop.DivergedError) as caught:
            run(new_match(family), tmp_path)
    assert caught.value.images == 96
    assert images_of("values", tmp_path) == [40, 80]
    assert checkpoint.restore(kept := new_match(family), tmp_path)
    assert kept.images == 64
    resumed = run(new_match(family), tmp_path)
    torch.testing.assert_close(weights(resumed), weights(run(new_match(family), tmp_path / "other")), rtol=0, atol=0)


def test_divergence_found_by_a_checkpoint_in_the_middle_of_a_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_round(monkeypatch, 48, poison)
    with pytest.raises(loop.DivergedError) as caught:
        run(new_match(tick_every_images=1000, checkpoint_every_images=40), tmp_path)
    assert caught.value.images == 56, "where the loss was lost, and not where it was found at 80"
    assert checkpoint.restore(kept := new_match(), tmp_path)
    assert kept.images == 40


def test_weights_that_break_after_the_last_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loss is finite, the tick is read, and then the checkpoint finds the weights broken."""
    original = Match.play_round

    def play_round(match: Match) -> None:
        original(match)
        if match.images == 160:
            poison(match)

    monkeypatch.setattr(Match, "play_round", play_round)
    with pytest.raises(loop.DivergedError) as caught:
        run(new_match(), tmp_path)
    assert caught.value.images == 160
    assert checkpoint.restore(kept := new_match(), tmp_path)
    assert kept.images == 128


# The best checkpoint


def restless(match: Match) -> float:
    """Give what goes up and down in the place of a FID, and use up random numbers, as a generator with noise does."""
    torch.rand(3)
    with torch.no_grad():
        made = match.average.network(fixed_inputs(match)).double().mean()
    return float(1 + torch.sin(1e4 * made)) if torch.isfinite(made) else math.nan


def save_all(match: Match, folder: Path) -> None:
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in weights(match).items()}, folder / "all.safetensors"
    )


def every(images: int, score: Callable[[Match], float] = restless) -> Callable[[Path], Best]:
    return lambda state: Best(state, score, save_all, every=images, protocol={"reals": 20})


def course(state: Path, name: str) -> list[tuple[int, float]]:
    lines = [line for line in Journal(state).lines() if f"train/{name}" in line.get("values", {})]
    return [(line["images"], line["values"][f"train/{name}"]) for line in lines]


def best_files(state: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (state / "best").iterdir()}


@pytest.mark.parametrize(
    ("images", "due"), [(40, [40, 80, 120, 160]), (60, [64, 120, 160]), (1000, [160]), (1, list(range(8, 161, 8)))]
)
def test_fids_are_due_at_their_counts_and_at_the_end(images: int, due: list[int], tmp_path: Path) -> None:
    measured: list[int] = []

    def score(match: Match) -> float:
        measured.append(match.images)
        return 1.0

    run(new_match(), tmp_path, best=every(images, score))

    assert measured == due
    assert [images for images, _ in course(tmp_path, "validation_fid")] == due
    assert images_of("values", tmp_path) == sorted({*due, 40, 80, 120, 160})


@pytest.mark.parametrize("family", MODELS)
def test_the_networks_of_the_lowest_fid_are_kept(family: str, tmp_path: Path) -> None:
    moments: dict[int, tuple[float, dict[str, Tensor]]] = {}

    def score(match: Match) -> float:
        moments[match.images] = restless(match), {name: tensor.clone() for name, tensor in weights(match).items()}
        return moments[match.images][0]

    run(new_match(family), tmp_path, best=every(16, score))

    fids = course(tmp_path, "validation_fid")
    assert fids == [(images, fid) for images, (fid, _) in moments.items()]
    lowest = np.minimum.accumulate([fid for _, fid in fids])
    assert course(tmp_path, "best_fid") == [(images, best) for (images, _), best in zip(fids, lowest, strict=True)]
    assert 2 < len(set(lowest)) < len(fids), "it goes down, and it goes up"
    images = min(moments, key=lambda images: moments[images][0])
    assert images < 160, "the last is not the best"
    kept = load_file(tmp_path / "best" / "all.safetensors")
    torch.testing.assert_close(kept, moments[images][1], rtol=0, atol=0)
    assert json.loads((tmp_path / "best" / "best.json").read_text()) == {
        "images": images,
        "fid": moments[images][0],
        "protocol": {"reals": 20},
    }


def test_the_history_has_fids_in_the_rows_of_their_ticks(tmp_path: Path) -> None:
    run(new_match(), tmp_path, best=every(32))

    rows = {int(row["images"]): row for row in history(tmp_path)}
    assert list(rows) == [32, 40, 64, 80, 96, 120, 128, 160]
    fids = dict(course(tmp_path, "validation_fid"))
    for images, row in rows.items():
        assert (row["validation_fid"] != "") == (row["best_fid"] != "") == (images % 32 == 0)
        assert (row["generator_loss"] != "") == (images % 40 == 0)
        if images in fids:
            assert float(row["validation_fid"]) == fids[images]
    assert {images for images, row in rows.items() if row["generator_loss"] and row["best_fid"]} == {160}


@pytest.mark.parametrize("family", MODELS)
def test_fids_do_not_change_the_result(family: str, tmp_path: Path) -> None:
    without = run(new_match(family), tmp_path / "0")
    for images in (8, 24, 1000):
        measured = run(new_match(family), tmp_path / str(images), best=every(images))
        torch.testing.assert_close(weights(measured), weights(without), rtol=0, atol=0)
    assert not (tmp_path / "0" / "best").exists()
    assert "validation_fid" not in history(tmp_path / "0")[0]


def test_a_generator_with_noise_of_its_own_is_measured_alike(tmp_path: Path) -> None:
    """The random numbers of a measurement are the same every time: it depends on the weights alone."""
    drawn: list[float] = []

    def score(match: Match) -> float:
        drawn.append(float(torch.rand(())))
        return 1.0

    run(new_match(), tmp_path, best=every(40, score))

    assert len(set(drawn)) == 1


def test_a_fid_that_is_none_is_divergence(tmp_path: Path) -> None:
    fids = {40: 3.0, 80: 2.0, 120: math.nan}

    with pytest.raises(loop.DivergedError) as caught:
        run(new_match(), tmp_path, best=every(40, lambda match: fids[match.images]))

    assert caught.value.images == 120
    assert images_of("values", tmp_path) == [40, 80]
    record = json.loads((tmp_path / "best" / "best.json").read_text())
    assert (record["images"], record["fid"]) == (80, 2.0)
    assert checkpoint.restore(kept := new_match(), tmp_path)
    assert kept.images == 64


@pytest.mark.parametrize("family", MODELS)
def test_broken_weights_are_found_by_the_fid(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        before_round(patched, 88, poison)
        with pytest.raises(loop.DivergedError) as caught:
            run(new_match(family, tick_every_images=1000), tmp_path, best=every(8))
    assert caught.value.images == 96
    assert [images for images, _ in course(tmp_path, "validation_fid")][-1] == 88
    resumed = run(new_match(family, tick_every_images=1000), tmp_path, best=every(8))
    undisturbed = run(new_match(family, tick_every_images=1000), tmp_path / "other", best=every(8))
    torch.testing.assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)
    assert best_files(tmp_path) == best_files(tmp_path / "other")


@pytest.mark.parametrize("stopped_at", [24, 64, 80, 104])
@pytest.mark.parametrize("family", MODELS)
def test_stopped_and_resumed_keeps_the_same_best(family: str, stopped_at: int, tmp_path: Path) -> None:
    run(new_match(family), tmp_path / "undisturbed", best=every(16))
    first, state = new_match(family), tmp_path / "stopped"
    with pytest.raises(loop.InterruptedTraining):
        run(first, state, lambda: first.images >= stopped_at, best=every(16))
    torch.rand(7)
    run(new_match(family), state, best=every(16))

    assert history(state) == history(tmp_path / "undisturbed")
    assert best_files(state) == best_files(tmp_path / "undisturbed")


@pytest.mark.parametrize("killed_at", [16, 72, 80, 96, 104, 152])
@pytest.mark.parametrize("family", MODELS)
def test_killed_and_resumed_keeps_the_same_best(
    family: str, killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds since the last checkpoint are played again, and measured again: a best of them is there already."""
    run(new_match(family), tmp_path / "undisturbed", best=every(16))
    state = tmp_path / "killed"

    def killed(match: Match) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        before_round(patched, killed_at, killed)
        with pytest.raises(MemoryError):
            run(new_match(family), state, best=every(16))
    run(new_match(family), state, best=every(16))

    assert history(state) == history(tmp_path / "undisturbed")
    assert best_files(state) == best_files(tmp_path / "undisturbed")


def test_killed_between_the_best_and_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are ahead of the record, which still comes out the same."""
    fids = {16: 9.0, 32: 8.0, 48: 8.5, 64: 7.0, 80: 6.0, 96: 7.0, 112: 5.0, 128: 6.0, 144: 6.0, 160: 6.0}
    run(new_match(), tmp_path / "undisturbed", best=every(16, lambda match: fids[match.images]))
    state, original = tmp_path / "killed", Journal.add_values

    def add_values(journal: Journal, images: int, values: dict[str, float]) -> None:
        if images == 112:
            raise MemoryError
        original(journal, images, values)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add_values", add_values)
        with pytest.raises(MemoryError):
            run(new_match(), state, best=every(16, lambda match: fids[match.images]))
    assert json.loads((state / "best" / "best.json").read_text())["images"] == 112
    run(new_match(), state, best=every(16, lambda match: fids[match.images]))

    assert history(state) == history(tmp_path / "undisturbed")
    assert best_files(state) == best_files(tmp_path / "undisturbed")


# Warnings


@pytest.fixture
def hopeless(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Health]:
    """Make what finds the discriminator saturated at the third tick and the generator collapsed at the fourth."""
    monkeypatch.setattr(health, "_PERFECT", 0.0)
    monkeypatch.setattr(health, "_ALIKE", 1000.0)
    monkeypatch.setattr(health, "_BEGINNING", 1.0)
    monkeypatch.setattr(health, "_BEGINNING_IMAGES", 0)
    return lambda: Health(params.parse({"model": MODELS["vanilla"], "train": TRAIN}))


def warned(state: Path) -> list[tuple[int, str]]:
    return [(line["images"], line["warning"]["kind"]) for line in Journal(state).lines() if "warning" in line]


def test_warnings_are_recorded_and_said(
    hopeless: Callable[[], Health], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(new_match(), tmp_path, judge=hopeless())
    assert warned(tmp_path) == [(120, "saturated"), (160, "collapsed")]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("caution: at 120 images the discriminator saturates: ")
    assert "lower train.discriminator_lr" in said[0]


def test_a_healthy_training_is_left_alone(tmp_path: Path) -> None:
    run(new_match(), tmp_path, judge=Health(params.parse({"model": MODELS["vanilla"], "train": TRAIN})))
    assert warned(tmp_path) == []


@pytest.mark.parametrize("stopped_at", [64, 96, 136])
def test_a_resumed_training_warns_once(
    stopped_at: int, hopeless: Callable[[], Health], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of what has begun before it was stopped."""
    first = new_match()
    with pytest.raises(loop.InterruptedTraining):
        run(first, tmp_path, lambda: first.images >= stopped_at, judge=hopeless())
    run(new_match(), tmp_path, judge=hopeless())
    assert warned(tmp_path) == [(120, "saturated"), (160, "collapsed")]
    assert len(caplog.records) == 2


def test_killed_between_the_values_and_the_warning(
    hopeless: Callable[[], Health], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> bool:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add_warning", killed)
        with pytest.raises(MemoryError):
            run(new_match(), tmp_path, judge=hopeless())
    assert images_of("values", tmp_path)[-1] == 120
    run(new_match(), tmp_path, judge=hopeless())
    assert warned(tmp_path) == [(120, "saturated"), (160, "collapsed")]
