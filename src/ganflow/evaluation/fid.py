"""FID with its floor and its ceiling, all three under one protocol (Heusel et al. 2017)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Never

from torch import Tensor
from tqdm import tqdm

from ganflow import __version__
from ganflow.data.card import Split
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation.extractor import Extractor
from ganflow.evaluation.frechet import frechet_distance
from ganflow.evaluation.protocol import QUANTISATION, Protocol
from ganflow.evaluation.sampling import generate, real_batches
from ganflow.evaluation.statistics import Moments, moments
from ganflow.models.game import Game

REALS: Split = "test"


@dataclass(frozen=True, kw_only=True)
class FidScores:
    """Fréchet distances from the test pictures, in squared units of the features, and their common protocol."""

    fid: float
    """Of generated pictures."""
    floor: float
    """Of training pictures: what a perfect generator would get at this number of pictures."""
    ceiling: float
    """Of the pictures of an untrained generator."""
    protocol: Protocol


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


def feature_moments(batches: Iterable[Tensor], extractor: Extractor) -> Moments:
    """Take the moments of the features of pictures that come in batches of uint8 (n, c, h, w)."""
    return moments(extractor.features(batch) for batch in batches)


def distance(first: Moments, second: Moments) -> float:
    """Give the Fréchet distance between two sets of features."""
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def score_fid(
    packed: PackedData, extractor: Extractor, trained: Game, untrained: Game, *, n: int, batch_size: int, seed: int
) -> FidScores:
    """Measure a trained generator against `n` test pictures, with floor and ceiling.

    Splits lie in random order, so that their first `n` pictures are a fair sample, and the same one every time. Both
    generators get the same inputs, drawn by `seed`.
    """
    sources: Mapping[str, Iterable[Tensor]] = {
        "real": real_batches(packed.images(REALS)[:n], batch_size),
        "training": real_batches(packed.images("train")[:n], batch_size),
        "generated": generate(trained, n, batch_size, seed),
        "untrained": generate(untrained, n, batch_size, seed),
    }
    with tqdm(total=len(sources) * n, desc="features", unit=" pictures", disable=None) as bar:
        of = {name: feature_moments(_counted(batches, bar), extractor) for name, batches in sources.items()}
    return FidScores(
        fid=distance(of["generated"], of["real"]),
        floor=distance(of["training"], of["real"]),
        ceiling=distance(of["untrained"], of["real"]),
        protocol=Protocol(
            extractor=extractor.name,
            extractor_digest=extractor.digest,
            feature_dimension=extractor.dim,
            resize=extractor.resize,
            quantisation=QUANTISATION,
            split=REALS,
            reals=n,
            fakes=n,
            data_digest=packed.card.digest,
            seed=seed,
            code_version=__version__,
        ),
    )


def _counted(batches: Iterable[Tensor], bar: "tqdm[Never]") -> Iterator[Tensor]:
    for batch in batches:
        yield batch
        bar.update(len(batch))
