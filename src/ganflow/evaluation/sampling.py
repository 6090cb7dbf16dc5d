"""Pictures as batches of bytes, real and generated: what every metric takes."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganflow.data.quantise import to_uint8
from ganflow.errors import UserError
from ganflow.models.game import Game


def generate(game: Game, n: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Generate `n` pictures in batches of uint8 (batch_size, c, h, w), on the generator's device.

    The generator is put into eval mode. Its inputs are drawn on the CPU and all at once, so that they are the same on
    every device and for every batch size.

    Raises UserError if the generator makes values that are not finite.
    """
    game.generator.eval()
    inputs = game.draw_inputs(n, torch.Generator().manual_seed(seed))
    for batch in torch.split(inputs, batch_size):
        with torch.inference_mode():
            images = game.generator(batch)
            if not torch.isfinite(images).all():
                raise UserError("the generator makes values that are not finite: its weights are broken; train again")
            pixels = to_uint8(images)
        yield pixels


def real_batches(images: NDArray[np.uint8], batch_size: int) -> Iterator[Tensor]:
    """Read pictures (n, c, h, w), memory-mapped or not, in batches of uint8 (batch_size, c, h, w), on the CPU."""
    for start in range(0, len(images), batch_size):
        yield torch.from_numpy(np.array(images[start : start + batch_size]))
