import numpy as np
import pytest
import torch
from pixel_fid import fid

from ganflow.data.card import Split
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation.extractor import Extractor
from ganflow.evaluation.fid import distance, feature_moments
from ganflow.evaluation.sampling import real_batches
from ganflow.evaluation.statistics import Moments


def moments_of(packed: PackedData, split: Split, extractor: Extractor, batch_size: int = 16) -> Moments:
    return feature_moments(real_batches(packed.images(split), batch_size, 30), extractor)


def features_of(packed: PackedData, split: Split) -> np.ndarray:
    """What the extractor of these tests takes of a picture: the means of its quarters."""
    quarters = packed.images(split)[:30].astype(float).reshape(30, 2, 4, 2, 4)
    return (quarters.mean((2, 4)) / 127.5 - 1).reshape(30, 4)


def test_moments_are_those_of_the_features(packed: PackedData, pixel_extractor: Extractor) -> None:
    expected = features_of(packed, "test")

    for batch_size in (1, 7, 30):
        found = moments_of(packed, "test", pixel_extractor, batch_size)
        assert found.count == 30
        np.testing.assert_allclose(found.mean, expected.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.covariance, np.cov(expected, rowvar=False), rtol=1e-4)


def test_the_distance_equals_numpy(packed: PackedData, pixel_extractor: Extractor) -> None:
    expected = fid(*(features_of(packed, split) for split in ("train", "test")))

    train, test = (moments_of(packed, split, pixel_extractor) for split in ("train", "test"))

    assert distance(train, test) == pytest.approx(expected, rel=1e-4)
    assert distance(test, train) == pytest.approx(distance(train, test), rel=1e-9)
    assert distance(test, test) == pytest.approx(0, abs=1e-9)


def test_there_is_no_fid_of_no_picture_or_one(pixel_extractor: Extractor) -> None:
    with pytest.raises(UserError, match="there are no images"):
        feature_moments([], pixel_extractor)
    one = feature_moments([torch.zeros(1, 1, 8, 8, dtype=torch.uint8)], pixel_extractor)
    with pytest.raises(UserError, match="two images at least"):
        distance(one, one)
