"""Pictures side by side in one PNG."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

_SHORTEST_SIDE = 320  # a smaller grid is enlarged by whole pixels, so that a person can see it


def save_grid(images: npt.ArrayLike, path: Path, columns: int) -> None:
    """Write pictures (n, c, h, w) of uint8, c of 1 or 3, row by row as a PNG; missing places stay black."""
    tiles = np.asarray(images)
    n, channels, height, width = tiles.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, channels, height, width), np.uint8)
    sheet[:n] = tiles
    sheet = sheet.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    factor = max(1, _SHORTEST_SIDE // min(picture.size))
    picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(path)
