"""DCGAN: strided convolutions, batch norm, ReLU in G and LeakyReLU in D (Radford et al. 2016, section 3)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import nn

from ganflow.models.game import option
from ganflow.models.shapes import halvings
from ganflow.models.two_player import TwoPlayerGame, TwoPlayerParams

DiscriminatorNorm = Literal["none", "batch"]


@dataclass(frozen=True, kw_only=True)
class DCGANParams(TwoPlayerParams):
    """The parameters of a DCGAN."""

    family: Literal["dcgan"] = option("dcgan", "Kind of GAN.")
    width: int = option(64, "Channels at the largest inner resolution; each halving doubles them.", ge=4, le=1024)
    # The paper normalises D too; without it small data gave a better FID, and D scores alike in train and eval mode.
    discriminator_norm: DiscriminatorNorm = option("none", "Normalisation inside the discriminator: none or batch.")

    def build(self, channels: int, resolution: int) -> TwoPlayerGame:
        """Make the two convolutional networks, weights drawn from N(0, 0.02) (section 3.1 of the paper's details)."""
        base, doublings = halvings(resolution)
        widths = [self.width * 2 ** min(level, 3) for level in range(doublings)]  # at most 8 times the width
        game = TwoPlayerGame(
            self,
            _generator(self.latent_dim, widths, channels, base),
            _discriminator(channels, widths, base, self.discriminator_norm == "batch"),
        )
        game.apply(_initialise)
        return game


def _generator(latent_dim: int, widths: list[int], channels: int, base: int) -> nn.Module:
    """Latents (n, latent_dim) -> base x base -> doubled until the pictures (n, channels, side, side) in [-1, 1]."""
    layers: list[nn.Module] = [
        nn.Unflatten(1, (latent_dim, 1, 1)),
        nn.ConvTranspose2d(latent_dim, widths[-1], base, bias=False),
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(),
    ]
    for wide, narrow in pairwise(reversed(widths)):
        layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[0], channels, 4, 2, 1), nn.Tanh())


def _discriminator(channels: int, widths: list[int], base: int, batch_norm: bool) -> nn.Module:
    """Pictures (n, channels, side, side) -> halved down to base x base -> logits (n,)."""
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
    for narrow, wide in pairwise(widths):
        layers.append(nn.Conv2d(narrow, wide, 4, 2, 1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(wide))
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, base), nn.Flatten(0))


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
