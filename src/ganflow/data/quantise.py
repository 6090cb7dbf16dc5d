"""Between bytes and the floats that networks see: one rounding, shared by training, sampling and evaluation."""

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """Map uint8 pixels 0..255 to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Map floats to uint8 pixels, clipping what lies outside [-1, 1].

    The rounding of torch-fidelity and NVlabs' code, so that FIDs can be compared; it undoes `to_float` exactly.
    """
    return images.to(torch.float32).mul(127.5).add_(128.0).clamp_(0, 255).to(torch.uint8)
