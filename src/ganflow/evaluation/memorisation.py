"""Whether a generator copies its training pictures: nearest neighbours, compared with those of held-out pictures."""

from math import inf

import torch
from torch import Tensor

from ganflow.evaluation.discriminator import Interval, area_under_curve, auc_interval
from ganflow.evaluation.statistics import in_float64

_BLOCK = 1 << 20  # distances that are held at once


class NearestNeighbours:
    """The nearest training picture of each of m queries, found while the training pictures pass by in batches.

    `distances`, float64 (m,), are Euclidean between features: infinite before the first batch, exactly 0 for equal
    ones. `indices`, int64 (m,), count the training pictures in the order in which they passed, -1 before the first. Of
    pictures as near as each other, the batch that came first keeps the place.
    """

    def __init__(self, queries: Tensor) -> None:
        """Take the features (m, d) of the queries, on any device; the results are on it, too.

        Raises ValueError for another shape, UserError for features that are not finite.
        """
        self._queries = in_float64(queries)
        self._centre = self._queries.mean(dim=0)
        self._seen = 0
        self.distances = self._queries.new_full((len(queries),), inf)
        self.indices = torch.full((len(queries),), -1, device=self._queries.device)

    def update(self, batch: Tensor) -> None:
        """Take the features (b, d) of the next training pictures, on any device.

        Computes in float64, with blocks of distances: memory grows with m and with b, but not with their product.
        Raises ValueError for another shape, UserError for features that are not finite.
        """
        vectors = in_float64(batch).to(self._queries.device)
        if vectors.shape[1] != len(self._centre):
            raise ValueError(f"training features must be (b, {len(self._centre)}), not {tuple(batch.shape)}")
        # |q|^2 + |t|^2 - 2 q.t says which is nearest, but cancels far from the origin.
        centred = vectors - self._centre
        norms = centred.square().sum(dim=1)
        step = max(1, _BLOCK // len(vectors))
        for start in range(0, len(self._queries), step):
            rows = slice(start, start + step)
            queries = self._queries[rows]
            nearest = torch.addmm(norms, queries - self._centre, centred.T, alpha=-2).argmin(dim=1)
            # How near, it says with rounding; the difference of equal vectors is 0.
            distances = (queries - vectors[nearest]).square().sum(dim=1).sqrt()
            nearer = distances < self.distances[rows]
            self.distances[rows] = torch.where(nearer, distances, self.distances[rows])
            self.indices[rows] = torch.where(nearer, nearest + self._seen, self.indices[rows])
        self._seen += len(vectors)


def memorisation(generated: Tensor, held_out: Tensor) -> float:
    """Give the probability that a generated picture lies nearer to the training pictures than a held-out one.

    Takes distances to the nearest training picture, (n,) of generated and (m,) of real held-out pictures; ties count
    1/2. 1 for a generator that copies, 1/2 for one that is as far from its training pictures as new real ones, less
    for one that strays from them (Meehan, Chaudhuri and Dasgupta 2020, with one cell).

    Raises ValueError for other shapes and for distances that are not finite.
    """
    for distances in (generated, held_out):
        if distances.ndim != 1 or len(distances) == 0 or not torch.isfinite(distances).all():
            raise ValueError(f"distances must be (n,) and finite, with n of at least 1, not {tuple(distances.shape)}")
    return area_under_curve(held_out, generated)


def memorisation_interval(generated: Tensor, held_out: Tensor) -> Interval:
    """Give the 95 % confidence interval of `memorisation`, for the same distances: which pictures came up is chance.

    It holds for the training set as it is.
    """
    return auc_interval(memorisation(generated, held_out), len(held_out), len(generated))
