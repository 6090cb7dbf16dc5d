"""WGAN-GP: a critic kept Lipschitz by a penalty on its gradients (Gulrajani et al. 2017, Algorithm 1)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ganflow.models.convolutional import channel_widths, discriminator, generator, initialise
from ganflow.models.game import option
from ganflow.models.inputs import InputSpec
from ganflow.models.losses import WASSERSTEIN
from ganflow.models.penalties import gradient_penalty
from ganflow.models.shapes import halvings
from ganflow.models.two_player import Scored, TwoPlayerGame, TwoPlayerParams


@dataclass(frozen=True, kw_only=True)
class WGANGPParams(TwoPlayerParams):
    """The parameters of a Wasserstein GAN with gradient penalty; its weight and the critic steps are the paper's."""

    family: Literal["wgan_gp"] = option("wgan_gp", "Kind of GAN.")
    loss: Literal["wasserstein"] = option("wasserstein", "What both lose: wasserstein.")
    discriminator_steps: int = option(5, "Critic steps a generator step (n_critic of Algorithm 1).", ge=1, le=100)
    width: int = option(64, "Channels at the largest inner resolution; each halving doubles them.", ge=4, le=1024)
    penalty: float = option(10.0, "Weight lambda of the penalty on the critic's gradients.", gt=0.0)

    def build(self, channels: int, resolution: int, classes: int = 0) -> "WGANGPGame":
        """Make DCGAN's networks; the critic has no batch norm, which would tie a picture's gradient to the others."""
        base, _ = halvings(resolution)
        widths = channel_widths(self.width, resolution)
        return WGANGPGame(
            self, generator(self.latent_dim, widths, channels, base), discriminator(channels, widths, base)
        )


class WGANGPGame(TwoPlayerGame):
    """The critic's loss and its penalty are descended in one step."""

    def __init__(self, params: WGANGPParams, generator: nn.Module, critic: nn.Module) -> None:
        for network in (generator, critic):
            network.apply(initialise)
        super().__init__(params, WASSERSTEIN, generator, critic, InputSpec(params.noise, params.latent_dim))
        self._weight = params.penalty

    def penalty(self, real: Scored, fake: Scored) -> Tensor | None:
        """Give lambda times the gradient penalty between these pictures."""
        return self._weight * gradient_penalty(self.discriminator, real.images, fake.images)
