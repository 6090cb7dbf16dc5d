"""New pictures from trained weights or from a registered model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ganflow.data.grid import save_grid
from ganflow.errors import UserError
from ganflow.evaluation.sampling import generate
from ganflow.models.game import Game
from ganflow.training.weights import load_game

_BATCH = 250


def sample(source: Path | str, n: int, seed: int, out: Path, *, single: bool) -> None:
    """Write `n` pictures: one grid as PNG at `out`, or single PNG files in the folder `out`.

    `source` is the folder of a training, or the URI of a registered model. Raises UserError.
    """
    if n < 1:
        raise UserError(f"-n {n}: must be at least 1 picture")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed}: must be from 0 to 2**63 - 1")
    batches = generate(_load(source), n, _BATCH, seed)
    try:
        if single:
            _write_single(batches, out)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            save_grid(torch.cat(list(batches)).numpy(), out, columns=int(np.ceil(np.sqrt(n))))
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out}: cannot be written: {error}") from None


def _load(source: Path | str) -> Game:
    if isinstance(source, Path):
        return load_game(source, "ema", torch.device("cpu"))
    from ganflow.registry import load_registered  # MLflow takes seconds to import, and weights do not need it

    return load_registered(source)


def _write_single(batches: Iterator[Tensor], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = (picture for batch in batches for picture in batch.numpy())
    for index, picture in enumerate(pictures):
        pixels = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{index:06d}.png")
