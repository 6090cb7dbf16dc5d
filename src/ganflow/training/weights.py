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
from ganflow.training.digest import tensors_digest
from ganflow.training.disk import writing
from ganflow.training.state import SECTIONS

Which = Literal["ema", "live"]
Checkpoint = Literal["last", "best"]

GENERATORS: dict[Which, str] = {"ema": "generator.safetensors", "live": "generator_live.safetensors"}
BEST = "best"
"""Folder of the best checkpoint within that of the last one; both hold the same files."""


class Origin(NamedTuple):
    """How weights came about: enough to build their networks again, and nothing that later stages decide."""

    params: Params
    channels: int
    resolution: int
    classes: int
    images: int

    def build(self) -> Game:
        """Make the networks, freshly initialised."""
        return self.params.model.build(self.channels, self.resolution, self.classes)


def save_weights(network: nn.Module, path: Path, origin: Origin) -> None:
    """Write the state of one network, with its origin in the file's metadata. Raises FullDiskError."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    tree = params_module.dump(origin.params)
    tree = {**origin._asdict(), "params": {section: tree[section] for section in SECTIONS}}
    with writing(path, sum(tensor.nbytes for tensor in tensors.values())):
        save_file(tensors, path, {"origin": json.dumps(tree)})  # one entry: more come in an order of the day


def others(game: Game) -> dict[str, nn.Module]:
    """Give the networks of a game beside its generator, each by its file's name, such as discriminator.safetensors."""
    return {f"{name}.safetensors": network for name, network in game.named_children() if name != "generator"}


def folder_of(trained: Path, checkpoint: Checkpoint) -> Path:
    """Find the folder of a checkpoint below what a training left. Raises UserError where none was kept."""
    if checkpoint == "last":
        return trained
    if trained.is_dir() and not (trained / BEST).is_dir():
        raise UserError(
            f"evaluate.checkpoint: {trained} holds no best checkpoint, because it was trained without "
            "train.fid_every_images; set that and train again, or set evaluate.checkpoint: last"
        )
    return trained / BEST


def load_game(trained: Path, which: Which, device: torch.device) -> Game:
    """Build the game that a training left in `trained`, in eval mode, with its averaged or its live generator.

    Raises UserError where a file is missing, damaged, or does not fit the networks.
    """
    generator, origin = _read(trained / GENERATORS[which])
    game = origin.build()
    try:
        game.generator.load_state_dict(generator)
        for name, network in others(game).items():
            network.load_state_dict(_read(trained / name)[0])
    except RuntimeError as error:
        raise UserError(f"{trained}: the weights do not fit this version's networks; train again ({error})") from None
    return game.to(device).eval()


def read_origin(path: Path) -> Origin:
    """Read how the weights in a file came about. Raises UserError where it is missing or damaged."""
    return _read(path)[1]


def weights_digest(path: Path) -> str:
    """SHA-256 of the tensors in a safetensors file: of names, types, shapes and values, not of the file's metadata."""
    try:
        with safe_open(path, framework="np") as file:
            digest = tensors_digest((name, file.get_tensor(name)) for name in sorted(file.keys()))
    except FileNotFoundError:
        raise UserError(f"{path}: there are no trained weights; run `ganflow train` first") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is not a weights file of ganflow ({error}); train again") from None
    return f"sha256:{digest}"


def _read(path: Path) -> tuple[dict[str, Tensor], Origin]:
    try:
        with safe_open(path, framework="pt") as file:
            origin = json.loads(file.metadata()["origin"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        sizes = (int(origin[key]) for key in ("channels", "resolution", "classes", "images"))
        return tensors, Origin(params_module.parse(origin["params"], str(path)), *sizes)
    except FileNotFoundError:
        raise UserError(f"{path}: there are no trained weights; run `ganflow train` first") from None
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise UserError(f"{path}: is not a weights file of ganflow ({error}); train again") from None
