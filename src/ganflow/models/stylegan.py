"""StyleGAN2: a mapping to styles that modulate the weights of every layer (Karras et al. 2019 and 2020).

What is simpler here than in StyleGAN2: no deviation over the minibatch, so that a score depends on one picture alone;
lazy penalties join the step of the loss, weighted by their interval, and take no steps of their own with settings of
Adam's of their own; features are resampled bilinearly and by means of 2 x 2, not with longer filters, and before the
convolutions that change the resolution; the noise is fixed whenever pictures are made by the trained generator.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, leaky_relu, linear

from ganflow.models.game import Batch, Outcome, Sheet, option
from ganflow.models.inputs import Control, InputSpec
from ganflow.models.losses import NON_SATURATING
from ganflow.models.penalties import path_lengths, squared_gradient_norm
from ganflow.models.shapes import halvings
from ganflow.models.two_player import Scored, TwoPlayerGame, TwoPlayerParams

TRUNCATION = "truncation"
_MAPPING_RATE = 0.01  # of the learning rate (2019, appendix C)
_STYLE_DECAY = 0.995  # of the average style, whenever styles are made in training (as the authors' code has it)
_PATH_DECAY = 0.01  # how far the average path length moves a step (2020, appendix B)
_SHEET_SIDE = 6
_TRUNCATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class StyleGANParams(TwoPlayerParams):
    """The parameters of a StyleGAN2."""

    family: Literal["stylegan"] = option("stylegan", "Kind of GAN.")
    loss: Literal["non_saturating"] = option("non_saturating", "What both lose: non_saturating.")
    noise: Literal["normal"] = option("normal", "Distribution of the latents: standard normal.")
    width: int = option(32, "Channels at the largest resolution; each halving doubles them.", ge=4, le=1024)
    max_width: int = option(256, "Most channels at any resolution.", ge=4, le=1024)
    style_dim: int = option(64, "Length of a style.", ge=1, le=1024)
    mapping_layers: int = option(4, "Layers from a latent to its style.", ge=1, le=16)
    style_mixing: float = option(0.9, "Share of pictures whose layers take the styles of two latents.", ge=0.0, le=1.0)
    r1: float = option(1.0, "Weight gamma of R1: gamma/2 times D's squared gradient at real pictures.", ge=0.0)
    r1_every: int = option(16, "Rounds between two R1 penalties.", ge=1, le=1000)
    path_length: float = option(2.0, "Weight of the path length penalty.", ge=0.0)
    path_length_every: int = option(4, "Rounds between two path length penalties.", ge=1, le=1000)

    def build(self, channels: int, resolution: int, classes: int = 0) -> "StyleGAN":
        """Make the mapping and synthesis networks, and a residual discriminator."""
        base, doublings = halvings(resolution)
        widths = [min(self.width * 2**level, self.max_width) for level in range(doublings, -1, -1)]
        generator = _Generator(
            _Mapping(self.latent_dim, self.style_dim, self.mapping_layers),
            _Synthesis(self.style_dim, widths, channels, base),
        )
        return StyleGAN(self, generator, _Discriminator(channels, widths[::-1], base))


class StyleGAN(TwoPlayerGame):
    """The game of 2014 with two lazy penalties: R1 for the discriminator, path lengths for the generator."""

    path_mean: Tensor
    generator: "_Generator"

    def __init__(self, params: StyleGANParams, generator: "_Generator", discriminator: nn.Module) -> None:
        truncation = Control(name=TRUNCATION, least=0.0, most=1.0, default=1.0)
        inputs = InputSpec(params.noise, params.latent_dim, (truncation,))
        super().__init__(params, NON_SATURATING, generator, discriminator, inputs)
        self._params = params
        self.register_buffer("path_mean", torch.zeros(()))

    def penalty(self, real: Scored, fake: Scored) -> Tensor | None:
        """Give R1 in every `r1_every`-th round, `r1_every` times."""
        if not self.penalised[0]:
            return None
        return self._params.r1_every * self._params.r1 / 2 * squared_gradient_norm(real.scores, real.images)

    def _discriminator_turn(self, batch: Batch) -> Outcome:
        self.penalised = self._params.r1 > 0 and self.rounds % self._params.r1_every == 0, False
        return super()._discriminator_turn(batch)

    def _make(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self.generator(*self._draw_mixed(len(batch.images))), None

    def _draw_mixed(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw two inputs a picture, and the layer from which the second decides: one past the last for some."""
        layers = self.generator.layers
        crossover = torch.randint(1, layers, (n,), device=self.path_mean.device)
        mixed = torch.rand(n, device=crossover.device) < self._params.style_mixing
        return self.draw_inputs(n), self.draw_inputs(n), torch.where(mixed, crossover, layers)

    def _generator_turn(self, batch: Batch) -> Outcome:
        outcome = super()._generator_turn(batch)
        weight, every = self._params.path_length, self._params.path_length_every
        if not weight or self.rounds % every:
            return outcome
        lengths = self._path_lengths(max(1, len(batch.images) // 2))  # half a batch is enough (2020, appendix B)
        self.path_mean.lerp_(lengths.detach().mean(), _PATH_DECAY)
        penalty = every * weight * (lengths - self.path_mean).square().mean()
        return Outcome(outcome.loss + penalty, {"path_length": lengths.mean()})

    def _path_lengths(self, n: int) -> Tensor:
        styles = self.generator.styles(*self._draw_mixed(n))
        return path_lengths(self.generator.synthesis(styles), styles)

    def sheets(self, rng: torch.Generator) -> Mapping[str, Sheet]:
        """Make `style_mixing` and `truncation`.

        Mixing: the first row and the first column are pictures of their own; each other picture has the coarse layers
        of its row's and the fine ones of its column's. Truncation: a row for each psi from 0 to 1, the same latents.
        """
        n, layers = _SHEET_SIDE, self.generator.layers
        rows, columns = self.draw_inputs(n, rng), self.draw_inputs(n, rng)
        own = torch.full((n,), layers, device=rows.device)
        of_rows, of_columns = self.generator(rows, rows, own), self.generator(columns, columns, own)
        mixed = self.generator(
            rows.repeat_interleave(n, dim=0), columns.repeat(n, 1), own.new_full((n * n,), layers // 3)
        )
        blank = torch.ones_like(of_rows[:1])
        body = torch.cat([of_rows[:, None], mixed.unflatten(0, (n, n))], dim=1).flatten(0, 1)
        table = Sheet(torch.cat([blank, of_columns, body]), n + 1)
        latents = self.draw_inputs(2 * n, rng)
        truncated = [self.generator(self.inputs.choose(latents, {TRUNCATION: psi})) for psi in _TRUNCATIONS]
        return {"style_mixing": table, "truncation": Sheet(torch.cat(truncated), 2 * n)}


class _Generator(nn.Module):
    """Inputs (n, latent_dim + 1), the last column a truncation, to pictures (n, channels, side, side).

    In eval mode the pictures are cut to [-1, 1]; the last layer has no bound, and training needs its gradient.
    """

    average_style: Tensor

    def __init__(self, mapping: nn.Module, synthesis: "_Synthesis") -> None:
        super().__init__()
        self.mapping = mapping
        self.synthesis = synthesis
        self.layers = synthesis.layers
        self.register_buffer("average_style", torch.zeros(synthesis.style_dim))

    def forward(self, inputs: Tensor, others: Tensor | None = None, crossover: Tensor | None = None) -> Tensor:
        pictures: Tensor = self.synthesis(self.styles(inputs, others, crossover))
        return pictures if self.training else pictures.clamp(-1, 1)

    def styles(self, inputs: Tensor, others: Tensor | None = None, crossover: Tensor | None = None) -> Tensor:
        """Give the style of each layer (n, layers, style_dim).

        From its layer `crossover`, int64 (n,), on, a picture takes the style of its `others`, inputs like the first.
        """
        style = self._style(inputs)[:, None].expand(-1, self.layers, -1)
        if others is None or crossover is None:
            return style
        late = torch.arange(self.layers, device=inputs.device) >= crossover[:, None]
        return torch.where(late[:, :, None], self._style(others)[:, None], style)

    def _style(self, inputs: Tensor) -> Tensor:
        """Map inputs to styles (n, style_dim), drawn towards the average one by their truncation (2019, appendix B)."""
        style: Tensor = self.mapping(inputs[:, :-1]).float()
        if self.training:
            self.average_style.lerp_(style.detach().mean(dim=0), 1 - _STYLE_DECAY)
            return style
        return torch.lerp(self.average_style, style, inputs[:, -1:])


class _Mapping(nn.Sequential):
    """Latents (n, latent_dim), brought to length sqrt(latent_dim), to styles (n, style_dim)."""

    def __init__(self, latent_dim: int, style_dim: int, layers: int) -> None:
        steps: list[nn.Module] = [_UnitVariance()]
        for before in [latent_dim, *[style_dim] * (layers - 1)]:
            steps += [_Linear(before, style_dim, rate=_MAPPING_RATE), _LeakyReLU()]
        super().__init__(*steps)


class _Synthesis(nn.Module):
    """Styles (n, layers, style_dim) to pictures (n, channels, side, side), a sum over the resolutions."""

    def __init__(self, style_dim: int, widths: Sequence[int], channels: int, base: int) -> None:
        super().__init__()
        self.style_dim = style_dim
        self.layers = 2 * len(widths)
        self.constant = nn.Parameter(torch.randn(widths[0], base, base))
        convolutions, side = [_StyledConvolution(style_dim, widths[0], widths[0], base)], base
        for before, after in pairwise(widths):
            side *= 2
            convolutions.append(_StyledConvolution(style_dim, before, after, side, up=True))
            convolutions.append(_StyledConvolution(style_dim, after, after, side))
        self.convolutions = nn.ModuleList(convolutions)
        self.to_pixels = nn.ModuleList(_ToPixels(style_dim, width, channels) for width in widths)

    def forward(self, styles: Tensor) -> Tensor:
        # Not len(styles), which an export takes for a constant.
        features = self.constant.expand(styles.shape[0], -1, -1, -1)
        pictures: Tensor | None = None
        for layer, convolution in enumerate(self.convolutions):
            features = convolution(features, styles[:, layer])
            if layer % 2 == 0:  # the last convolution at this resolution
                detail = self.to_pixels[layer // 2](features, styles[:, layer + 1]).float()
                pictures = detail if pictures is None else _doubled(pictures) + detail
        assert pictures is not None
        return pictures


class _StyledConvolution(nn.Module):
    """A 3x3 convolution whose weights a style scales by input channel, and which are then brought to unit norm.

    Computed on the features instead of the weights, which is the same and makes one convolution of the whole batch
    (2020, section 2.2, eq. 1 and 3). Noise of a learned strength is added: fresh in training, in eval mode fixed.
    """

    noise: Tensor

    def __init__(self, style_dim: int, before: int, after: int, side: int, *, up: bool = False) -> None:
        super().__init__()
        self.up = up
        self.scale = _Linear(style_dim, before, bias=1.0)
        self.weight = nn.Parameter(torch.randn(after, before, 3, 3))
        self.bias = nn.Parameter(torch.zeros(after, 1, 1))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(1, 1, side, side))
        self.activation = _LeakyReLU()

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        weight = self.weight / math.sqrt(self.weight[0].numel())
        scale = self.scale(style)
        features = features * scale[:, :, None, None]
        features = conv2d(_doubled(features) if self.up else features, weight, padding=1)
        norms = linear(scale.square(), weight.square().sum(dim=(2, 3))) + 1e-8
        features = features * norms.rsqrt()[:, :, None, None]
        noise = torch.randn_like(features[:, :1]) if self.training else self.noise
        result: Tensor = self.activation(features + self.strength * noise + self.bias)
        return result


class _ToPixels(nn.Module):
    """A 1x1 convolution whose weights a style scales by input channel."""

    def __init__(self, style_dim: int, width: int, channels: int) -> None:
        super().__init__()
        self.scale = _Linear(style_dim, width, bias=1.0)
        self.convolution = _Convolution(width, channels, 1)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        result: Tensor = self.convolution(features * self.scale(style)[:, :, None, None])
        return result


class _Discriminator(nn.Module):
    """Pictures (n, channels, side, side) -> residual blocks that halve them -> scores (n,) (2020, section 4.1)."""

    def __init__(self, channels: int, widths: Sequence[int], base: int) -> None:
        super().__init__()
        last = widths[-1]
        self.layers = nn.Sequential(
            _Convolution(channels, widths[0], 1),
            _LeakyReLU(),
            *(_Halving(before, after) for before, after in pairwise(widths)),
            _Convolution(last, last, 3),
            _LeakyReLU(),
            nn.Flatten(),
            _Linear(last * base * base, last),
            _LeakyReLU(),
            _Linear(last, 1),
            nn.Flatten(0),
        )

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(images)
        return scores


class _Halving(nn.Module):
    """Two 3x3 convolutions, the second at half the resolution, beside a 1x1 one."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_Convolution(before, before, 3), _LeakyReLU())
        self.second = nn.Sequential(_Convolution(before, after, 3), _LeakyReLU())
        self.beside = _Convolution(before, after, 1)

    def forward(self, features: Tensor) -> Tensor:
        deep: Tensor = self.second(avg_pool2d(self.first(features), 2))
        result: Tensor = (deep + self.beside(avg_pool2d(features, 2))) / math.sqrt(2)
        return result


class _Linear(nn.Module):
    """A linear layer whose weights are drawn from N(0, 1) and scaled in use, so that all learn alike.

    As in Karras et al. 2018 (progressive growing), section 4.1. `rate` makes it learn more slowly.
    """

    def __init__(self, before: int, after: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before) / rate)
        self.bias = nn.Parameter(torch.full((after,), bias / rate))
        self.rate, self.gain = rate, rate / math.sqrt(before)

    def forward(self, features: Tensor) -> Tensor:
        return linear(features, self.weight * self.gain, self.bias * self.rate)


class _Convolution(nn.Module):
    """A convolution of odd side that keeps the resolution, its weights scaled in use as those of `_Linear`."""

    def __init__(self, before: int, after: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, side, side))
        self.bias = nn.Parameter(torch.zeros(after))
        self.gain, self.padding = 1 / math.sqrt(before * side * side), side // 2

    def forward(self, features: Tensor) -> Tensor:
        return conv2d(features, self.weight * self.gain, self.bias, padding=self.padding)


class _LeakyReLU(nn.Module):
    """Slope 0.2 below 0, times sqrt(2), which keeps the variance."""

    def forward(self, features: Tensor) -> Tensor:
        return leaky_relu(features, 0.2) * math.sqrt(2)


class _UnitVariance(nn.Module):
    """Brings latents (n, d) to a mean square of 1 each."""

    def forward(self, latents: Tensor) -> Tensor:
        return latents * (latents.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def _doubled(features: Tensor) -> Tensor:
    return interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
