"""FID: the Fréchet distance between the features of two sets of pictures (Heusel et al. 2017)."""

from collections.abc import Iterable

from torch import Tensor

from ganflow.evaluation.extractor import Extractor
from ganflow.evaluation.frechet import frechet_distance
from ganflow.evaluation.statistics import Moments, moments


def feature_moments(batches: Iterable[Tensor], extractor: Extractor) -> Moments:
    """Take the moments of the features of pictures that come in batches of uint8 (n, c, h, w)."""
    return moments(extractor.features(batch) for batch in batches)


def distance(first: Moments, second: Moments) -> float:
    """Give the Fréchet distance between two sets of features."""
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
