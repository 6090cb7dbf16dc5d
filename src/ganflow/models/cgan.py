"""Conditional GAN: both players are told the class (Mirza and Osindero 2014, section 3.2), here with convolutions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ganflow.models import convolutional
from ganflow.models.classic import ClassicGame, ClassicParams
from ganflow.models.game import Batch, Sheet, option
from ganflow.models.inputs import LABEL, Control, InputSpec
from ganflow.models.shapes import halvings

_SHEET_COLUMNS, _SHEET_ROWS = 10, 10


@dataclass(frozen=True, kw_only=True)
class CGANParams(ClassicParams):
    """The parameters of a conditional GAN."""

    family: Literal["cgan"] = option("cgan", "Kind of GAN.")
    width: int = option(64, "Channels at the largest inner resolution; each halving doubles them.", ge=4, le=1024)
    label_dim: int = option(16, "Length of the vector that stands for a class in the generator's input.", ge=1, le=1024)

    def build(self, channels: int, resolution: int, classes: int = 0) -> "CGANGame":
        """Make DCGAN's networks with an input for the class each. Raises ValueError without classes."""
        if classes < 1:
            raise ValueError("model.family: cgan needs pictures with labels, and this data set has none")
        base, _ = halvings(resolution)
        widths = convolutional.channel_widths(self.width, resolution)
        return CGANGame(
            self,
            _Generator(self, classes, widths, channels, base),
            _Discriminator(classes, channels, resolution, widths, base),
            InputSpec(self.noise, self.latent_dim, (Control(name=LABEL, least=0, most=classes - 1),)),
        )


class CGANGame(ClassicGame):
    """The discriminator asks whether a picture is a real one of its class."""

    def __init__(self, params: CGANParams, generator: nn.Module, discriminator: nn.Module, inputs: InputSpec) -> None:
        for network in (generator, discriminator):
            network.apply(convolutional.initialise)
        super().__init__(params, generator, discriminator, inputs)

    def judge(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Give the scores (n,) of pictures (n, c, h, w) as ones of the classes (n,)."""
        scores: Tensor = self.discriminator(images, labels)
        return scores

    def draw_like(self, batch: Batch) -> Tensor:
        """Draw inputs that ask for the classes of a batch, so that no class gives a picture away."""
        inputs = super().draw_like(batch)
        if batch.labels is not None:
            self.inputs.column(inputs, LABEL).copy_(batch.labels)
        return inputs

    def sheets(self, rng: torch.Generator) -> Mapping[str, Sheet]:
        """Make `labels`: a row for each of the first classes, the same latents in every row."""
        latents = self.draw_inputs(_SHEET_COLUMNS, rng)
        (label,) = self.inputs.controls
        rows = [self.inputs.choose(latents, {LABEL: n}) for n in range(min(int(label.most) + 1, _SHEET_ROWS))]
        return {"labels": Sheet(self.generator(torch.cat(rows)), _SHEET_COLUMNS)}


class _Generator(nn.Module):
    """Inputs (n, latent_dim + 1), the last column a class, to pictures (n, channels, side, side) in [-1, 1]."""

    def __init__(self, params: CGANParams, classes: int, widths: list[int], channels: int, base: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, params.label_dim)
        self.network = convolutional.generator(params.latent_dim + params.label_dim, widths, channels, base)

    def forward(self, inputs: Tensor) -> Tensor:
        latents, labels = inputs[:, :-1], inputs[:, -1].long()
        pictures: Tensor = self.network(torch.cat([latents, self.embedding(labels)], dim=1))
        return pictures


class _Discriminator(nn.Module):
    """Pictures (n, channels, side, side) and their classes (n,), int64, to scores (n,): a class is one more channel."""

    def __init__(self, classes: int, channels: int, side: int, widths: list[int], base: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, side * side)
        self.network = convolutional.discriminator(channels + 1, widths, base)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        plane = self.embedding(labels).unflatten(1, (1, *images.shape[2:]))
        scores: Tensor = self.network(torch.cat([images, plane], dim=1))
        return scores
