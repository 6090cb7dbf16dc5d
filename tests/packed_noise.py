"""A small labelled data set of noise, packed as `ganflow prepare` would."""

from pathlib import Path

import numpy as np

from ganflow.data.card import DataCard
from ganflow.data.format import Format
from ganflow.data.packing import pack
from ganflow.data.sources import ArraySource


def pack_noise(folder: Path, n: int) -> DataCard:
    """Pack n gray pictures of 8x8 in two classes: a tenth of the training pictures for validation, a fifth for test."""
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8), dtype=np.uint8)
    return pack(
        ArraySource({"train": (images, np.arange(n) % 2)}, "ab"),
        folder,
        name="mine",
        source_name="digits",
        packed_format=Format(1, 8),
        validation_fraction=0.1,
        test_fraction=0.2,
        seed=0,
    )
