"""Every score of a set of pictures against the test split, each with what real and untrained ones get.

Features are computed once and shared by all metrics. All scores but FID, Inception Score and modes compare pictures
with pictures; they take the first ten thousand of each kind, so that memory does not grow with the number of pictures.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Never

import torch
from torch import Tensor
from tqdm import tqdm

from ganflow import __version__
from ganflow.data.card import Split
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation import real_features
from ganflow.evaluation.classes import ClassTally, class_divergence, modes
from ganflow.evaluation.extractor import Extractor, Labeller
from ganflow.evaluation.fid import distance, feature_moments
from ganflow.evaluation.kernel_distance import kernel_distance
from ganflow.evaluation.manifold import LEAST_PICTURES, Manifold
from ganflow.evaluation.memorisation import NearestNeighbours, memorisation, memorisation_interval
from ganflow.evaluation.protocol import Protocol
from ganflow.evaluation.real_features import RealFeatures
from ganflow.evaluation.sampling import Pictures, real_batches
from ganflow.evaluation.statistics import Moments
from ganflow.progress import counted, progress

REALS: Final[Split] = "test"
COMPARED: Final = 10_000
"""Most pictures of each kind that are compared one by one."""

Metrics = dict[str, float | None]

# Good when low, so that training pictures give their floor.
_LOW_IS_GOOD = ("fid", "kid", "modes_kl")


class Pair(NamedTuple):
    """A picture that was measured, by its place, and its nearest training picture."""

    picture: int
    training: int
    distance: float


@dataclass(frozen=True)
class Scores:
    """Metrics by name, null where there is none, and the pictures that come nearest to a training picture."""

    metrics: Metrics
    nearest: Sequence[Pair]


@dataclass(frozen=True)
class _Collected:
    """What the metrics need of N pictures."""

    moments: Moments
    features: Tensor
    """Of the first pictures, float32 (at most COMPARED, d)."""
    inception_score: float
    class_counts: Tensor | None
    """How many are of each class of the data set, int64 (c,)."""


def count_images(packed: PackedData, most: int) -> int:
    """Give N, the number of pictures of each kind to compare: as many as test and train split both have, or `most`.

    Raises UserError for fewer than two.
    """
    n = min(most, packed.card.splits[REALS].count, packed.card.splits["train"].count)
    if n < 2:
        raise UserError(
            f"evaluate: FID needs two pictures at least, but the smaller of the train and the {REALS} split has {n}; "
            "raise data.test_fraction or add pictures"
        )
    return n


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Scores sets of `n` pictures against the first `n` test pictures, all under one protocol.

    Splits lie in random order, so that their first `n` pictures are a fair sample, and the same one every time.
    """

    packed: PackedData
    extractor: Extractor
    labeller: Labeller | None
    """Gives the classes of the data set, where it has any."""
    kept: Path
    """Folder of the features of real pictures."""
    n: int
    batch_size: int
    most_searched: int
    """Most training pictures among which copies are looked for."""

    @property
    def searched(self) -> int:
        """Number of them: at least `n`, whose features are there anyway."""
        return max(self.n, min(self.most_searched, self.packed.card.splits["train"].count))

    @property
    def protocol(self) -> Protocol:
        """Say how the scores come about."""
        return Protocol(
            extractor=self.extractor.name,
            extractor_digest=self.extractor.digest,
            feature_dimension=self.extractor.dim,
            resize=self.extractor.resize,
            split=REALS,
            reals=self.n,
            fakes=self.n,
            compared=min(self.n, COMPARED),
            searched=self.searched,
            data_digest=self.packed.card.digest,
            code_version=__version__,
        )

    def score(self, pictures: Pictures, untrained: Pictures) -> Scores:
        """Score pictures, with what training pictures get at this number of them, and those of an untrained generator.

        `<metric>_floor` and `<metric>_ceiling` are the two: of metrics that are good when low, training pictures give
        the floor, of the others the ceiling. Raises UserError.
        """
        splits = self._kept_features((REALS, self.n), ("train", self.searched))
        with progress(2 * self.n, "features", " pictures") as bar:
            generated, bad = (self._collected(x.batches(self.n, self.batch_size), bar) for x in (pictures, untrained))
        with progress(5, "scores", " steps") as bar:
            test, train = splits
            real, good = self._real(test, self._true_counts()), self._real(train, self._seen_counts("train"))
            manifold = Manifold(real.features) if len(real.features) >= LEAST_PICTURES else None
            bar.update()
            of, of_good, of_bad = (_compared(x, real, manifold, bar) for x in (generated, good, bad))
            pairs, shares = _memorised(generated.features, real.features, train)
            bar.update()
        return Scores({**_between_ends(of, of_good, of_bad), **shares}, pairs)

    def fid(self, pictures: Pictures) -> float:
        """Give the FID of pictures alone."""
        (reals,) = self._kept_features((REALS, self.n))
        with progress(self.n, "features", " pictures") as bar:
            batches = counted(pictures.batches(self.n, self.batch_size), bar)
            return distance(feature_moments(batches, self.extractor), reals.moments(self.n))

    def _kept_features(self, *wanted: tuple[Split, int]) -> list[RealFeatures]:
        """Find the features of the first pictures of splits, or compute those that are not kept yet."""
        keys = [real_features.key_of(self.packed, split, count, self.extractor) for split, count in wanted]
        found = [real_features.find(self.kept, key, self.extractor) for key in keys]
        missing = sum(key.count for key, there in zip(keys, found, strict=True) if there is None)
        with progress(missing, "features of real pictures", " pictures") as bar:
            for place, key in enumerate(keys):
                if found[place] is None:
                    batches = counted(self._real_batches(key.split, key.count), bar)
                    found[place] = real_features.compute(batches, key, self.extractor, self.kept)
        return [there for there in found if there]

    def _real_batches(self, split: Split, n: int) -> Iterator[Tensor]:
        return real_batches(self.packed.images(split), self.batch_size, n)

    def _collected(self, batches: Iterable[Tensor], bar: "tqdm[Never]") -> _Collected:
        total: Moments | None = None
        kept: list[Tensor] = []
        wanted = COMPARED
        seen, labels = ClassTally(), ClassTally()
        for batch in counted(batches, bar):
            features = self.extractor.features(batch)
            part = Moments.of(features)
            total = part if total is None else total.merge(part)
            if wanted > 0:
                kept.append(features[:wanted].float())
                wanted -= len(kept[-1])
            seen.update(self.extractor.logits(features))
            if self.labeller:
                labels.update(self.labeller(batch))
        if total is None:
            raise UserError("there are no images to measure")
        return _Collected(total, torch.cat(kept), seen.inception_score, labels.counts if self.labeller else None)

    def _real(self, features: RealFeatures, class_counts: Tensor | None) -> _Collected:
        seen = ClassTally()
        for part in features.batches(self.n):
            seen.update(self.extractor.logits(part))
        first = features.first(min(self.n, COMPARED))
        return _Collected(features.moments(self.n), first, seen.inception_score, class_counts)

    def _true_counts(self) -> Tensor | None:
        """How many of the test pictures are of each class, by their labels."""
        labels, classes = self.packed.labels(REALS), self.packed.card.classes
        if labels is None or classes is None:
            return None
        return torch.bincount(torch.from_numpy(labels[: self.n].copy()), minlength=len(classes))

    def _seen_counts(self, split: Split) -> Tensor | None:
        """How many of a split's pictures are of each class, as the classifier sees them."""
        if self.labeller is None:
            return None
        labels = ClassTally()
        for batch in self._real_batches(split, self.n):
            labels.update(self.labeller(batch))
        return labels.counts


def _compared(of: _Collected, real: _Collected, manifold: Manifold | None, bar: "tqdm[Never]") -> Metrics:
    kid = kernel_distance(real.features, of.features)
    shares = manifold.score(of.features) if manifold else None
    divergence = None
    if of.class_counts is not None and real.class_counts is not None:
        divergence = class_divergence(of.class_counts, real.class_counts)
    bar.update()
    return {
        "fid": distance(of.moments, real.moments),
        "kid": kid.value,
        "kid_standard_error": None if math.isnan(kid.standard_error) else kid.standard_error,
        "precision": shares.precision if shares else None,
        "recall": shares.recall if shares else None,
        "density": shares.density if shares else None,
        "coverage": shares.coverage if shares else None,
        "inception_score": of.inception_score,
        "modes": None if of.class_counts is None else modes(of.class_counts),
        "modes_kl": divergence,
    }


def _between_ends(of: Metrics, good: Metrics, bad: Metrics) -> Metrics:
    """Put what training pictures and an untrained generator get beside each metric, by which should be lower."""
    metrics: Metrics = {}
    for name, value in of.items():
        metrics[name] = value
        if name != "kid_standard_error":
            ends = (good, bad) if name in _LOW_IS_GOOD else (bad, good)
            metrics[f"{name}_floor"], metrics[f"{name}_ceiling"] = (end[name] for end in ends)
    return metrics


def _memorised(generated: Tensor, held_out: Tensor, train: RealFeatures) -> tuple[list[Pair], Metrics]:
    """Compare how near generated and held-out pictures come to the training pictures; the nearest pairs come first."""
    near = NearestNeighbours(torch.cat([generated, held_out]))
    for batch in train.batches():
        near.update(batch)
    own, others = near.distances[: len(generated)], near.distances[len(generated) :]
    low, high = memorisation_interval(own, others)
    pairs = [Pair(index, int(near.indices[index]), float(own[index])) for index in own.argsort(stable=True).tolist()]
    return pairs, {"memorisation": memorisation(own, others), "memorisation_low": low, "memorisation_high": high}
