"""New pictures from trained weights or from a registered model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, sqrt
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ganflow.data.grid import save_grid
from ganflow.errors import UserError
from ganflow.evaluation.sampling import drawn_inputs, pictures_of
from ganflow.models.game import Game
from ganflow.training.device import pick_device
from ganflow.training.weights import load_game

_BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Order:
    """How many pictures, from which seed of the latents, and what all of them are to have, such as a label."""

    n: int
    seed: int
    chosen: Mapping[str, float] = field(default_factory=dict)


def sample(trained: Path, device: str, order: Order, out: Path, *, single: bool) -> None:
    """Write pictures of the averaged generator in `trained`: a grid as PNG at `out`, or single PNGs in it.

    `device` is named as in `train.device`. The latents follow from the seed on every device. Raises UserError.
    """
    _write(load_game(trained, "ema", pick_device(device)), order, out, single=single)


def sample_registered(uri: str, order: Order, out: Path, *, single: bool) -> None:
    """Write pictures of a registered model, on the CPU, that it was exported on. Raises UserError."""
    from ganflow.registry import load_registered  # MLflow takes seconds to import, and weights do not need it

    _write(load_registered(uri), order, out, single=single)


def _write(game: Game, order: Order, out: Path, *, single: bool) -> None:
    if order.n < 1:
        raise UserError(f"-n {order.n}: must be at least 1 picture")
    if not 0 <= order.seed < 2**63:
        raise UserError(f"--seed {order.seed}: must be from 0 to 2**63 - 1")
    batches = (batch.cpu() for batch in _pictures(game, order))
    try:
        if single:
            _write_single(batches, out)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            save_grid(torch.cat(list(batches)).numpy(), out, columns=ceil(sqrt(order.n)))
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out}: cannot be written: {error}") from None


def _pictures(game: Game, order: Order) -> Iterator[Tensor]:
    for inputs in drawn_inputs(game, order.n, _BATCH, order.seed):
        try:
            chosen = game.inputs.choose(inputs, order.chosen)
        except ValueError as error:
            raise UserError(f"--{error}") from None
        yield pictures_of(game.generator, chosen)


def _write_single(batches: Iterator[Tensor], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = (picture for batch in batches for picture in batch.numpy())
    for index, picture in enumerate(pictures):
        pixels = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{index:06d}.png")
