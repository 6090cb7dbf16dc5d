import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganflow.errors import UserError
from ganflow.evaluation.frechet import frechet_distance

Normal = tuple[torch.Tensor, torch.Tensor]


def normal(seed: int, d: int, n: int) -> Normal:
    """Mean and covariance of n vectors; of rank n - 1 at most."""
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x * torch.linspace(0.5, 2, d, dtype=torch.float64) + seed % 3
    return x.mean(0), torch.cov(x.T)


def by_sqrtm(first: Normal, second: Normal) -> float:
    (mu1, sigma1), (mu2, sigma2) = ((mu.numpy(), sigma.numpy()) for mu, sigma in (first, second))
    root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1 + sigma2 - 2 * root))


@pytest.mark.parametrize("d", [2, 16, 64])
def test_equals_scipy(d: int) -> None:
    first, second = normal(1, d, 4 * d), normal(2, d, 4 * d)

    assert frechet_distance(*first, *second) == pytest.approx(by_sqrtm(first, second), rel=1e-9)


def test_one_dimension() -> None:
    # (mu1 - mu2)^2 + (s1 - s2)^2 with s = 3 and 5
    mu1, mu2, var1, var2 = torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor([[9.0]]), torch.tensor([[25.0]])

    assert frechet_distance(mu1, var1, mu2, var2) == pytest.approx(4 + 4, rel=1e-12)


def test_diagonal() -> None:
    mu = torch.zeros(3)
    deviations = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 0.0, 1.0])

    distance = frechet_distance(mu, deviations[0].square().diag(), mu, deviations[1].square().diag())

    assert distance == pytest.approx(9 + 4 + 4, rel=1e-12)


@pytest.mark.parametrize("n", [10, 400])
def test_identical_is_zero_at_any_rank(n: int) -> None:
    mu, sigma = normal(3, 64, n)

    assert frechet_distance(mu, sigma, mu, sigma) <= 1e-6 * float(sigma.trace())


def test_rank_deficient_equals_the_distance_within_the_subspace() -> None:
    (mu1, small1), (mu2, small2) = normal(1, 4, 50), normal(2, 4, 50)
    basis = torch.linalg.qr(torch.randn(32, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]

    distance = frechet_distance(basis @ mu1, basis @ small1 @ basis.T, basis @ mu2, basis @ small2 @ basis.T)

    assert distance == pytest.approx(by_sqrtm((mu1, small1), (mu2, small2)), rel=1e-9)


def test_full_rank_against_deficient() -> None:
    vectors = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    deficient = vectors.T @ vectors  # its square root has the singular values of the vectors for its trace
    expected = 64 + float(deficient.trace() - 2 * torch.linalg.svdvals(vectors).sum())

    distance = frechet_distance(torch.zeros(64), torch.eye(64), torch.zeros(64), deficient)

    assert distance == pytest.approx(expected, rel=1e-6)


def test_without_any_spread_only_the_means_count() -> None:
    zero = torch.zeros(2, 2)

    assert frechet_distance(torch.zeros(2), zero, torch.tensor([3.0, 4.0]), zero) == 25


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(0, 99), st.integers(2, 8), st.integers(2, 20))
def test_properties(seed1: int, seed2: int, d: int, n: int) -> None:
    first, second = normal(seed1, d, n), normal(seed2, d, n)
    distance = frechet_distance(*first, *second)
    scale = float(first[1].trace() + second[1].trace()) + distance

    assert distance >= 0
    assert frechet_distance(*second, *first) == pytest.approx(distance, abs=1e-7 * scale)
    # Both moved alike: no change. One moved by t from an equal twin: |t|^2.
    both = frechet_distance(first[0] + 5, first[1], second[0] + 5, second[1])
    assert both == pytest.approx(distance, abs=1e-7 * scale)
    assert frechet_distance(*first, first[0] + 5, first[1]) == pytest.approx(25 * d, rel=1e-6)


def test_rejects_what_does_not_fit() -> None:
    mu, sigma = normal(0, 3, 10)
    with pytest.raises(ValueError, match=r"means must be \(d,\)"):
        frechet_distance(mu, sigma, mu[:2], sigma)
    with pytest.raises(ValueError, match="symmetric"):
        frechet_distance(mu, sigma, mu, sigma.triu())
    with pytest.raises(UserError, match="not finite"):
        frechet_distance(mu * torch.nan, sigma, mu, sigma)
