"""Pictures as batches of bytes, real and generated: what every metric takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ganflow.data.images import Images
from ganflow.data.quantise import to_uint8
from ganflow.errors import UserError
from ganflow.models.game import Game

_DRAWN_AT_ONCE = 1000


class Pictures(Protocol):
    """What is measured: pictures in a fixed order."""

    def batches(self, n: int, batch_size: int) -> Iterator[Tensor]:
        """Give the first `n` in batches of uint8 (at most batch_size, c, h, w)."""

    def take(self, indices: Sequence[int]) -> Tensor:
        """Give those at some places: uint8 (len(indices), c, h, w)."""


class BrokenGeneratorError(UserError):
    """The generator makes values that are not finite."""

    def __init__(self) -> None:
        super().__init__("the generator makes values that are not finite: its weights are broken; train again")


def generate(game: Game, n: int, batch_size: int, seed: int, generator: nn.Module | None = None) -> Iterator[Tensor]:
    """Generate `n` pictures in batches of uint8 (at most batch_size, c, h, w), on the generator's device.

    `generator` is another network than the game's own, such as its average; either is put into eval mode. The inputs
    are the same on every device and for every batch size, and those of the first pictures for every `n`.

    Raises BrokenGeneratorError.
    """
    network = game.generator if generator is None else generator
    for inputs in drawn_inputs(game, n, batch_size, seed):
        yield pictures_of(network, inputs)


def drawn_inputs(game: Game, n: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Draw the inputs of `n` pictures in batches (at most batch_size, width), as `generate` does."""
    drawn = 0
    for chunk in _endless_inputs(game, seed):
        yield from torch.split(chunk[: n - drawn], batch_size)
        drawn += len(chunk)
        if drawn >= n:
            return


@dataclass(frozen=True)
class Generated:
    """The pictures of one generator, as many as are asked for."""

    game: Game
    seed: int

    def batches(self, n: int, batch_size: int) -> Iterator[Tensor]:
        """Generate the first `n` pictures in batches of uint8 (at most batch_size, c, h, w)."""
        return generate(self.game, n, batch_size, self.seed)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Generate those at some places again: uint8 (len(indices), c, h, w)."""
        chosen: dict[int, Tensor] = {}
        drawn = 0
        for chunk in _endless_inputs(self.game, self.seed):
            chosen |= {index: chunk[index - drawn] for index in indices if drawn <= index < drawn + len(chunk)}
            drawn += len(chunk)
            if drawn > max(indices):
                break
        return pictures_of(self.game.generator, torch.stack([chosen[index] for index in indices]))


def _endless_inputs(game: Game, seed: int) -> Iterator[Tensor]:
    """Draw inputs without end, on the CPU and always as many at a time: more pictures take no more memory."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        yield game.draw_inputs(_DRAWN_AT_ONCE, rng)


def pictures_of(network: nn.Module, inputs: Tensor) -> Tensor:
    """Make pictures, uint8 (n, c, h, w), by a generator, put into eval mode. Raises BrokenGeneratorError."""
    network.eval()
    with torch.inference_mode():
        images = network(inputs)
        if not torch.isfinite(images).all():
            raise BrokenGeneratorError
        return to_uint8(images)


def real_batches(images: Images | NDArray[np.uint8], batch_size: int, count: int | None = None) -> Iterator[Tensor]:
    """Read the first `count` pictures (n, c, h, w), or all, in batches of uint8 (batch_size, c, h, w), on the CPU."""
    end = len(images) if count is None else min(count, len(images))
    for start in range(0, end, batch_size):
        yield torch.from_numpy(np.array(images[start : min(start + batch_size, end)]))
