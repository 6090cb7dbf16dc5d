"""Pictures side by side in one PNG."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

_SHORTEST_SIDE = 400  # a smaller grid is enlarged by whole pixels, so that a person can see it
_GAP = 1  # pixels between pictures: strokes that touch the edge would run into the next one
_GAP_LEVEL = 64


def save_grid(images: npt.ArrayLike, target: Path | BinaryIO, columns: int) -> None:
    """Write pictures (n, c, h, w) of uint8, c of 1 or 3, row by row as a PNG; missing places stay black."""
    tiles = np.asarray(images)
    n, channels, height, width = tiles.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = np.full((rows * columns, channels, height + _GAP, width + _GAP), _GAP_LEVEL, np.uint8)
    sheet[:, :, :height, :width] = 0
    sheet[:n, :, :height, :width] = tiles
    sheet = sheet.reshape(rows, columns, channels, height + _GAP, width + _GAP).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * (height + _GAP), columns * (width + _GAP), channels)[:-_GAP, :-_GAP]
    picture = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    factor = max(1, _SHORTEST_SIDE // min(picture.size))
    picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(target, "PNG")
