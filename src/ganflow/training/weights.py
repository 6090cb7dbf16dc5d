"""Finished weights as safetensors files, each of which holds the parameters it was made with."""

import json
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ganflow import params as params_module
from ganflow.errors import UserError
from ganflow.models.game import Game
from ganflow.params import Params
from ganflow.training.state import SECTIONS

Which = Literal["ema", "live"]

GENERATORS: dict[Which, str] = {"ema": "generator.safetensors", "live": "generator_live.safetensors"}
DISCRIMINATOR = "discriminator.safetensors"


class Origin(NamedTuple):
    """How weights came about: enough to build their networks again, and nothing that later stages decide."""

    params: Params
    channels: int
    resolution: int
    images: int


def save_weights(network: nn.Module, path: Path, origin: Origin) -> None:
    """Write the state of one network, with its origin in the file's metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    tree = params_module.dump(origin.params)
    tree = {**origin._asdict(), "params": {section: tree[section] for section in SECTIONS}}
    save_file(tensors, path, {"origin": json.dumps(tree)})  # one entry: more come in an order of the day


def load_game(trained: Path, which: Which, device: torch.device) -> Game:
    """Build the game that a training left in `trained`, in eval mode, with its averaged or its live generator.

    Raises UserError where a file is missing, damaged, or does not fit the networks.
    """
    generator, origin = _read(trained / GENERATORS[which])
    discriminator, _ = _read(trained / DISCRIMINATOR)
    game = origin.params.model.build(origin.channels, origin.resolution)
    try:
        game.generator.load_state_dict(generator)
        game.discriminator.load_state_dict(discriminator)
    except RuntimeError as error:
        raise UserError(f"{trained}: the weights do not fit this version's networks; train again ({error})") from None
    return game.to(device).eval()


def _read(path: Path) -> tuple[dict[str, Tensor], Origin]:
    try:
        with safe_open(path, framework="pt") as file:
            origin = json.loads(file.metadata()["origin"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        sizes = (int(origin[key]) for key in ("channels", "resolution", "images"))
        return tensors, Origin(params_module.parse(origin["params"], str(path)), *sizes)
    except FileNotFoundError:
        raise UserError(f"{path}: there are no trained weights; run `ganflow train` first") from None
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise UserError(f"{path}: is not a weights file of ganflow ({error}); train again") from None
