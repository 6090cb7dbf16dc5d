"""Mean and covariance of features, batch by batch, in memory that does not grow with the number of pictures."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ganflow.errors import UserError


@dataclass(frozen=True)
class Moments:
    """The first two moments of `count` feature vectors, in float64.

    `mean` is (d,); `scatter` is (d, d), the sum of (x - mean)(x - mean)^T. Centred sums keep their digits where raw
    sums of squares cancel.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Take the moments of one batch of features (n, d), n of at least 1.

        Raises ValueError for another shape, UserError for features that are not finite.
        """
        values = in_float64(features)
        mean = values.mean(dim=0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Join the moments of two disjoint sets (Chan, Golub and LeVeque 1979).

        Raises ValueError if their dimensions differ.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"moments of {len(self.mean)} and of {len(other.mean)} dimensions cannot be merged")
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (d, d), over N - 1 as numpy.cov has it. Raises UserError for one vector alone."""
        if self.count < 2:
            raise UserError(f"a covariance needs two images at least, not {self.count}")
        return self.scatter / (self.count - 1)


def moments(batches: Iterable[Tensor]) -> Moments:
    """Take the moments of all batches of features (n, d) together. Raises UserError if there are none."""
    total: Moments | None = None
    for batch in batches:
        part = Moments.of(batch)
        total = part if total is None else total.merge(part)
    if total is None:
        raise UserError("there are no images to measure")
    return total


def in_float64(features: Tensor, least: int = 1) -> Tensor:
    """Give features (n, d) in float64, on their device, or on the CPU where the device has no float64.

    Raises ValueError for another shape or n below `least`, UserError for features that are not finite.
    """
    if features.ndim != 2 or len(features) < least:
        raise ValueError(f"features must be (n, d) with n of at least {least}, not {tuple(features.shape)}")
    if not torch.isfinite(features).all():
        raise UserError("the features are not finite: the extractor's weights hold NaN or infinity, or overflow")
    return (features.cpu() if features.device.type == "mps" else features).to(torch.float64)
