"""The network whose features are compared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from ganflow.errors import UserError
from ganflow.evaluation import classifier

ExtractorKind = Literal["classifier", "inception"]
Labeller = Callable[[Tensor], Tensor]
"""From pictures, uint8 (n, c, h, w) on any device, to logits (n, classes) of the data set's own classes."""


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

    @property
    def device(self) -> torch.device:
        """Where it computes, and its features are."""

    def features(self, images: Tensor) -> Tensor:
        """Turn pictures, uint8 (n, c, h, w) on any device, into float features (n, d)."""

    def logits(self, features: Tensor) -> Tensor:
        """Turn features (n, d) into the logits (n, classes) that the network makes of them."""


@dataclass(frozen=True)
class NetworkExtractor:
    """An extractor made of a function from uint8 pictures on `device` to features."""

    name: str
    digest: str
    dim: int
    resize: str
    embed: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor]
    device: torch.device

    def features(self, images: Tensor) -> Tensor:
        """Turn pictures, uint8 (n, c, h, w) on any device, into float32 features (n, d)."""
        with torch.inference_mode():
            return self.embed(images.to(self.device))

    def logits(self, features: Tensor) -> Tensor:
        """Turn features (n, d) into class logits (n, classes)."""
        with torch.inference_mode():
            return self.classify(features)


def load_extractor(kind: ExtractorKind, inception_weights: str, prepared: Path, device: torch.device) -> Extractor:
    """Load Inception from the file `inception_weights` (or where it is found), or the classifier in `prepared`.

    Raises UserError where weights are missing, damaged or of another network.
    """
    if kind == "inception":
        from ganflow.evaluation import inception

        weights = inception.find_weights(inception_weights)
        network, digest = inception.load_inception(weights)
        network.to(device)
        name = inception.name_of(digest)
        return NetworkExtractor(name, digest, inception.DIMENSION, inception.RESIZE, network, network.logits, device)
    if not (prepared / classifier.WEIGHTS_FILE).exists():
        raise UserError(
            f"{prepared}: holds no classifier ({classifier.WEIGHTS_FILE}), because the data set has no labels or fewer "
            "than two classes; set evaluate.extractor: inception, and train.fid_extractor: inception or, with "
            "evaluate.checkpoint: last, train.fid_every_images: 0"
        )
    trained, digest = classifier.load_classifier(prepared)
    trained.to(device)
    return NetworkExtractor("classifier", digest, trained.dimension, "none", trained.features, trained.logits, device)


def load_labeller(prepared: Path, device: torch.device) -> Labeller | None:
    """Load what tells the classes of the data set in `prepared`; None where it has no classifier."""
    if not (prepared / classifier.WEIGHTS_FILE).exists():
        return None
    network, _ = classifier.load_classifier(prepared)
    network.to(device)

    def label(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = network(images.to(device))
            return logits

    return label
