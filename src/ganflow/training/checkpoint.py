"""The state to resume from: one safetensors file, replaced whole or not at all."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ganflow.training.match import Match

FILE = "checkpoint.safetensors"


class NotFiniteError(Exception):
    """The weights hold a value that is not finite, so that the checkpoint before is the better one."""


def save(match: Match, folder: Path) -> None:
    """Write everything that the rest of the training depends on. Raises NotFiniteError for broken weights."""
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
    temporary = folder / f"{FILE}.part"
    save_file(on_host, temporary, {"rounds": str(match.rounds), "counts": json.dumps(counts)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(folder / FILE)


def restore(match: Match, folder: Path) -> bool:
    """Bring a freshly made match to where the checkpoint was written; False where there is none."""
    path = folder / FILE
    if not path.exists():
        return False
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    match.rounds = int(metadata["rounds"])
    match.game.load_state_dict(_below(tensors, "game"))
    match.average.network.load_state_dict(_below(tensors, "average"))
    match.meter.restore(_below(tensors, "sums"), json.loads(metadata["counts"]))
    for player, optimizer in match.optimizers.items():
        _restore_optimizer(optimizer, _below(tensors, f"optimizer.{player}"))
    _restore_random_state(match.device, _below(tensors, "random"))
    return True


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


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }
