"""Every family at its least size, and what a test does with one."""

import dataclasses
from typing import Any

import tiny_families
import torch
from torch import Tensor, nn

from ganflow.models import families
from ganflow.models.game import Batch, FamilyParams, Game, Outcome, Player

FAMILIES = {vars(family)["family"]: family for family in families()}
CLASSES = 3
SIZES = {**tiny_families.SIZES, "latent_dim": 6, "style_dim": 5}


def tiny(name: str, **changes: Any) -> FamilyParams:
    """A family's parameters at its least size."""
    own = {field.name for field in dataclasses.fields(FAMILIES[name])}
    return FAMILIES[name](**{key: value for key, value in {**SIZES, **changes}.items() if key in own})


def build(name: str, channels: int = 1, side: int = 8, **changes: Any) -> Game:
    torch.manual_seed(0)
    return tiny(name, **changes).build(channels, side, CLASSES)


def pictures(n: int, channels: int = 1, side: int = 8) -> Batch:
    rng = torch.Generator().manual_seed(1)
    images = torch.rand(n, channels, side, side, generator=rng) * 2 - 1
    return Batch(images, torch.randint(0, CLASSES, (n,), generator=rng))


def player(game: Game, name: str) -> Player:
    (found,) = (player for player in game.players if player.name == name)
    return found


def turn(game: Game, name: str, batch: Batch) -> Outcome:
    """Let a player lose, and leave the gradients of its own network, as a match does."""
    torch.manual_seed(3)
    mover = player(game, name)
    outcome = mover.play(batch)
    torch.autograd.backward(outcome.loss, inputs=list(mover.network.parameters()))
    return outcome


def gradients(game: Game, name: str, batch: Batch) -> list[Tensor]:
    """Give the gradients by the weights of a player's network that its turn leaves."""
    turn(game, name, batch)
    weights = player(game, name).network.parameters()
    return [torch.zeros_like(weight) if weight.grad is None else weight.grad.clone() for weight in weights]


def gradients_of(value: Tensor, network: nn.Module) -> list[Tensor]:
    """Give those of a scalar."""
    return list(torch.autograd.grad(value, list(network.parameters()), materialize_grads=True))


def check_difference(larger: list[Tensor], smaller: list[Tensor], expected: list[Tensor]) -> None:
    """Compare what a penalty adds to gradients with what it should add, which is not nothing."""
    assert any(bool(gradient.any()) for gradient in expected)
    torch.testing.assert_close([x - y for x, y in zip(larger, smaller, strict=True)], expected, rtol=1e-3, atol=1e-5)


def lost(game: Game, name: str, batch: Batch) -> Tensor:
    torch.manual_seed(3)
    return player(game, name).play(batch).loss
