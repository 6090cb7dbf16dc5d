"""The kernel distance (KID): a distance between two sets of features that does not depend on how many there are."""

from math import nan, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ganflow.evaluation.statistics import in_float64

_BLOCK = 1 << 20  # kernel values that are held at once, of each of four kinds


class KernelDistance(NamedTuple):
    """An estimate of the squared distance and the standard deviation that it has over draws of the pictures."""

    value: float
    standard_error: float


def kernel_distance(real: Tensor, fake: Tensor) -> KernelDistance:
    """Estimate the squared maximum mean discrepancy between real and generated pictures (Binkowski et al. 2018).

    Takes features (n, d) of as many pictures of one kind as of the other, on one device; the kernel is
    k(x, y) = (x.y / d + 1)^3, in float64. Memory beside the features does not grow with n^2.

    The value has no unit. It is unbiased (Gretton et al. 2012, eq. 3), and so comes out below 0, too, for equal
    distributions. All pairs of pictures go into it, where the paper takes the mean over random subsets of 1000; both
    have the same expectation, and this one spreads least and needs no seed.

    The standard error is that of a mean over pairs. With h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)
    = mean + g_i + g_j + e_ij, where all terms are uncorrelated (Hoeffding 1948), the variance is
    4 Var(g) / n + 2 Var(e) / (n (n - 1)). Both are estimated without bias, as in an analysis of variance of the pairs.
    For equal distributions Var(g) is 0; an estimate below 0 is put up to 0, which makes the error too large there, by
    5 % on average in 64 dimensions and by 18 % in 4. From fewer than 4 pictures it cannot be estimated: nan.

    Raises ValueError for other shapes and for n < 2, UserError for features that are not finite.
    """
    if real.ndim != 2 or real.shape != fake.shape or len(real) < 2:
        shapes = f"{tuple(real.shape)}, {tuple(fake.shape)}"
        raise ValueError(f"features must be (n, d), n of at least 2 and as many real as fake, not {shapes}")
    x, y = in_float64(real), in_float64(fake)
    n = len(x)
    row_sums, squares, across = x.new_zeros(n), x.new_zeros(()), x.new_zeros(())
    for start in range(0, n, max(1, _BLOCK // n)):
        rows = slice(start, start + max(1, _BLOCK // n))
        k_across = _kernel(x[rows], y[start:]).add_(_kernel(y[rows], x[start:])).triu_(1)
        h = _kernel(x[rows], x[start:]).add_(_kernel(y[rows], y[start:])).triu_(1).sub_(k_across)
        row_sums[rows] += h.sum(1)
        row_sums[start:] += h.sum(0)
        squares += h.square().sum()
        across += k_across.sum()
    # The mean of h leaves out k(x_i, y_i); the estimate that others give takes it in.
    paired = ((x * y).mean(dim=1) + 1).pow(3).sum()
    mean = row_sums.sum() / (n * (n - 1))
    value = mean + 2 / n**2 * (across / (n - 1) - paired)
    return KernelDistance(float(value), _standard_error(row_sums, float(squares)))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    products = torch.addmm(x.new_ones(()), x, y.T, alpha=1 / x.shape[1])
    return products.square().mul_(products)


def _standard_error(row_sums: Tensor, squares: float) -> float:
    """Give the deviation of the mean over pairs.

    `row_sums` (n,) are the sums of h_ij over j other than i, `squares` is the sum of h_ij^2 over i < j.
    """
    n = len(row_sums)
    if n < 4:
        return nan
    pairs = n * (n - 1) / 2
    mean = float(row_sums.sum()) / (2 * pairs)
    # Least squares: the n effects have n - 1 degrees of freedom, the mean 1, the residuals the rest.
    effects = float(((row_sums - (n - 1) * mean) / (n - 2)).square().sum())
    residual_variance = max(0.0, squares - pairs * mean**2 - (n - 2) * effects) / (pairs - n)
    effect_variance = max(0.0, effects / (n - 1) - residual_variance / (n - 2))
    return sqrt(4 * effect_variance / n + residual_variance / pairs)
