"""Augmentation on the device: the discriminator sees every picture, real or made, slightly moved.

Applied to both sides and differentiable, so that the generator does not learn it (Zhao et al. 2020, DiffAugment,
section 3.2).
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


def recolor(images: Tensor) -> Tensor:
    """Change brightness, saturation and contrast of each picture (n, c, h, w) at random, as DiffAugment does.

    Brightness moves by up to 0.5 each way, on the scale of [-1, 1]; colours lie 0 to 2 times as far from the pixel's
    gray, and pixels 0.5 to 1.5 times as far from the picture's mean.
    """
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, dtype=images.dtype, device=images.device)
    brighter = images + (brightness - 0.5)
    gray = brighter.mean(dim=1, keepdim=True)
    saturated = torch.lerp(gray, brighter, saturation * 2)
    mean = saturated.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, saturated, contrast + 0.5)


def cut_out(images: Tensor, share: float) -> Tensor:
    """Blank a square of `share` of the side in each picture (n, c, h, w), its centre anywhere, as DiffAugment does.

    Blank is 0, the middle of [-1, 1]. A square that reaches over the edge is cut off there.
    """
    n, _, height, width = images.shape
    sides = (round(height * share), round(width * share))
    inside = []
    for length, side in zip((height, width), sides, strict=True):
        start = torch.randint(0, length + (1 - side % 2), (n, 1), device=images.device) - side // 2
        places = torch.arange(length, device=images.device)
        inside.append((places >= start) & (places < start + side))
    blank = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(blank, 0.0)
