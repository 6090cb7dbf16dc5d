"""Scores of hand-made pictures, by an extractor without weights, beside numpy on the same pictures."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pixel_fid import fid, quarters
from torch import Tensor

from ganflow import __version__
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation import scores
from ganflow.evaluation.extractor import Extractor
from ganflow.evaluation.kernel_distance import kernel_distance
from ganflow.evaluation.manifold import Manifold
from ganflow.evaluation.memorisation import memorisation, memorisation_interval
from ganflow.evaluation.sampling import real_batches
from ganflow.evaluation.scores import Judge, count_images

N = 30
LOW_IS_GOOD = ("fid", "kid", "modes_kl")
HIGH_IS_GOOD = ("precision", "recall", "density", "coverage", "inception_score", "modes")
ENDS = tuple(f"{name}_{end}" for name in (*LOW_IS_GOOD, *HIGH_IS_GOOD) for end in ("floor", "ceiling"))
MEMORISATION = ("memorisation", "memorisation_low", "memorisation_high")


class Shown:
    """Pictures that lie in memory."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def batches(self, n: int, batch_size: int) -> Iterator[Tensor]:
        return real_batches(self.images[:n], batch_size)

    def take(self, indices: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.images[list(indices)])


def label(images: Tensor) -> Tensor:
    """Tell the class of a picture by which of its bands is bright."""
    return images.float().reshape(-1, 4, 16).mean(2)[:, :2]


@pytest.fixture
def judge(packed: PackedData, pixel_extractor: Extractor, tmp_path: Path) -> Judge:
    return Judge(
        packed=packed,
        extractor=pixel_extractor,
        labeller=label,
        kept=tmp_path / "kept",
        n=N,
        batch_size=16,
        most_searched=50_000,
    )


def noise(seed: int = 1, n: int = 40, high: int = 256) -> Shown:
    return Shown(np.random.default_rng(seed).integers(0, high, (n, 1, 8, 8), dtype=np.uint8))


def likenesses(packed: PackedData) -> Shown:
    """Test pictures, each darker or brighter than it was: neither good nor bad."""
    shift = np.random.default_rng(3).integers(-20, 21, (40, 1, 1, 1))
    return Shown((packed.images("test")[:] + shift).clip(0, 255).astype(np.uint8))


def inception_score(images: NDArray[np.uint8]) -> float:
    logits = 10 * quarters(images)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return float(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))


def same(first: dict[str, float | None], second: dict[str, float | None]) -> None:
    assert set(first) == set(second)
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


# Copies


def test_copies_of_the_test_pictures_are_perfect(judge: Judge, packed: PackedData) -> None:
    metrics = judge.score(Shown(packed.images("test")[:]), noise()).metrics

    assert metrics["fid"] == pytest.approx(0, abs=1e-9)
    assert (metrics["precision"], metrics["recall"], metrics["coverage"]) == (1, 1, 1)
    assert metrics["kid"] < 0, "an unbiased estimate of 0, of pictures that are not drawn anew"
    assert metrics["modes"] == 2
    assert metrics["modes_kl"] == pytest.approx(0, abs=1e-12)
    assert metrics["memorisation"] == 0.5, "as near to the training pictures as held-out ones: they are those"


def test_copies_of_training_pictures_are_found(judge: Judge, packed: PackedData) -> None:
    order = np.random.default_rng(3).permutation(60)  # of all, also of those that the real statistics leave out
    result = judge.score(Shown(packed.images("train")[:][order]), noise())

    assert result.metrics["memorisation"] == 1
    assert result.metrics["memorisation_low"] > 0.8
    assert [(pair.picture, pair.training, pair.distance) for pair in result.nearest] == [
        (place, int(order[place]), 0) for place in range(N)
    ]


def test_the_nearest_pairs_come_first(judge: Judge, packed: PackedData) -> None:
    images = noise().images[:N]
    images[[7, 19]] = packed.images("train")[:][[52, 3]]

    nearest = judge.score(Shown(images), noise(2)).nearest

    features, train = quarters(images), quarters(packed.images("train")[:])
    distances = np.linalg.norm(features[:, None] - train, axis=2)
    assert [(pair.picture, pair.training) for pair in nearest[:2]] == [(7, 52), (19, 3)]
    assert [pair.picture for pair in nearest[2:]] == [i for i in distances.min(1).argsort() if i not in {7, 19}]
    assert [pair.training for pair in nearest] == [distances[pair.picture].argmin() for pair in nearest]
    assert [pair.distance for pair in nearest] == pytest.approx(sorted(distances.min(1)), rel=1e-4, abs=1e-6)


def test_strangers_are_not_memorised(judge: Judge) -> None:
    metrics = judge.score(noise(high=20), noise()).metrics

    assert metrics["memorisation"] == 0
    assert (metrics["precision"], metrics["recall"], metrics["density"], metrics["coverage"]) == (0, 0, 0, 0)


# Floors and ceilings


def test_every_metric_is_there(judge: Judge) -> None:
    assert set(judge.score(noise(), noise(2)).metrics) == {
        *LOW_IS_GOOD,
        *HIGH_IS_GOOD,
        *ENDS,
        *MEMORISATION,
        "kid_standard_error",
    }


def test_the_ends_are_what_training_pictures_and_an_untrained_generator_get(judge: Judge, packed: PackedData) -> None:
    untrained = noise(2)
    metrics = judge.score(noise(), untrained).metrics
    good = judge.score(Shown(packed.images("train")[:]), untrained).metrics
    bad = judge.score(untrained, untrained).metrics

    for names, lower, upper in ((LOW_IS_GOOD, good, bad), (HIGH_IS_GOOD, bad, good)):
        for name in names:
            assert metrics[f"{name}_floor"] == pytest.approx(lower[name], rel=1e-9, abs=1e-12), name
            assert metrics[f"{name}_ceiling"] == pytest.approx(upper[name], rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("name", ["fid", "kid", "precision", "recall", "density", "coverage", "inception_score"])
def test_floors_lie_below_ceilings(name: str, judge: Judge) -> None:
    dark = noise(high=20)
    metrics = judge.score(noise(), dark).metrics

    assert metrics[f"{name}_floor"] < metrics[f"{name}_ceiling"]


def test_one_class_alone_is_the_worst_of_modes(judge: Judge, packed: PackedData) -> None:
    one = Shown(np.repeat(packed.images("test")[::2], 2, axis=0))  # every second one is of the first class
    metrics = judge.score(noise(), one).metrics

    assert (metrics["modes_floor"], metrics["modes_ceiling"]) == (1, 2)
    assert metrics["modes_kl_floor"] == pytest.approx(0, abs=1e-12)
    assert metrics["modes_kl_ceiling"] == pytest.approx(math.log(2))


# Values


def test_values_equal_another_way_to_them(judge: Judge, packed: PackedData) -> None:
    fake = likenesses(packed)
    metrics = judge.score(fake, noise(2)).metrics

    made, real, train = fake.images[:N], packed.images("test")[:N], packed.images("train")[:]
    assert metrics["fid"] == pytest.approx(fid(quarters(made), quarters(real)), rel=1e-4)
    assert metrics["fid_floor"] == pytest.approx(fid(quarters(train[:N]), quarters(real)), rel=1e-3)
    features, of_real, of_train = (torch.from_numpy(quarters(images)) for images in (made, real, train))
    kid = kernel_distance(of_real, features)
    assert metrics["kid"] == pytest.approx(kid.value, rel=1e-4)
    assert metrics["kid_standard_error"] == pytest.approx(kid.standard_error, rel=1e-3)
    shares = Manifold(of_real).score(features)._asdict()
    assert {name: metrics[name] for name in shares} == shares
    assert metrics["inception_score"] == pytest.approx(inception_score(made), rel=1e-5)
    assert metrics["inception_score_ceiling"] == pytest.approx(inception_score(train[:N]), rel=1e-5)
    own, held_out = (torch.cdist(x, of_train).min(dim=1).values for x in (features, of_real))
    assert metrics["memorisation"] == memorisation(own, held_out)
    interval = memorisation_interval(own, held_out)
    assert (metrics["memorisation_low"], metrics["memorisation_high"]) == pytest.approx(interval)
    assert len(set(shares.values()) - {0, 1}) == 4, "else an exchange would not be seen"
    assert 0 < metrics["memorisation"] < 0.5


def test_classes_are_counted_beside_the_true_ones(judge: Judge, packed: PackedData) -> None:
    labels = np.array(packed.labels("test"))
    labels[: N // 2] = 0  # the split's labels, and not what the labeller sees in its pictures, are the truth
    np.save(packed.folder / "test_labels.npy", labels)
    skewed = Shown(packed.images("test")[:][[0] * 24 + [1] * 6])

    metrics = judge.score(skewed, noise()).metrics

    p, q = np.array([0.8, 0.2]), np.bincount(labels[:N]) / N
    assert metrics["modes"] == 2
    assert metrics["modes_kl"] == pytest.approx((p * np.log(p / q)).sum())
    seen = np.bincount(packed.labels("train")[:N]) / N
    assert metrics["modes_kl_floor"] == pytest.approx((seen * np.log(seen / q)).sum())


def test_a_class_that_the_reals_lack_has_no_divergence(judge: Judge, packed: PackedData) -> None:
    np.save(packed.folder / "test_labels.npy", np.zeros(40, np.int64))

    metrics = judge.score(Shown(packed.images("test")[:]), noise()).metrics

    assert metrics["modes_kl"] is None
    assert metrics["modes_kl_floor"] is None


@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
def test_the_batch_size_does_not_matter(batch_size: int, judge: Judge, packed: PackedData, tmp_path: Path) -> None:
    fake, untrained = likenesses(packed), noise(2)
    first = judge.score(fake, untrained)
    # Once with the features of real pictures that are kept, once with its own.
    for kept in (judge.kept, tmp_path / "anew"):
        second = replace(judge, batch_size=batch_size, kept=kept).score(fake, untrained)
        same(first.metrics, second.metrics)
        assert [pair[:2] for pair in second.nearest] == [pair[:2] for pair in first.nearest]


def test_the_fid_alone_is_the_same_fid(judge: Judge, packed: PackedData) -> None:
    fake = likenesses(packed)

    alone = judge.fid(fake)

    assert alone == judge.score(fake, noise(2)).metrics["fid"]
    assert alone == judge.fid(fake)


# How many


@pytest.mark.parametrize("n", [2, 3, 5])
def test_too_few_for_neighbours(n: int, judge: Judge) -> None:
    metrics = replace(judge, n=n).score(noise(), noise(2)).metrics

    for name in ("precision", "recall", "density", "coverage"):
        assert metrics[name] is metrics[f"{name}_floor"] is metrics[f"{name}_ceiling"] is None
    assert (metrics["kid_standard_error"] is None) == (n < 4)
    assert all(metrics[name] is not None for name in ("fid", "kid", "inception_score", "memorisation"))


def test_six_are_enough_for_neighbours(judge: Judge) -> None:
    metrics = replace(judge, n=6).score(noise(), noise(2)).metrics

    assert all(metrics[name] is not None for name in ("precision", "recall", "density", "coverage"))


def test_only_the_first_are_compared_one_by_one(
    judge: Judge, packed: PackedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with N: no more features are kept. FID and Inception Score still take all."""
    fake, untrained = likenesses(packed), noise(2)
    whole = judge.score(fake, untrained).metrics
    monkeypatch.setattr(scores, "COMPARED", 12)
    kept: list[tuple[int, ...]] = []

    def recorded(real: Tensor, generated: Tensor) -> Any:
        kept.extend([tuple(real.shape), tuple(generated.shape)])
        return kernel_distance(real, generated)

    monkeypatch.setattr(scores, "kernel_distance", recorded)
    result = replace(judge, batch_size=5).score(fake, untrained)

    assert kept == [(12, 4)] * 6
    metrics = result.metrics
    for name in ("fid", "fid_floor", "fid_ceiling", "inception_score", "modes", "modes_kl", "modes_kl_floor"):
        assert metrics[name] == pytest.approx(whole[name], rel=1e-9), name
    features, of_real, of_train = (
        torch.from_numpy(quarters(images))
        for images in (fake.images[:12], packed.images("test")[:12], packed.images("train")[:])
    )
    assert metrics["kid"] == pytest.approx(kernel_distance(of_real, features).value, rel=1e-3)
    shares = Manifold(of_real).score(features)._asdict()
    assert {name: metrics[name] for name in shares} == shares
    own, held_out = (torch.cdist(x, of_train).min(dim=1).values for x in (features, of_real))
    assert metrics["memorisation"] == memorisation(own, held_out)
    assert len(result.nearest) == 12
    assert replace(judge, n=12).protocol.compared == judge.protocol.compared == 12


@pytest.mark.parametrize(("most", "searched"), [(10, N), (35, 35), (60, 60), (50_000, 60)])
def test_copies_are_looked_for_among_the_first(most: int, searched: int, judge: Judge, packed: PackedData) -> None:
    judge = replace(judge, most_searched=most)
    backwards = Shown(packed.images("train")[::-1])

    nearest = judge.score(backwards, noise()).nearest

    assert judge.protocol.searched == searched
    found = {pair.training for pair in nearest if pair.distance == 0}
    assert found == set(range(N, 60)) & set(range(searched))
    assert max(pair.training for pair in nearest) < searched


def test_n_is_what_both_splits_have(tmp_path: Path, write_packed: Callable[..., PackedData]) -> None:
    packed = write_packed(tmp_path, train=30, test=40)

    assert count_images(packed, 10_000) == 30
    assert count_images(packed, 20) == 20
    assert count_images(write_packed(tmp_path, train=40, test=30), 10_000) == 30
    with pytest.raises(UserError, match="two pictures at least"):
        count_images(write_packed(tmp_path, test=1), 10_000)


# Without labels


def test_without_labels_there_are_no_modes(
    tmp_path: Path, write_packed: Callable[..., PackedData], judge: Judge
) -> None:
    judge = replace(judge, packed=write_packed(tmp_path, classes=None), labeller=None)

    metrics = judge.score(noise(), noise(2)).metrics

    for name in ("modes", "modes_kl"):
        assert metrics[name] is metrics[f"{name}_floor"] is metrics[f"{name}_ceiling"] is None
    assert all(value is not None for name, value in metrics.items() if not name.startswith("modes"))


# Features of real pictures


class Counting:
    """An extractor that counts the pictures it is shown."""

    def __init__(self, extractor: Any) -> None:
        self._extractor, self.shown = extractor, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extractor, name)

    def features(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        return self._extractor.features(images)


def test_real_pictures_are_embedded_once(judge: Judge, pixel_extractor: Extractor) -> None:
    counting = Counting(pixel_extractor)
    judge = replace(judge, extractor=counting)

    first = judge.score(noise(), noise(2)).metrics
    assert counting.shown == 2 * N + N + 60
    second = judge.score(noise(), noise(2)).metrics
    assert counting.shown == 2 * (2 * N) + N + 60
    judge.fid(noise())
    assert counting.shown == 2 * (2 * N) + N + 60 + N
    assert first == second


def test_damaged_features_do_not_change_the_scores(judge: Judge) -> None:
    first = judge.score(noise(), noise(2)).metrics
    for path in judge.kept.glob("*/features.npy"):
        path.write_bytes(path.read_bytes()[:-7])

    assert judge.score(noise(), noise(2)).metrics == first


# The protocol, and what cannot be scored


def test_protocol_says_what_was_measured(judge: Judge) -> None:
    protocol = judge.protocol

    assert (protocol.extractor, protocol.extractor_digest, protocol.feature_dimension) == ("pixels", "sha256:pixels", 4)
    assert (protocol.split, protocol.reals, protocol.fakes, protocol.resize) == ("test", N, N, "none")
    assert (protocol.compared, protocol.searched) == (N, 60)
    assert (protocol.data_digest, protocol.code_version) == ("sha256:bands", __version__)
    assert not protocol.comparable(replace(judge, n=20).protocol)
    assert protocol.comparable(replace(judge, batch_size=3).protocol)


def test_cautions(judge: Judge) -> None:
    assert judge.protocol.cautions == ()
    assert "4 pictures are too few for 4 features" in replace(judge, n=4).protocol.cautions[0]
    assert replace(judge, n=5).protocol.cautions == ()


def test_no_pictures_and_broken_features(judge: Judge, pixel_extractor: Extractor) -> None:
    with pytest.raises(UserError, match="there are no images"):
        judge.score(Shown(np.zeros((0, 1, 8, 8), np.uint8)), noise())

    class Broken(Counting):
        def features(self, images: Tensor) -> Tensor:
            return super().features(images).index_fill(1, torch.tensor([2]), torch.nan)

    broken = replace(judge, extractor=Broken(pixel_extractor), kept=judge.kept / "broken")
    with pytest.raises(UserError, match="not finite"):
        broken.score(noise(), noise(2))
    with pytest.raises(UserError, match="not finite"):
        broken.fid(noise())
