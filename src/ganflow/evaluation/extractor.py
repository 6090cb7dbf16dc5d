"""The network whose features are compared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ganflow.errors import UserError
from ganflow.evaluation import classifier
from ganflow.params import EvaluateParams


class Extractor(Protocol):
    """What turns pictures into features, and can be told from any other by its digest."""

    @property
    def name(self) -> str:
        """Name of the network."""

    @property
    def digest(self) -> str:
        """SHA-256 of its weights."""

    @property
    def dim(self) -> int:
        """Length d of a feature vector."""

    @property
    def resize(self) -> str:
        """What is done to the size of the pictures."""

    def features(self, images: Tensor) -> Tensor:
        """Turn pictures, uint8 (n, c, h, w) on any device, into float features (n, d)."""


@dataclass(frozen=True)
class NetworkExtractor:
    """An extractor made of a function from uint8 pictures on `device` to features."""

    name: str
    digest: str
    dim: int
    resize: str
    embed: Callable[[Tensor], Tensor]
    device: torch.device

    def features(self, images: Tensor) -> Tensor:
        """Turn pictures, uint8 (n, c, h, w) on any device, into float32 features (n, d)."""
        with torch.inference_mode():
            return self.embed(images.to(self.device))


def load_extractor(params: EvaluateParams, prepared: Path, device: torch.device) -> Extractor:
    """Load the extractor that `evaluate.extractor` names.

    The classifier lies in the folder `prepared`. Raises UserError where weights are missing, damaged or of another
    network.
    """
    if params.extractor == "inception":
        from ganflow.evaluation import inception

        weights = inception.find_weights(params.inception_weights)
        network, digest = inception.load_inception(weights)
        network.to(device)
        name = inception.name_of(digest)
        return NetworkExtractor(name, digest, inception.DIMENSION, inception.RESIZE, network, device)
    if not (prepared / classifier.WEIGHTS_FILE).exists():
        raise UserError(
            f"evaluate.extractor: {prepared} holds no classifier ({classifier.WEIGHTS_FILE}), because the data set has "
            "no labels or fewer than two classes; set evaluate.extractor: inception"
        )
    trained, digest = classifier.load_classifier(prepared)
    trained.to(device)
    return NetworkExtractor("classifier", digest, classifier.DIMENSION, "none", trained.features, device)
