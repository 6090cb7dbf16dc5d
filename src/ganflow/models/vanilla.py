"""The vanilla GAN: two multilayer perceptrons on flattened pictures (Goodfellow et al. 2014)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import nn

from ganflow.models.classic import ClassicGame, ClassicParams
from ganflow.models.game import option


@dataclass(frozen=True, kw_only=True)
class VanillaParams(ClassicParams):
    """The parameters of a vanilla GAN."""

    family: Literal["vanilla"] = option("vanilla", "Kind of GAN.")
    hidden_units: int = option(256, "Units of the narrowest of three hidden layers; each next doubles.", ge=4, le=4096)
    dropout: float = option(0.3, "Share of hidden units that the discriminator drops.", ge=0.0, lt=1.0)

    def build(self, channels: int, resolution: int, classes: int = 0) -> ClassicGame:
        """Make the two perceptrons."""
        widths = [self.hidden_units, 2 * self.hidden_units, 4 * self.hidden_units]
        return ClassicGame(
            self,
            _generator(self.latent_dim, widths, (channels, resolution, resolution)),
            _discriminator((channels, resolution, resolution), widths, self.dropout),
        )


def _generator(latent_dim: int, widths: list[int], shape: tuple[int, int, int]) -> nn.Module:
    """Latents (n, latent_dim) -> w -> 2w -> 4w -> pictures (n, *shape) in [-1, 1]."""
    layers: list[nn.Module] = []
    for units_in, units_out in pairwise([latent_dim, *widths]):
        layers += [nn.Linear(units_in, units_out), nn.LeakyReLU(0.2)]
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(*layers, nn.Linear(widths[-1], pixels), nn.Tanh(), nn.Unflatten(1, shape))


def _discriminator(shape: tuple[int, int, int], widths: list[int], dropout: float) -> nn.Module:
    """Pictures (n, *shape) -> 4w -> 2w -> w -> logits (n,)."""
    pixels = shape[0] * shape[1] * shape[2]
    layers: list[nn.Module] = [nn.Flatten()]
    for units_in, units_out in pairwise([pixels, *reversed(widths)]):
        layers += [nn.Linear(units_in, units_out), nn.LeakyReLU(0.2), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[0], 1), nn.Flatten(0))
