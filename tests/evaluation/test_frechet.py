import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganflow.errors import UserError
from ganflow.evaluation import frechet
from ganflow.evaluation.frechet import frechet_distance

Normal = tuple[torch.Tensor, torch.Tensor]


def normal(seed: int, d: int, n: int) -> Normal:
    """Mean and covariance of n vectors; of rank n - 1 at most."""
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x * torch.linspace(0.5, 2, d, dtype=torch.float64) + seed % 3
    return x.mean(0), torch.cov(x.T)


def power_law(seed: int, d: int, n: int, decay: float) -> torch.Tensor:
    """X (n, d) with covariance X^T X, whose eigenvalues fall as 1 / i^decay, in directions alike for every seed."""
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(99)))[0]
    x = x * torch.arange(1, d + 1) ** (-decay / 2) @ basis.T
    return (x - x.mean(0)) / (n - 1) ** 0.5


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


@pytest.mark.parametrize("n", [10, 65, 400])
def test_identical_is_zero_at_any_rank(n: int) -> None:
    mu, sigma = normal(3, 64, n)

    assert frechet_distance(mu, sigma, mu, sigma) <= 1e-9 * float(sigma.trace())


@pytest.mark.parametrize("decay", [2.0, 4.0, 8.0])
def test_identical_is_zero_however_near_singular(decay: float) -> None:
    x = power_law(0, 64, 160, decay)
    sigma = x.T @ x
    mu = torch.zeros(64)

    assert frechet_distance(mu, sigma, mu, sigma) <= 1e-9 * float(sigma.trace())


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("counts", [(160, 200), (64, 64), (16, 16), (16, 40), (40, 16), (20, 200), (200, 20), (65, 66)])
def test_equals_the_singular_values_of_the_data(counts: tuple[int, int], decay: float) -> None:
    """Of any rank, without a covariance: with S = X^T X, the trace of the root is the sum of those of X2 X1^T."""
    x1, x2 = power_law(1, 64, counts[0], decay), 1.1 * power_law(2, 64, counts[1], decay)
    expected = float(x1.square().sum() + x2.square().sum() - 2 * torch.linalg.svdvals(x2 @ x1.T).sum())
    mu = torch.zeros(64)

    distance = frechet_distance(mu, x1.T @ x1, mu, x2.T @ x2)

    assert distance == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(mu, x2.T @ x2, mu, x1.T @ x1) == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e10])
def test_singular_by_one_direction(scale: float) -> None:
    """Rounding often lets the Cholesky factorisation of such a matrix through."""
    mu = torch.zeros(4)
    for seed in range(20):
        x1, x2 = scale * power_law(seed, 4, 40, 0.0), scale * power_law(seed, 4, 4, 0.0)
        expected = float(x1.square().sum() + x2.square().sum() - 2 * torch.linalg.svdvals(x2 @ x1.T).sum())

        assert frechet_distance(mu, x1.T @ x1, mu, x2.T @ x2) == pytest.approx(expected, rel=1e-10)


def test_well_conditioned_covariances_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(frechet, "_overlap_at_any_rank")
    x1, x2 = power_law(1, 64, 160, 2.0), power_law(2, 64, 160, 2.0)

    assert frechet_distance(torch.zeros(64), x1.T @ x1, torch.zeros(64), x2.T @ x2) > 0


@pytest.mark.parametrize("d", [16, 60, 64])
def test_block_by_block(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "_BLOCK", 16)
    first, second = normal(1, d, 4 * d), normal(2, d, 4 * d)

    assert frechet_distance(*first, *second) == pytest.approx(by_sqrtm(first, second), rel=1e-9)
    with pytest.raises(ValueError, match="symmetric"):
        frechet_distance(*first, second[0], second[1] + 0.01 * torch.eye(d)[:, torch.arange(d - 1, -1, -1)].triu())


@pytest.mark.parametrize("counts", [(200, 300), (20, 30), (20, 300)])
def test_a_scale_of_the_features_is_squared(counts: tuple[int, int]) -> None:
    """Also where variances are far from 1, and differ by many powers of ten from feature to feature."""
    first, second = normal(1, 32, counts[0]), normal(2, 32, counts[1])
    distance = frechet_distance(*first, *second)

    for scale in (1e-20, 1e20):
        scaled = (first[0] * scale, first[1] * scale**2, second[0] * scale, second[1] * scale**2)
        assert frechet_distance(*scaled) == pytest.approx(distance * scale**2, rel=1e-9)


def test_features_that_hardly_vary_beside_others_that_do() -> None:
    scales = torch.logspace(0, -12, 32, dtype=torch.float64)
    first, second = normal(1, 32, 200), normal(2, 32, 200)
    (mu1, sigma1), (mu2, sigma2) = ((mu * scales, sigma * scales.outer(scales)) for mu, sigma in (first, second))
    half = 16  # the others are beyond the digits of the sum
    expected = frechet_distance(*(x[:half] for x in (mu1, sigma1[:, :half], mu2, sigma2[:, :half])))

    assert frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n", [10, 400])
def test_on_cuda(n: int) -> None:
    first, second = normal(1, 64, n), normal(2, 64, n)

    distance = frechet_distance(*(x.cuda() for x in (*first, *second)))

    assert distance == pytest.approx(frechet_distance(*first, *second), rel=1e-9)


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

    assert distance == pytest.approx(expected, rel=1e-9)


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
    assert frechet_distance(*second, *first) == pytest.approx(distance, abs=1e-9 * scale)
    # Both moved alike: no change. One moved by t from an equal twin: |t|^2.
    both = frechet_distance(first[0] + 5, first[1], second[0] + 5, second[1])
    assert both == pytest.approx(distance, abs=1e-9 * scale)
    assert frechet_distance(*first, first[0] + 5, first[1]) == pytest.approx(25 * d, rel=1e-9)


def test_rejects_what_does_not_fit() -> None:
    mu, sigma = normal(0, 3, 10)
    with pytest.raises(ValueError, match=r"means must be \(d,\)"):
        frechet_distance(mu, sigma, mu[:2], sigma)
    with pytest.raises(ValueError, match="symmetric"):
        frechet_distance(mu, sigma, mu, sigma.triu())
    with pytest.raises(UserError, match="not finite"):
        frechet_distance(mu * torch.nan, sigma, mu, sigma)
