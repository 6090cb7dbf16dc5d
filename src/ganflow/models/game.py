"""What a family of GAN tells the engine: its players, and what each of them loses on one batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

Noise = Literal["normal", "uniform"]


class Batch(NamedTuple):
    """Real pictures (n, c, h, w) as floats in [-1, 1], and their classes (n,) where there are any."""

    images: Tensor
    labels: Tensor | None


class Outcome(NamedTuple):
    """A scalar loss to descend, and scalars worth a curve, by name; all still on the device."""

    loss: Tensor
    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class Player:
    """One side of the game: which parameters it moves, what it loses, and how often it moves a turn."""

    name: Literal["discriminator", "generator"]
    network: nn.Module
    play: Callable[[Batch], Outcome]
    steps: int = 1


class Game(nn.Module, ABC):
    """The networks of one family and the rules between them.

    The engine alternates `players` in their order, and needs to know nothing else. Randomness inside a
    turn comes from torch's default generators, which the engine seeds, saves and restores.
    """

    generator: nn.Module
    discriminator: nn.Module

    @property
    @abstractmethod
    def players(self) -> tuple[Player, ...]:
        """The players, in the order in which they move."""

    @abstractmethod
    def draw_inputs(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draw `n` inputs of the generator, on the generator's device.

        With `rng`, a generator on the CPU, the draw is the same on every device.
        """


def draw_noise(kind: Noise, n: int, dim: int, device: torch.device, rng: torch.Generator | None = None) -> Tensor:
    """Draw latents (n, dim): standard normal, or uniform on [-1, 1] (Goodfellow et al. 2014; Radford 2016)."""
    where = device if rng is None else torch.device("cpu")
    if kind == "normal":
        latents = torch.randn(n, dim, device=where, generator=rng)
    else:
        latents = torch.rand(n, dim, device=where, generator=rng) * 2 - 1
    return latents.to(device)


def option(default: Any, description: str, **bounds: Any) -> Any:
    """Declare a family's parameter; `params.py` checks the bounds (ge, gt, le, lt) and documents it."""
    return field(default=default, metadata={"description": description, **bounds})


@dataclass(frozen=True, kw_only=True)
class FamilyParams(ABC):
    """The parameters that every family has. A family adds its own, each with a good default."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    family: str
    loss: str
    noise: Noise = option("normal", "Distribution of the latents: standard normal, or uniform on [-1, 1].")
    latent_dim: int = option(64, "Length of the latent vector.", ge=1, le=4096)

    @abstractmethod
    def build(self, channels: int, resolution: int) -> Game:
        """Make the networks for pictures (channels, resolution, resolution), freshly initialised."""
