"""The state to resume from: two safetensors files, the last and the one before, replaced whole or not at all."""

import json
import logging
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ganflow.errors import UserError
from ganflow.training.digest import tensors_digest
from ganflow.training.disk import sync, writing
from ganflow.training.match import Match

FILE = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"

_PART = f"{FILE}.part"
_DIGEST = "digest"
_LENGTH = 8  # bytes at the start of a safetensors file, little-endian: the length of the JSON that comes next

_log = logging.getLogger(__name__)


class NotFiniteError(Exception):
    """The weights hold a value that is not finite, so that the checkpoint before is the better one."""


class Checkpoint(NamedTuple):
    """A whole checkpoint: its file, its tensors by name, and the rest as texts by name."""

    path: Path
    tensors: Mapping[str, Tensor]
    texts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of all that it holds, as 64 hexadecimal digits."""
        return self.texts[_DIGEST]

    @property
    def images(self) -> int:
        """Real images shown until it was written."""
        return int(self.texts["images"])

    @property
    def recipe(self) -> dict[str, Any]:
        """What decided the training until then, as `state.recipe` lists it."""
        recipe: dict[str, Any] = json.loads(self.texts["recipe"])
        return recipe


class _DamagedError(Exception):
    """What is wrong with a checkpoint's file."""


def save(match: Match, folder: Path, recipe: Mapping[str, Any] | None = None) -> None:
    """Write everything that the rest of the training depends on, and the `recipe` of the training.

    The checkpoint that was the last one becomes the one before. Raises NotFiniteError for broken weights, and
    FullDiskError, with both as they were.
    """
    sums, counts = match.meter.state()
    tensors = {
        **_prefixed("game", match.game.state_dict()),
        **_prefixed("average", match.average.network.state_dict()),
        **_prefixed("sums", sums),
        **_prefixed("random", _random_state(match.device)),
    }
    for player, optimizer in match.optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            tensors |= _prefixed(f"optimizer.{player}.{index}", entries)
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in on_host.values()):
        raise NotFiniteError
    texts = {
        "rounds": str(match.rounds),
        "images": str(match.images),
        "counts": json.dumps(counts),
        "recipe": json.dumps(recipe or {}),
    }
    _write(on_host, {**texts, _DIGEST: _digest(on_host, texts)}, folder)


def copy(found: Checkpoint, folder: Path) -> None:
    """Write a checkpoint that was read into another folder, as the last one there. Raises FullDiskError."""
    _write(found.tensors, found.texts, folder)


def exists(folder: Path) -> bool:
    """Say whether there is a checkpoint, whole or not."""
    return any((folder / name).exists() for name in (FILE, PREVIOUS))


def last(folder: Path, *, put_aside: bool = False) -> Checkpoint | None:
    """Read the last checkpoint in a folder, or the one before where that is damaged; None where neither is whole.

    A damaged one is warned of and, if so asked, put aside under another name. What a kill left of one that was being
    written is deleted then, too.
    """
    if put_aside:
        _sweep(folder)
    for path in (folder / FILE, folder / PREVIOUS):
        try:
            return _read(path)
        except FileNotFoundError:
            continue
        except _DamagedError as error:
            kept = _put_aside(path) if put_aside else path
            _log.warning(
                "%s: is damaged (%s)%s; the checkpoint before it is used, or the beginning where there is none",
                path,
                error,
                "" if kept == path else f", and kept as {kept.name}",
            )
    return None


def glance(folder: Path) -> Checkpoint | None:
    """Read the texts alone of the last checkpoint in a folder, unchecked; None where that cannot be done."""
    path = folder / FILE if (folder / FILE).exists() else folder / PREVIOUS
    try:
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(_LENGTH), "little"))
        found = Checkpoint(path, {}, _texts(header))
        return found if found.recipe and found.images else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def restore(match: Match, folder: Path) -> bool:
    """Bring a freshly made match to where the last whole checkpoint was written; False where there is none.

    Only the leading process of a team puts a damaged one aside. Raises UserError where it does not fit the networks.
    """
    found = last(folder, put_aside=match.team.leads)
    if found is None:
        return False
    tensors = found.tensors
    try:
        match.game.load_state_dict(_below(tensors, "game"))
        match.average.network.load_state_dict(_below(tensors, "average"))
    except RuntimeError as error:
        raise UserError(f"{found.path}: does not fit this version's networks; train anew ({error})") from None
    match.rounds = int(found.texts["rounds"])
    match.meter.restore(_below(tensors, "sums"), json.loads(found.texts["counts"]))
    for player, optimizer in match.optimizers.items():
        _restore_optimizer(optimizer, _below(tensors, f"optimizer.{player}"))
    _restore_random_state(match.device, _below(tensors, "random"))
    return True


def _write(tensors: Mapping[str, Tensor], texts: Mapping[str, str], folder: Path) -> None:
    temporary, needed = folder / _PART, sum(tensor.nbytes for tensor in tensors.values())
    with writing(folder / FILE, needed, undo=lambda: _sweep(folder)):
        save_file(dict(tensors), temporary, dict(texts))
        sync(temporary)
    if (folder / FILE).exists():
        (folder / FILE).replace(folder / PREVIOUS)
    temporary.replace(folder / FILE)
    sync(folder)


def _sweep(folder: Path) -> None:
    """Delete what was left of a checkpoint that was being written; safetensors first writes under a name of its own."""
    for path in (*folder.glob(".tmp*"), folder / _PART):
        path.unlink(missing_ok=True)


def _read(path: Path) -> Checkpoint:
    """Read and check a file. Raises FileNotFoundError and _DamagedError."""
    try:
        # Not mapped into memory: what the disk cannot read would then end the process with a signal.
        raw = path.read_bytes()
        tensors = load(raw)
        texts = _texts(raw[_LENGTH : _LENGTH + int.from_bytes(raw[:_LENGTH], "little")])
        written = texts.pop(_DIGEST)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from None
    if _digest(tensors, texts) != written:
        raise _DamagedError("its content is not what was written")
    return Checkpoint(path, tensors, {**texts, _DIGEST: written})


def _texts(header: bytes) -> dict[str, str]:
    return dict(json.loads(header)["__metadata__"])


def _digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    described = np.frombuffer(json.dumps(texts, sort_keys=True).encode(), dtype=np.uint8)
    return tensors_digest([("", described), *((name, tensors[name].numpy()) for name in sorted(tensors))])


def _put_aside(path: Path) -> Path:
    names = (path.with_suffix(f".damaged-{number}") for number in count(1))
    kept = next(name for name in names if not name.exists())
    path.rename(kept)
    return kept


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        for name, tensor in _below(tensors, str(index)).items():
            # In the parameter's own memory layout: the fused kernels walk both side by side.
            kept = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor)
            optimizer.state[parameter][name] = kept.copy_(tensor)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _restore_random_state(device: torch.device, states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }
