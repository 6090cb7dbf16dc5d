"""FID in the features of the tests' pixel extractor, by numpy alone: what the product is compared with."""

import numpy as np
from numpy.typing import NDArray


def quarters(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The features of the extractor, by numpy: the mean of each quarter, in [-1, 1]."""
    parts = np.asarray(images, dtype=float).reshape(-1, 2, 4, 2, 4)
    return (parts.mean((2, 4)) / 127.5 - 1).reshape(-1, 4)


def fid(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    gap = ((first.mean(0) - second.mean(0)) ** 2).sum()
    covariances = [np.cov(x, rowvar=False) for x in (first, second)]
    overlap = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0)).sum()
    return float(gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * overlap)
