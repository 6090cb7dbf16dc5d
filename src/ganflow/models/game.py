"""What a family of GAN tells the engine: its players, and what each of them loses on one batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ganflow.models.inputs import InputSpec, Noise

Scale = Literal["log_odds", "signed", "relative"]
"""What a discriminator's scores mean: the log-odds of being real; positive for real pictures and no more; or nothing
but which of two pictures looks more real, with no value that divides real from generated ones."""


class Batch(NamedTuple):
    """Real pictures (n, c, h, w) as floats in [-1, 1], and their classes (n,) where there are any."""

    images: Tensor
    labels: Tensor | None


class Outcome(NamedTuple):
    """A scalar loss to descend, and scalars worth a curve, by name; all still on the device."""

    loss: Tensor
    values: Mapping[str, Tensor]


class Pace(NamedTuple):
    """How an optimiser moves at one moment: its learning rate as a share of the one set, and Adam's second decay."""

    rate: float
    beta2: float


@dataclass(frozen=True)
class Player:
    """One side of the game: which parameters it moves, what it loses, and how often it moves a turn."""

    name: Literal["discriminator", "generator"]
    network: nn.Module
    play: Callable[[Batch], Outcome]
    steps: int = 1
    optimizer: Literal["adam", "rmsprop"] = "adam"
    constrain: Callable[[], None] | None = None
    """Puts the parameters back where they must be, after every step."""
    pace: Callable[[int, float], Pace] | None = None
    """Gives the pace after some real images, from Adam's second decay as it is set; None: as it is set, for ever."""


class Sheet(NamedTuple):
    """Pictures (n, c, h, w) in [-1, 1] that show what a family can do beside plain samples, row by row."""

    images: Tensor
    columns: int


class Game(nn.Module, ABC):
    """The networks of one family and the rules between them.

    The engine alternates `players` in their order, and needs to know nothing else. Randomness inside a
    turn comes from torch's default generators, which the engine seeds, saves and restores.
    """

    generator: nn.Module
    discriminator: nn.Module | None
    """None where the family has none; `no_discriminator` says why."""
    inputs: InputSpec
    scale: Scale = "log_odds"
    no_discriminator: str = ""
    rounds: int = 0
    """Rounds played so far; the engine counts."""
    images: int = 0
    """Real images shown so far; the engine counts."""

    @property
    @abstractmethod
    def players(self) -> tuple[Player, ...]:
        """The players, in the order in which they move."""

    def draw_inputs(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draw `n` inputs of the generator, on the generator's device.

        With `rng`, a generator on the CPU, the draw is the same on every device.
        """
        return self.inputs.draw(n, next(self.generator.parameters()).device, rng)

    def judge(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Give the discriminator's scores (n,), on `scale`, of pictures (n, c, h, w) of classes (n,)."""
        if self.discriminator is None:
            raise ValueError(self.no_discriminator)
        scores: Tensor = self.discriminator(images)
        return scores

    def sheets(self, rng: torch.Generator) -> Mapping[str, Sheet]:
        """Make pictures that show what the family is for, by name; `rng` decides their latents."""
        return {}


def option(default: Any, description: str, **bounds: Any) -> Any:
    """Declare a family's parameter; `params.py` checks the bounds (ge, gt, le, lt) and documents it."""
    return field(default=default, metadata={"description": description, **bounds})


@dataclass(frozen=True, kw_only=True)
class FamilyParams(ABC):
    """The parameters that every family has. A family adds its own, each with a good default."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    family: str
    loss: str
    noise: Noise = option("normal", "Distribution of the latents: standard normal, or uniform on [-1, 1].")
    latent_dim: int = option(64, "Length of the latent vector.", ge=1, le=4096)

    @abstractmethod
    def build(self, channels: int, resolution: int, classes: int = 0) -> Game:
        """Make the networks for pictures (channels, resolution, resolution), freshly initialised.

        `classes` is the number of classes of the data set, 0 where it has no labels. Raises ValueError where the family
        cannot do without.
        """
