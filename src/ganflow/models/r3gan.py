"""R3GAN: a relativistic loss with R1 and R2, and plain modern residual networks (Huang et al. 2024, NeurIPS)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

from ganflow.models.game import Pace, Player, option
from ganflow.models.inputs import InputSpec
from ganflow.models.losses import RELATIVISTIC
from ganflow.models.penalties import squared_gradient_norm
from ganflow.models.shapes import halvings
from ganflow.models.two_player import Scored, TwoPlayerGame, TwoPlayerParams

_BLOCKS = 2  # a stage
_EXPANSION = 2  # of the channels within a block
_GROUP = 16  # channels of a group of the 3x3 convolutions


@dataclass(frozen=True, kw_only=True)
class R3GANParams(TwoPlayerParams):
    """The parameters of R3GAN.

    During a burn-in, gamma, the learning rates and Adam's second decay go from their first values to their last ones
    along a cosine (section 4.1 and appendix). Both penalties are in every step: taking them rarely fails here.
    """

    family: Literal["r3gan"] = option("r3gan", "Kind of GAN.")
    loss: Literal["relativistic"] = option("relativistic", "What both lose: relativistic, with R1 and R2.")
    width: int = option(
        32, "Channels at the largest resolution; each halving doubles them.", ge=8, le=1024, multiple_of=8
    )
    max_width: int = option(256, "Most channels at any resolution.", ge=8, le=1024, multiple_of=8)
    gamma: float = option(0.1, "Weight of R1 and R2 at first: gamma/2 times D's squared gradients.", gt=0.0)
    final_gamma: float = option(0.01, "Weight of R1 and R2 after the burn-in.", gt=0.0)
    burn_in_images: int = option(100_000, "Length of the burn-in, in images.", ge=1)
    final_rate: float = option(0.25, "Share of the learning rates that is left after the burn-in.", gt=0.0, le=1.0)
    final_beta2: float = option(0.99, "Adam's decay of the second moment after the burn-in.", ge=0.0, lt=1.0)

    def build(self, channels: int, resolution: int, classes: int = 0) -> "R3GAN":
        """Make the two networks, mirror images of each other."""
        base, doublings = halvings(resolution)
        widths = [min(self.width * 2**level, self.max_width) for level in range(doublings, -1, -1)]
        return R3GAN(
            self, _Generator(self.latent_dim, widths, channels, base), _Discriminator(channels, widths[::-1], base)
        )


class R3GAN(TwoPlayerGame):
    """Both players compare real with generated pictures; R1 and R2 hold the discriminator."""

    penalised = (True, True)

    def __init__(self, params: R3GANParams, generator: nn.Module, discriminator: nn.Module) -> None:
        inputs = InputSpec(params.noise, params.latent_dim)
        super().__init__(params, RELATIVISTIC, generator, discriminator, inputs)
        self._params = params

    @property
    def players(self) -> tuple[Player, ...]:
        """The discriminator moves first; both slow down during the burn-in."""
        return tuple(replace(player, pace=self._pace) for player in super().players)

    def penalty(self, real: Scored, fake: Scored) -> Tensor | None:
        """Give gamma/2 (R1 + R2), gamma being that of the moment."""
        gamma = self._burnt_in(self.images, self._params.gamma, self._params.final_gamma)
        norms = squared_gradient_norm(real.scores, real.images) + squared_gradient_norm(fake.scores, fake.images)
        return gamma / 2 * norms

    def _pace(self, images: int, beta2: float) -> Pace:
        return Pace(
            self._burnt_in(images, 1.0, self._params.final_rate),
            self._burnt_in(images, beta2, self._params.final_beta2),
        )

    def _burnt_in(self, images: int, first: float, last: float) -> float:
        """Go from the first value to the last one along half a cosine."""
        share = min(images / self._params.burn_in_images, 1.0)
        return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


class _Generator(nn.Module):
    """Latents (n, latent_dim) -> a learned base of base x base -> stages -> pictures (n, channels, side, side).

    In eval mode the pictures are cut to [-1, 1]; the last layer has no bound, and training needs its gradient.
    """

    def __init__(self, latent_dim: int, widths: Sequence[int], channels: int, base: int) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.randn(widths[0], base, base))
        self.linear = _scaled(nn.Linear(latent_dim, widths[0], bias=False))
        self.stages = nn.Sequential(*_stages(widths, _Up))
        self.to_pixels = _scaled(nn.Conv2d(widths[-1], channels, 1, bias=False))

    def forward(self, latents: Tensor) -> Tensor:
        features = self.basis * self.linear(latents)[:, :, None, None]
        pictures: Tensor = self.to_pixels(self.stages(features))
        return pictures if self.training else pictures.clamp(-1, 1)


class _Discriminator(nn.Module):
    """Pictures (n, channels, side, side) -> stages -> a learned base of base x base -> scores (n,)."""

    def __init__(self, channels: int, widths: Sequence[int], base: int) -> None:
        super().__init__()
        self.from_pixels = _scaled(nn.Conv2d(channels, widths[0], 1, bias=False))
        self.stages = nn.Sequential(*_stages(widths, _Down))
        self.basis = nn.Parameter(torch.randn(widths[-1], base, base) / base)
        self.linear = _scaled(nn.Linear(widths[-1], 1, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(self.from_pixels(images))
        scores: Tensor = self.linear((features * self.basis).sum(dim=(2, 3)))
        return scores.flatten()


def _stages(widths: Sequence[int], resample: "type[_Up | _Down]") -> list[nn.Module]:
    """Make two residual blocks a resolution, and what changes the resolution between them."""
    blocks = _BLOCKS * len(widths)
    layers: list[nn.Module] = [_Residual(widths[0], blocks) for _ in range(_BLOCKS)]
    for before, after in pairwise(widths):
        layers += [resample(before, after), *(_Residual(after, blocks) for _ in range(_BLOCKS))]
    return layers


class _Residual(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions beside the identity, with no normalisation.

    Initialised as Fixup does (Zhang et al. 2019, section 3): the last convolution is 0, the others are scaled by
    blocks^(-1 / (2m - 2)), for m = 3 layers.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        inner, gain = _EXPANSION * width, math.sqrt(2 / (1 + 0.2**2)) * blocks**-0.25
        self.layers = nn.Sequential(
            _scaled(nn.Conv2d(width, inner, 1), gain),
            nn.LeakyReLU(0.2),
            _scaled(nn.Conv2d(inner, inner, 3, padding=1, groups=inner // _GROUP), gain),
            nn.LeakyReLU(0.2),
            _scaled(nn.Conv2d(inner, width, 1, bias=False), 0.0),
        )

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + self.layers(features)
        return result


class _Up(nn.Module):
    """Doubles the resolution bilinearly, and changes the channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.change = _change(before, after)

    def forward(self, features: Tensor) -> Tensor:
        features = self.change(features)  # before there are four times as many pixels
        kernel = _kernel(features, 4.0)
        return conv_transpose2d(features, kernel, stride=2, padding=1, output_padding=1, groups=features.shape[1])


class _Down(nn.Module):
    """Halves the resolution bilinearly, and changes the channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.change = _change(before, after)

    def forward(self, features: Tensor) -> Tensor:
        features = conv2d(features, _kernel(features, 1.0), stride=2, padding=1, groups=features.shape[1])
        changed: Tensor = self.change(features)
        return changed


def _change(before: int, after: int) -> nn.Module:
    return nn.Identity() if before == after else _scaled(nn.Conv2d(before, after, 1, bias=False))


def _kernel(features: Tensor, total: float) -> Tensor:
    """Give the filter [1, 2, 1] in both directions, of a sum, for each channel: (c, 1, 3, 3)."""
    row = torch.tensor([0.25, 0.5, 0.25], dtype=features.dtype, device=features.device)
    return (total * row[:, None] * row).expand(features.shape[1], 1, 3, 3)


def _scaled(layer: nn.Linear | nn.Conv2d, gain: float = 1.0) -> nn.Module:
    """Draw the weights so that the layer multiplies the variance of its input by gain^2; biases are 0."""
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
