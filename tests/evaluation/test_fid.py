from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ganflow.data.card import Split
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation.extractor import Extractor
from ganflow.evaluation.fid import FidScores, count_images, score_fid
from ganflow.models.game import Game
from ganflow.params import parse


class Copier(Game):
    """A perfect generator: it shows test pictures."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        pictures = torch.from_numpy(images.copy()).float() / 127.5 - 1
        self.generator = torch.nn.Module()
        self.generator.forward = lambda indices: pictures[indices[:, 0]]  # type: ignore[method-assign]
        self.drawn = 0

    @property
    def players(self) -> tuple[()]:
        return ()

    def draw_inputs(self, n: int, rng: torch.Generator | None = None) -> torch.Tensor:
        self.drawn += n
        return torch.arange(self.drawn - n, self.drawn)[:, None]


def score(packed: PackedData, extractor: Extractor, n: int, shown: Split = "test") -> FidScores:
    torch.manual_seed(0)
    untrained = parse({"model": {"family": "dcgan", "width": 4}}).model.build(1, 8)
    copier = Copier(packed.images(shown))
    return score_fid(packed, extractor, copier, untrained, n=n, batch_size=16, seed=3)


def test_the_three_numbers(packed: PackedData, pixel_extractor: Extractor) -> None:
    scores = score(packed, pixel_extractor, 40)

    # A copy of the test pictures is at 0; training pictures are near; pictures all gray are far.
    assert scores.fid == pytest.approx(0, abs=1e-9)
    assert 0 < scores.floor < 0.1 * scores.ceiling


def test_each_kind_is_compared_with_the_reals(packed: PackedData, pixel_extractor: Extractor) -> None:
    perfect, memorised = (score(packed, pixel_extractor, 40, shown) for shown in ("test", "train"))

    assert memorised.fid == memorised.floor == perfect.floor
    assert memorised.ceiling == perfect.ceiling


def test_the_floor_equals_numpy(packed: PackedData, pixel_extractor: Extractor) -> None:
    features = [
        pixel_extractor.features(torch.from_numpy(packed.images(split)[:30].copy())).numpy().astype(float)
        for split in ("train", "test")
    ]
    gap = ((features[0].mean(0) - features[1].mean(0)) ** 2).sum()
    covariances = [np.cov(x, rowvar=False) for x in features]
    overlap = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0)).sum()
    expected = gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * overlap

    assert score(packed, pixel_extractor, 30).floor == pytest.approx(expected, rel=1e-6)


def test_protocol_says_what_was_measured(packed: PackedData, pixel_extractor: Extractor) -> None:
    protocol = score(packed, pixel_extractor, 30).protocol

    assert (protocol.extractor, protocol.extractor_digest, protocol.feature_dimension) == ("pixels", "sha256:pixels", 4)
    assert (protocol.split, protocol.reals, protocol.fakes) == ("test", 30, 30)
    assert (protocol.data_digest, protocol.seed) == ("sha256:bands", 3)


def test_n_is_what_both_splits_have(tmp_path: Path, write_packed: Callable[..., PackedData]) -> None:
    packed = write_packed(tmp_path, train=30, test=40)

    assert count_images(packed, 10_000) == 30
    assert count_images(packed, 20) == 20
    with pytest.raises(UserError, match="two pictures at least"):
        count_images(write_packed(tmp_path, test=1), 10_000)
