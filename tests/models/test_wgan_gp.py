import pytest
import torch
from tiny import build, check_difference, gradients, gradients_of, lost, pictures, player, turn
from torch import nn

from ganflow.models.penalties import gradient_penalty
from ganflow.models.wgan_gp import WGANGPParams


def test_the_defaults_are_the_papers() -> None:
    params = WGANGPParams()
    assert (params.penalty, params.discriminator_steps) == (10.0, 5)


def test_the_penalty_is_descended_in_the_critics_step() -> None:
    batch = pictures(8)
    game = build("wgan_gp", penalty=7.0)
    outcome = turn(game, "discriminator", batch)
    distance = outcome.values["d_real"] - outcome.values["d_fake"]
    assert outcome.loss.item() == pytest.approx((outcome.values["penalty"] - distance).item(), rel=1e-5)
    torch.manual_seed(3)
    made = game.generator(game.draw_inputs(8)).detach()
    expected = 7.0 * gradient_penalty(game.discriminator, batch.images, made)  # type: ignore[arg-type]
    assert outcome.values["penalty"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_penalty_moves_the_critic() -> None:
    batch = pictures(8)
    light, heavy = (gradients(build("wgan_gp", penalty=weight), "discriminator", batch) for weight in (2.0, 7.0))
    game = build("wgan_gp")
    critic = player(game, "discriminator").network
    torch.manual_seed(3)
    made = game.generator(game.draw_inputs(8)).detach()
    check_difference(heavy, light, gradients_of(5.0 * gradient_penalty(critic, batch.images, made), critic))


def test_the_penalty_is_worth_its_weight() -> None:
    losses = [lost(build("wgan_gp", penalty=weight), "discriminator", pictures(8)).item() for weight in (1.0, 2.0, 3.0)]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)
    assert losses[1] > losses[0]


def test_the_critic_has_no_batch_norm() -> None:
    game = build("wgan_gp", 1, 32)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in game.generator.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in game.discriminator.modules())  # type: ignore[union-attr]
