"""Variational autoencoder: one player, and no game (Kingma and Welling 2014); what the GANs are compared with."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ganflow.models import convolutional
from ganflow.models.game import Batch, FamilyParams, Game, Outcome, Player, option
from ganflow.models.inputs import InputSpec
from ganflow.models.shapes import halvings


@dataclass(frozen=True, kw_only=True)
class VAEParams(FamilyParams):
    """The parameters of a variational autoencoder."""

    family: Literal["vae"] = option("vae", "Kind of GAN.")
    loss: Literal["elbo"] = option("elbo", "What is lost: the evidence lower bound, negated.")
    noise: Literal["normal"] = option("normal", "Distribution of the latents: standard normal.")
    latent_dim: int = option(16, "Length of the latent vector.", ge=1, le=4096)
    width: int = option(64, "Channels at the largest inner resolution; each halving doubles them.", ge=4, le=1024)
    pixel_deviation: float = option(
        0.2, "Standard deviation of a pixel about its reconstruction, on the scale of [-1, 1].", gt=0.0, le=2.0
    )

    def build(self, channels: int, resolution: int, classes: int = 0) -> "VAE":
        """Make DCGAN's networks: its generator as the decoder, and its discriminator as the encoder."""
        base, _ = halvings(resolution)
        widths = convolutional.channel_widths(self.width, resolution)
        return VAE(
            self,
            convolutional.encoder(channels, widths, base, 2 * self.latent_dim),
            convolutional.generator(self.latent_dim, widths, channels, base),
        )


class VAE(Game):
    """An encoder from pictures to (n, 2 latent_dim), means and log-variances, and a decoder, which is the generator."""

    discriminator: None
    no_discriminator = "a variational autoencoder has no discriminator"

    def __init__(self, params: VAEParams, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.inputs = InputSpec(params.noise, params.latent_dim)
        self.encoder = encoder
        self.generator = decoder
        self.discriminator = None
        self._variance = params.pixel_deviation**2

    @property
    def players(self) -> tuple[Player, ...]:
        """Encoder and decoder move together."""
        return (Player("generator", self, self._turn),)

    def _turn(self, batch: Batch) -> Outcome:
        mean, log_variance = self.encoder(batch.images).chunk(2, dim=1)
        latents = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        reconstruction = self._reconstruction_loss(batch.images, self.generator(latents))
        divergence = divergence_from_prior(mean, log_variance).mean()
        return Outcome(reconstruction + divergence, {"reconstruction": reconstruction, "divergence": divergence})

    def _reconstruction_loss(self, images: Tensor, reconstructed: Tensor) -> Tensor:
        """Give -log p(x|z) in nats a picture, the mean over the batch: pixels are normal about the reconstruction."""
        pixels = images[0].numel()
        squares = (images - reconstructed).square().sum(dim=(1, 2, 3)).mean()
        return squares / (2 * self._variance) + pixels / 2 * math.log(2 * math.pi * self._variance)


def divergence_from_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Give KL(q(z|x) || N(0, 1)) in nats, (n,), of normal distributions by mean and log-variance, (n, latent_dim) each.

    Kingma and Welling 2014, appendix B, negated.
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
