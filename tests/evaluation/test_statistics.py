import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ganflow.errors import UserError
from ganflow.evaluation.statistics import Moments, moments

FAR = 1e4  # a mean far from zero, where raw sums of squares would cancel


def features(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) * 3 + FAR


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_equals_numpy_for_any_batches(batch_size: int) -> None:
    x = features(100, 5)

    of = moments(x.split(batch_size))

    assert of.count == 100
    np.testing.assert_allclose(of.mean, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(of.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-10, atol=1e-10)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_merges_in_any_order(sizes: list[int]) -> None:
    parts = [Moments.of(features(size, 3)) for size in sizes]
    forwards, backwards = parts[0], parts[-1]
    for part in parts[1:]:
        forwards = forwards.merge(part)
    for part in parts[-2::-1]:
        backwards = backwards.merge(part)

    assert forwards.count == backwards.count
    torch.testing.assert_close(forwards.mean, backwards.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(forwards.scatter, backwards.scatter, rtol=1e-10, atol=1e-8)


def test_sums_float32_in_float64() -> None:
    x = features(1000, 3).float()

    of = moments(x.split(10))

    assert of.covariance.dtype == torch.float64
    np.testing.assert_allclose(of.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-10, atol=1e-10)


def test_one_picture_has_no_covariance() -> None:
    with pytest.raises(UserError, match="two images"):
        _ = Moments.of(torch.ones(1, 3)).covariance


def test_nothing_to_measure() -> None:
    with pytest.raises(UserError, match="no images"):
        moments([])


def test_rejects_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        Moments.of(torch.ones(3))
    with pytest.raises(ValueError, match="2 and of 3 dimensions"):
        Moments.of(torch.ones(4, 2)).merge(Moments.of(torch.ones(4, 3)))
