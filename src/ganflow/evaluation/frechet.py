"""The Fréchet distance between two normal distributions, which FID takes between features."""

import math

import torch
from torch import Tensor

from ganflow.errors import UserError

_EPS = torch.finfo(torch.float64).eps
_BLOCK = 256


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """Give |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    Means are (d,), covariances (d, d) and symmetric, on one device; computed in float64. The unit is that of the
    features squared; at least 0, and 0 for equal distributions. Right for covariances of any rank.

    Raises ValueError for shapes that do not fit or a matrix that is not symmetric, UserError for values that are not
    finite.
    """
    d = len(mu1)
    shapes = [tuple(x.shape) for x in (mu1, sigma1, mu2, sigma2)]
    if shapes != [(d,), (d, d), (d,), (d, d)]:
        raise ValueError(f"means must be (d,) and covariances (d, d), not {', '.join(map(str, shapes))}")
    mu1, sigma1, mu2, sigma2 = (x.to(torch.float64) for x in (mu1, sigma1, mu2, sigma2))
    # A sum over any value that is not finite is not finite, and costs less than a look at each.
    if not all(bool(x.sum().isfinite()) for x in (mu1, sigma1, mu2, sigma2)):
        raise UserError("the features are not finite: the extractor's weights hold NaN or infinity, or overflow")
    if not (_symmetric(sigma1) and _symmetric(sigma2)):
        raise ValueError("a covariance must be symmetric")

    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * _overlap(sigma1, sigma2)
    return max(0.0, float(distance))


def _symmetric(sigma: Tensor) -> bool:
    """Tell whether a covariance equals its transpose but for rounding; block by block, which stays in the cache."""
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(sigma), _BLOCK)]
    most = 1e-8 * sigma.diagonal().max()
    return all(
        bool(((sigma[block, block.start :] - sigma[block.start :, block].T).abs() <= most).all()) for block in blocks
    )


def _overlap(sigma1: Tensor, sigma2: Tensor) -> Tensor:
    """Give tr (S1 S2)^1/2: with any roots R R^T = S, the sum of the singular values of R2^T R1.

    Between two matrices that are safely positive definite these are the square roots of the eigenvalues of
    L^T S2 L with the Cholesky factor L of S1. A singular one would have eigenvalues of 0 there, which rounding moves
    to eps, and their square roots to 1.5e-8.
    """
    factor = _cholesky(sigma1)
    if factor is None:
        return _overlap_at_any_rank(sigma1, sigma2)
    if _cholesky(sigma2) is None:
        return _overlap_at_any_rank(sigma2, sigma1)
    # The lower triangle of L^T S2 L, which is all that eigvalsh reads: a third of the work of two whole products.
    product = torch.zeros_like(sigma1)
    for start in range(0, len(sigma1), _BLOCK):
        rest, block = slice(start, None), slice(start, start + _BLOCK)
        product[rest, block] = factor[rest, rest].T @ (sigma2[rest, rest] @ factor[rest, block])
    squares: Tensor = torch.linalg.eigvalsh(product, UPLO="L")
    return squares.clamp_min(0).sqrt().sum()


def _cholesky(sigma: Tensor) -> Tensor | None:
    """Give L with L L^T = S, or None if S may be singular.

    L_ii^2 / S_ii is the share of its variance that feature i has apart from the features before it. It would be 0 in
    a singular S, and rounding leaves far less than the sqrt(eps) = 1.5e-8 that is asked for.
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(sigma)
    if bool(failed) or bool((factor.diagonal().square() <= _EPS**0.5 * sigma.diagonal()).any()):
        return None
    return factor


def _overlap_at_any_rank(sigma1: Tensor, sigma2: Tensor) -> Tensor:
    """Give tr (S1 S2)^1/2 within the range of S1, by roots that leave out what is zero but for rounding."""
    values1, vectors1 = _above(_noise(sigma1), sigma1)
    values2, vectors2 = _above(_noise(sigma2), vectors1.T @ sigma2 @ vectors1)
    singular: Tensor = torch.linalg.svdvals(values1.sqrt()[:, None] * vectors2 * values2.sqrt())
    return singular.sum()


def _above(noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Give the eigenvalues (k,) above `noise` and their eigenvectors (d, k)."""
    values, vectors = torch.linalg.eigh(sigma)
    kept = values > noise
    return values[kept], vectors[:, kept]


def _noise(sigma: Tensor) -> Tensor:
    """Give a size that eigenvalues have by rounding alone: d eps times the root mean square of the eigenvalues."""
    norm: Tensor = torch.linalg.matrix_norm(sigma)
    return norm * math.sqrt(len(sigma)) * _EPS
