"""The moving average of the generator, whose samples are better than those of its last step."""

import copy

import torch
from torch import nn


def half_life(images: int, longest: int, ramp_up: float) -> float:
    """The half-life in images after `images`: a share of them, up to the longest (Karras et al. 2020, ADA)."""
    return max(min(longest, images * ramp_up), 1e-8)


class MovingAverage:
    """An exponential moving average of a network's parameters and statistics, as a network of its own."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        average, live = self.network.state_dict(), network.state_dict()
        floating = [name for name in live if live[name].is_floating_point()]
        # state_dict shares storage with the networks, so these lists stay true while the weights move in place.
        self._average = [average[name] for name in floating]
        self._live = [live[name] for name in floating]

    @torch.no_grad()
    def update(self, images: int, half_life: float) -> None:
        """Move towards the live network by what `images` new images weigh."""
        torch._foreach_lerp_(self._average, self._live, 1 - 0.5 ** (images / half_life))
