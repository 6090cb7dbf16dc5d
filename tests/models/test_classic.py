"""The families that leave the choice of loss, penalties and normalisation, and the game of two itself."""

import pytest
import torch
from tiny import build, check_difference, gradients, gradients_of, lost, pictures, player, turn
from torch import Tensor, nn

from ganflow.models.classic import LOSSES
from ganflow.models.game import Batch, Game
from ganflow.models.penalties import squared_gradient_norm

NAMES = ("vanilla", "dcgan", "cgan")


def asking(game: Game, batch: Batch) -> Tensor:
    """Draw inputs that ask for the labels of a batch, where they can."""
    inputs = game.draw_inputs(len(batch.images))
    if game.inputs.find("label") and batch.labels is not None:
        inputs[:, -1] = batch.labels
    return inputs


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NAMES)
def test_what_both_lose_is_the_loss_of_their_scores(name: str, loss: str) -> None:
    game = build(name, loss=loss).eval()  # without dropout, so that the scores can be had again
    batch = pictures(16)
    found = lost(game, "discriminator", batch), lost(game, "generator", batch)
    torch.manual_seed(3)
    inputs = asking(game, batch)
    with torch.no_grad():
        fake = game.judge(game.generator(inputs), batch.labels)
        real = game.judge(*batch)
    formulas = LOSSES[loss]  # type: ignore[index]
    assert game.scale == formulas.scale
    assert found[0].item() == pytest.approx(formulas.discriminator(real, fake).item(), rel=1e-5)
    assert found[1].item() == pytest.approx(formulas.generator(real, fake).item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_the_values_of_a_turn(name: str) -> None:
    batch = pictures(16)
    for loss, probable in (("non_saturating", True), ("hinge", False)):
        game = build(name, loss=loss).eval()
        torch.manual_seed(3)
        outcome = player(game, "discriminator").play(batch)
        torch.manual_seed(3)
        inputs = asking(game, batch)
        with torch.no_grad():
            fake = game.judge(game.generator(inputs), batch.labels).double()
            real = game.judge(*batch).double()
        d_real, d_fake = (1 / (1 + (-x).exp()) if probable else x for x in (real, fake))
        expected = {
            "d_real": d_real.mean().item(),
            "d_fake": d_fake.mean().item(),
            "batch_accuracy": ((real > 0).sum().item() + (fake <= 0).sum().item()) / 32,
        }
        assert {key: value.item() for key, value in outcome.values.items()} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_r1_and_r2_are_half_gamma_times_the_squared_gradient_of_each_picture(name: str) -> None:
    batch = pictures(4)
    plain, with_r1, with_r2 = (
        lost(build(name, dropout=0.0, **weights), "discriminator", batch).item()
        for weights in ({}, {"r1": 3.0}, {"r2": 5.0})
    )
    game = build(name, dropout=0.0)
    torch.manual_seed(3)
    made = game.generator(asking(game, batch)).detach()
    for images, added, gamma in ((batch.images, with_r1 - plain, 3.0), (made, with_r2 - plain, 5.0)):
        squares = []
        for image, label in zip(images, batch.labels, strict=True):  # one by one
            own = image[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(game.judge(own, label[None]), own)
            squares.append(gradient.square().sum().item())
        assert added == pytest.approx(gamma / 2 * sum(squares) / 4, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("penalty", ["r1", "r2"])
def test_r1_and_r2_move_the_discriminator(name: str, penalty: str) -> None:
    batch = pictures(4)
    without, found = (
        gradients(build(name, dropout=0.0, **{penalty: weight}), "discriminator", batch) for weight in (0.0, 3.0)
    )
    game = build(name, dropout=0.0)
    torch.manual_seed(3)
    made = game.generator(asking(game, batch))
    at = (batch.images if penalty == "r1" else made).detach().requires_grad_()
    expected = 3.0 / 2 * squared_gradient_norm(game.judge(at, batch.labels), at)
    check_difference(found, without, gradients_of(expected, player(game, "discriminator").network))


@pytest.mark.parametrize("name", NAMES)
def test_penalties_are_a_curve_of_their_own(name: str) -> None:
    batch = pictures(4)
    assert "penalty" not in turn(build(name), "discriminator", batch).values
    values = turn(build(name, r1=3.0, r2=1.0), "discriminator", batch).values
    assert values["penalty"].item() > 0


@pytest.mark.parametrize("name", NAMES)
def test_spectral_norm_divides_every_weight_by_its_largest_singular_value(name: str) -> None:
    game = build(name, spectral_norm=True)
    layers = [layer for layer in game.discriminator.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]  # type: ignore[union-attr]
    assert len(layers) >= 2
    for _ in range(50):  # a power iteration each
        lost(game, "discriminator", pictures(4))
    game.eval()
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert norm.item() == pytest.approx(1, rel=1e-2)
    assert not any(hasattr(layer, "parametrizations") for layer in game.generator.modules())


def test_spectral_norm_keeps_what_was_drawn() -> None:
    """DCGAN draws its weights itself; the normalised layers must be made of those, not of torch's."""
    plain, normalised = build("dcgan"), build("dcgan", spectral_norm=True)
    drawn = next(layer for layer in plain.discriminator.modules() if isinstance(layer, nn.Conv2d))  # type: ignore[union-attr]
    hidden = dict(normalised.discriminator.named_parameters())["0.parametrizations.weight.original"]  # type: ignore[union-attr]
    assert torch.equal(drawn.weight, hidden)


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_changes_what_the_generator_sees(name: str) -> None:
    normal = build(name, noise="normal").draw_inputs(500)[:, :6]
    uniform = build(name, noise="uniform").draw_inputs(500)[:, :6]
    assert normal.abs().max() > 2
    assert uniform.abs().max() <= 1
    assert uniform.std() == pytest.approx(3**-0.5, abs=0.03)


def test_minimax_and_non_saturating_differ_by_the_scores_of_the_same_pictures() -> None:
    batch = pictures(8)
    games = {loss: build("dcgan", loss=loss).eval() for loss in ("minimax", "non_saturating")}
    assert lost(games["minimax"], "generator", batch) < 0 < lost(games["non_saturating"], "generator", batch)
    of_discriminator = [lost(game, "discriminator", batch) for game in games.values()]
    assert of_discriminator[0] == of_discriminator[1]
