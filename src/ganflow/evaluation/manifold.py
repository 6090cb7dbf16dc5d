"""Precision, recall, density and coverage: how far generated and real pictures lie among each other.

Each set stands for the union of balls around its feature vectors, out to their k-th nearest neighbours.
"""

from collections.abc import Iterator
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from ganflow.evaluation.statistics import in_float64

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
LEAST_PICTURES = 1 + DENSITY_NEIGHBOURS

_BLOCK = 1 << 20  # distances that are held at once
# A vector that lies outside a ball by less than this share of the squared norms lies on it. It covers the rounding of
# float64 products, and that of float32 features about their mean (1e-6 of the norm).
_TOLERANCE = 1e-12


class ManifoldScores(NamedTuple):
    """Shares in [0, 1], except for density, which is 0 or more and about 1 for equal distributions.

    Precision: of generated pictures within a ball of the real ones. Recall: of real pictures within a ball of the
    generated ones (Kynkäänniemi et al. 2019, section 2; k = 3).
    Density: the mean number of balls of the real pictures that a generated one lies in, over k. Coverage: of real
    pictures with a generated one in their ball (Naeem et al. 2020, section 3; k = 5).
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Manifold:
    """The real pictures, with the radii of their balls.

    A vector on the edge of a ball is within it, and a copy of a picture always is within that picture's ball, even
    where the ball has no radius because more than k pictures are the same.
    """

    def __init__(self, real: Tensor) -> None:
        """Take the features (n, d) of real pictures, on any device.

        Computes in float64, with blocks of distances: n^2 of them are never held at once.
        Raises ValueError for another shape or n < 6, UserError for features that are not finite.
        """
        vectors = in_float64(real, LEAST_PICTURES)
        self._centre = vectors.mean(dim=0)
        self._real = vectors - self._centre
        self._radii = _squared_radii(self._real)

    def score(self, fake: Tensor) -> ManifoldScores:
        """Score the features (m, d) of generated pictures, on the device of the real ones; m may differ from n.

        Raises ValueError for another shape or m < 6, UserError for features that are not finite.
        """
        vectors = in_float64(fake, LEAST_PICTURES)
        if vectors.shape[1] != self._real.shape[1]:
            raise ValueError(f"generated features must be (m, {self._real.shape[1]}), not {tuple(fake.shape)}")
        vectors = vectors - self._centre
        narrow, wide = (self._radii[:, k - 1, None] for k in (PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS))
        fake_radii = _squared_radii(vectors)[:, PRECISION_NEIGHBOURS - 1]
        n, m = len(self._real), len(vectors)
        precise = torch.zeros(m, dtype=torch.bool, device=vectors.device)
        recalled, covered, inside = (precise.new_zeros((), dtype=torch.int64) for _ in range(3))
        for rows, distances in _squared_distances(self._real, vectors, _TOLERANCE):
            precise |= (distances <= narrow[rows]).any(dim=0)
            recalled += (distances <= fake_radii).any(dim=1).sum()
            balls = (distances <= wide[rows]).sum(dim=1)
            inside += balls.sum()
            covered += balls.count_nonzero()
        return ManifoldScores(
            precision=int(precise.sum()) / m,
            recall=int(recalled) / n,
            density=int(inside) / (DENSITY_NEIGHBOURS * m),
            coverage=int(covered) / n,
        )


def _squared_radii(vectors: Tensor) -> Tensor:
    """Give the squared distances (n, 5) from each vector to its nearest others, ascending; 0 is 0 but for rounding."""
    radii = []
    for rows, distances in _squared_distances(vectors, vectors):
        distances.diagonal(rows.start).fill_(inf)  # a vector is no neighbour of its own
        radii.append(distances.topk(DENSITY_NEIGHBOURS, largest=False).values)
    return torch.cat(radii)


def _squared_distances(a: Tensor, b: Tensor, tolerance: float = 0.0) -> Iterator[tuple[slice, Tensor]]:
    """Give the squared distances from (n, d) to (m, d), block by block: which rows of `a`, and (rows, m).

    They are short by `tolerance` times the sum of the squared norms, and so may be below 0.
    """
    a_norms, b_norms = ((1 - tolerance) * x.square().sum(dim=1) for x in (a, b))
    step = max(1, _BLOCK // len(b))
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        yield rows, torch.addmm(b_norms, a[rows], b.T, alpha=-2).add_(a_norms[rows, None])
