import pytest
import torch
from tiny import build, pictures, player, turn
from torch import nn

from ganflow.models.wgan import WGANParams


def test_the_defaults_are_the_papers() -> None:
    params = WGANParams()
    assert (params.clip, params.discriminator_steps) == (0.01, 5)
    game = build("wgan")
    assert [one.optimizer for one in game.players] == ["rmsprop", "rmsprop"]


def test_only_the_critic_is_clipped_and_to_the_limit_asked_for() -> None:
    game = build("wgan", clip=0.03)
    before = {name: weight.detach().clone() for name, weight in game.named_parameters()}
    critic, generator = game.players
    assert generator.constrain is None
    assert critic.constrain is not None
    critic.constrain()
    for name, weight in game.named_parameters():
        expected = before[name].clamp(-0.03, 0.03) if name.startswith("discriminator") else before[name]
        assert torch.equal(weight, expected)
    largest = max(weight.detach().abs().max().item() for weight in game.discriminator.parameters())
    assert largest == pytest.approx(0.03)


def test_critic_and_generator_pull_the_scores_apart() -> None:
    game, batch = build("wgan").eval(), pictures(8)
    outcome = turn(game, "discriminator", batch)
    assert outcome.loss.item() == pytest.approx((outcome.values["d_fake"] - outcome.values["d_real"]).item(), abs=1e-7)
    d_fake = outcome.values["d_fake"].item()
    assert player(game, "generator").play(batch).loss.item() == pytest.approx(-d_fake, abs=1e-6)


def test_the_critic_has_no_batch_norm() -> None:
    game = build("wgan", 1, 32)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in game.generator.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in game.discriminator.modules())  # type: ignore[union-attr]
