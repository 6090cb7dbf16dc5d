"""The Fréchet distance between two normal distributions, which FID takes between features."""

import torch
from torch import Tensor

from ganflow.errors import UserError


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """Give |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    Means are (d,), covariances (d, d) and symmetric, on one device; computed in float64. The unit is that of the
    features squared; at least 0, and 0 for equal distributions.

    The trace of (S1 S2)^1/2 is the sum of the square roots of the eigenvalues of R^T S2 R with R R^T = S1: two
    symmetric eigendecompositions, real for covariances of any rank. R leaves out directions in which S1 is zero but
    for rounding.

    Raises ValueError for shapes that do not fit or a matrix that is not symmetric, UserError for values that are not
    finite.
    """
    d = len(mu1)
    shapes = [tuple(x.shape) for x in (mu1, sigma1, mu2, sigma2)]
    if shapes != [(d,), (d, d), (d,), (d, d)]:
        raise ValueError(f"means must be (d,) and covariances (d, d), not {', '.join(map(str, shapes))}")
    mu1, sigma1, mu2, sigma2 = (x.to(torch.float64) for x in (mu1, sigma1, mu2, sigma2))
    if not all(bool(torch.isfinite(x).all()) for x in (mu1, sigma1, mu2, sigma2)):
        raise UserError("the features are not finite: the extractor's weights hold NaN or infinity, or overflow")
    if not (torch.allclose(sigma1, sigma1.T) and torch.allclose(sigma2, sigma2.T)):
        raise ValueError("a covariance must be symmetric")

    values, vectors = torch.linalg.eigh(sigma1)
    kept = values > values[-1] * d * torch.finfo(torch.float64).eps
    root = vectors[:, kept] * values[kept].sqrt()
    # Rounding makes zero eigenvalues slightly negative.
    overlap = torch.linalg.eigvalsh(root.T @ sigma2 @ root).clamp_min(0).sqrt().sum()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * overlap
    return max(0.0, float(distance))
