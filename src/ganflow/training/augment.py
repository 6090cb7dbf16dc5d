"""Augmentation on the device: the discriminator sees every picture, real or made, slightly moved.

Applied to both sides and differentiable, so that the generator does not learn it (Zhao et al. 2020, DiffAugment).
"""

import torch
from torch import Tensor


def translate(images: Tensor, reach: int) -> Tensor:
    """Shift each picture (n, c, h, w) by whole pixels, uniform in [-reach, reach] each way; the edge repeats."""
    n, _, height, width = images.shape
    shifts = torch.randint(-reach, reach + 1, (2, n, 1), device=images.device)
    rows = (torch.arange(height, device=images.device) + shifts[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + shifts[1]).clamp(0, width - 1)
    picked = images.permute(0, 2, 3, 1)[
        torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return picked.permute(0, 3, 1, 2)


def flip(images: Tensor) -> Tensor:
    """Mirror each picture (n, c, h, w) left to right with probability 1/2."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)
