"""Which device computes."""

import torch

from ganflow.errors import UserError


def pick_device(name: str) -> torch.device:
    """Turn `train.device` into a device: auto takes CUDA, then MPS, then the CPU.

    Raises UserError where the device asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(candidate for candidate, found in there.items() if found)
    if not there[name]:
        found = ", ".join(candidate for candidate, present in there.items() if present)
        raise UserError(f"train.device: torch finds no {name} device here, only {found}; or use auto")
    return torch.device(name)
