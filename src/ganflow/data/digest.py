"""The digest of a packed data set: of what it holds, and not of how it is cut into files."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ganflow.data.card import SPLITS, Split
from ganflow.data.packed import PackedData

_READ_AT_ONCE = 2**22


class DataDigest:
    """A SHA-256 of class names and, split by split, of shape, pixels and labels, while they pass by."""

    def __init__(self, classes: Sequence[str] | None) -> None:
        self._hash = hashlib.sha256(json.dumps(classes).encode())

    def begin(self, split: Split, shape: Sequence[int]) -> None:
        """Begin a split of pictures (n, c, h, w); all splits come in the order of `SPLITS`."""
        self._hash.update(json.dumps([split, shape]).encode())

    def add_pixels(self, pixels: bytes) -> None:
        """Add the bytes of the next pictures."""
        self._hash.update(pixels)

    def add_labels(self, labels: NDArray[np.int64]) -> None:
        """Add the labels (n,) of the split, after its pictures."""
        self._hash.update(labels.astype("<i8").tobytes())

    def __str__(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def digest_of(packed: PackedData) -> str:
    """Read all of a packed data set, and give the digest that its card should have."""
    digest = DataDigest(packed.card.classes)
    for split in SPLITS:
        images, labels = packed.images(split), packed.labels(split)
        digest.begin(split, images.shape)
        step = max(1, _READ_AT_ONCE // images[:1].nbytes)
        for start in range(0, len(images), step):
            digest.add_pixels(images[start : start + step].tobytes())
        if labels is not None:
            digest.add_labels(labels)
    return str(digest)
