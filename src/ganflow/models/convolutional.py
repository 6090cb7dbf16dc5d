"""The strided convolutional networks of DCGAN, which other families share (Radford et al. 2016, section 3)."""

from itertools import pairwise

from torch import nn

from ganflow.models.shapes import halvings


def channel_widths(width: int, resolution: int) -> list[int]:
    """Give the channels at each inner resolution, the largest first: doubled at each halving, up to 8 times."""
    _, doublings = halvings(resolution)
    return [width * 2 ** min(level, 3) for level in range(doublings)]


def generator(inputs: int, widths: list[int], channels: int, base: int) -> nn.Sequential:
    """Inputs (n, inputs) -> base x base -> doubled until the pictures (n, channels, side, side) in [-1, 1]."""
    layers: list[nn.Module] = [
        nn.Unflatten(1, (inputs, 1, 1)),
        nn.ConvTranspose2d(inputs, widths[-1], base, bias=False),
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(),
    ]
    for wide, narrow in pairwise(reversed(widths)):
        layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[0], channels, 4, 2, 1), nn.Tanh())


def encoder(channels: int, widths: list[int], base: int, outputs: int, *, batch_norm: bool = False) -> nn.Sequential:
    """Pictures (n, channels, side, side) -> halved down to base x base -> (n, outputs)."""
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
    for narrow, wide in pairwise(widths):
        layers.append(nn.Conv2d(narrow, wide, 4, 2, 1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(wide))
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], outputs, base), nn.Flatten())


def discriminator(channels: int, widths: list[int], base: int, *, batch_norm: bool = False) -> nn.Sequential:
    """Pictures (n, channels, side, side) -> halved down to base x base -> scores (n,)."""
    return nn.Sequential(*encoder(channels, widths, base, 1, batch_norm=batch_norm)[:-1], nn.Flatten(0))


def initialise(layer: nn.Module) -> None:
    """Draw a layer's weights from N(0, 0.02) (section 4), a batch norm's from N(1, 0.02) as the authors' code does."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
