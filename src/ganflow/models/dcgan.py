"""DCGAN: strided convolutions, batch norm, ReLU in G and LeakyReLU in D (Radford et al. 2016, section 3)."""

from dataclasses import dataclass
from typing import Literal

from ganflow.models.classic import ClassicGame, ClassicParams
from ganflow.models.convolutional import channel_widths, discriminator, generator, initialise
from ganflow.models.game import option
from ganflow.models.shapes import halvings

DiscriminatorNorm = Literal["none", "batch"]


@dataclass(frozen=True, kw_only=True)
class DCGANParams(ClassicParams):
    """The parameters of a DCGAN."""

    family: Literal["dcgan"] = option("dcgan", "Kind of GAN.")
    width: int = option(64, "Channels at the largest inner resolution; each halving doubles them.", ge=4, le=1024)
    # The paper normalises D too; without it small data gave a better FID, and D scores alike in train and eval mode.
    discriminator_norm: DiscriminatorNorm = option("none", "Normalisation inside the discriminator: none or batch.")

    def __post_init__(self) -> None:
        """Raise ValueError for penalties whose gradients batch norm would mix."""
        if self.discriminator_norm == "batch" and (self.r1 > 0 or self.r2 > 0):
            raise ValueError(
                "discriminator_norm: batch makes a score depend on all pictures of its batch, and r1 and r2 need the "
                "gradient of each alone; set discriminator_norm: none, or r1 and r2 to 0"
            )

    def build(self, channels: int, resolution: int, classes: int = 0) -> ClassicGame:
        """Make the two convolutional networks."""
        base, _ = halvings(resolution)
        widths = channel_widths(self.width, resolution)
        networks = (
            generator(self.latent_dim, widths, channels, base),
            discriminator(channels, widths, base, batch_norm=self.discriminator_norm == "batch"),
        )
        for network in networks:
            network.apply(initialise)
        return ClassicGame(self, *networks)
