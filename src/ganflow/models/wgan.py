"""Wasserstein GAN: a critic whose clipped weights keep it Lipschitz (Arjovsky et al. 2017, Algorithm 1)."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ganflow.models.convolutional import channel_widths, discriminator, generator, initialise
from ganflow.models.game import Player, option
from ganflow.models.inputs import InputSpec
from ganflow.models.losses import WASSERSTEIN
from ganflow.models.shapes import halvings
from ganflow.models.two_player import TwoPlayerGame, TwoPlayerParams


@dataclass(frozen=True, kw_only=True)
class WGANParams(TwoPlayerParams):
    """The parameters of a Wasserstein GAN with weight clipping; clip and critic steps are the paper's."""

    family: Literal["wgan"] = option("wgan", "Kind of GAN.")
    loss: Literal["wasserstein"] = option("wasserstein", "What both lose: wasserstein.")
    discriminator_steps: int = option(5, "Critic steps a generator step (n_critic of Algorithm 1).", ge=1, le=100)
    width: int = option(64, "Channels at the largest inner resolution; each halving doubles them.", ge=4, le=1024)
    clip: float = option(0.01, "Largest absolute value of a weight of the critic (c of Algorithm 1).", gt=0.0, le=1.0)

    def build(self, channels: int, resolution: int, classes: int = 0) -> "WGANGame":
        """Make DCGAN's networks; unlike that of most of the paper's experiments, the critic has no batch norm."""
        base, _ = halvings(resolution)
        widths = channel_widths(self.width, resolution)
        return WGANGame(self, generator(self.latent_dim, widths, channels, base), discriminator(channels, widths, base))


class WGANGame(TwoPlayerGame):
    """Both networks move by RMSprop, since momentum makes the critic unstable (section 4.2); the critic is clipped."""

    def __init__(self, params: WGANParams, generator: nn.Module, critic: nn.Module) -> None:
        for network in (generator, critic):
            network.apply(initialise)
        super().__init__(params, WASSERSTEIN, generator, critic, InputSpec(params.noise, params.latent_dim))
        self._clip = params.clip

    @property
    def players(self) -> tuple[Player, ...]:
        """The critic moves first."""
        critic, generator = super().players
        return replace(critic, optimizer="rmsprop", constrain=self._constrain), replace(generator, optimizer="rmsprop")

    @torch.no_grad()
    def _constrain(self) -> None:
        weights: list[Tensor] = list(self.discriminator.parameters())
        torch._foreach_clamp_min_(weights, -self._clip)
        torch._foreach_clamp_max_(weights, self._clip)
