import math

import pytest
import torch
from tiny import build, pictures, turn
from torch.distributions import Normal, kl_divergence

from ganflow.models.vae import divergence_from_prior


def test_the_divergence_is_that_of_torchs_distributions() -> None:
    mean, log_variance = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    prior = Normal(torch.zeros(3, dtype=torch.float64), 1.0)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), prior).sum(dim=1)
    torch.testing.assert_close(divergence_from_prior(mean, log_variance), expected)


def test_the_divergence_by_hand() -> None:
    # KL(N(2, e) || N(0, 1)) = (4 + e - 1 - 1) / 2
    found = divergence_from_prior(torch.tensor([[2.0]]), torch.tensor([[1.0]]))
    assert found.item() == pytest.approx((2 + math.e) / 2, rel=1e-6)
    assert divergence_from_prior(torch.zeros(1, 7), torch.zeros(1, 7)).item() == 0


def test_the_loss_is_the_negated_bound() -> None:
    """-log p(x|z) by torch's own normal distribution, for the latents that were drawn, plus the divergence."""
    game, batch = build("vae", pixel_deviation=0.3).eval(), pictures(6)
    outcome = turn(game, "generator", batch)
    torch.manual_seed(3)
    with torch.no_grad():
        mean, log_variance = game.encoder(batch.images).chunk(2, dim=1)  # type: ignore[operator]
        latents = Normal(mean, (log_variance / 2).exp()).loc + torch.randn_like(mean) * (log_variance / 2).exp()
        likelihood = Normal(game.generator(latents), 0.3).log_prob(batch.images).sum(dim=(1, 2, 3)).mean()
        divergence = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(dim=1).mean()
    assert outcome.values["reconstruction"].item() == pytest.approx(-likelihood.item(), rel=1e-5)
    assert outcome.values["divergence"].item() == pytest.approx(divergence.item(), rel=1e-5)
    assert outcome.loss.item() == pytest.approx((divergence - likelihood).item(), rel=1e-5)


def test_encoder_and_decoder_move_together() -> None:
    game = build("vae")
    (only,) = game.players
    assert {id(weight) for weight in only.network.parameters()} == {id(weight) for weight in game.parameters()}
    assert {name.partition(".")[0] for name, _ in game.named_parameters()} == {"encoder", "generator"}


def test_the_latents_are_drawn_about_their_means() -> None:
    """The gradient reaches the encoder through them (the reparameterisation, section 2.4)."""
    game = build("vae")
    turn(game, "generator", pictures(4))
    last = list(game.encoder.parameters())[-2].grad  # type: ignore[union-attr]
    means, log_variances = last.chunk(2)  # type: ignore[union-attr]
    assert means.abs().max() > 0
    assert log_variances.abs().max() > 0
