"""The one form of all packed pictures, and how a picture of any size and colour is brought to it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Format:
    """What all packed pictures have in common: uint8 (channels, resolution, resolution)."""

    channels: int
    resolution: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one packed picture."""
        return self.channels, self.resolution, self.resolution

    @property
    def nbytes(self) -> int:
        """Size of one packed picture."""
        return self.channels * self.resolution**2


def pack_picture(pixels: NDArray[np.uint8], packed_format: Format) -> NDArray[np.uint8]:
    """Crop, colour and resize a picture, uint8 (h, w) or (h, w, 3), to (channels, resolution, resolution).

    The central square is turned gray (ITU-R 601 luma) or RGB, and resized: by Lanczos, which filters out what is too
    fine, where it shrinks, and bicubically where it grows.
    """
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    gray = packed_format.channels == 1
    if side == packed_format.resolution and (square.ndim == 2) == gray:
        return square[None] if gray else square.transpose(2, 0, 1)
    image = Image.fromarray(np.ascontiguousarray(square))
    if gray:
        image = image.convert("L")
    if side != packed_format.resolution:
        kernel = Image.Resampling.LANCZOS if side > packed_format.resolution else Image.Resampling.BICUBIC
        image = image.resize((packed_format.resolution, packed_format.resolution), kernel)
    if gray:
        return np.asarray(image)[None]
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
