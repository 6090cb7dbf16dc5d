import math

import pytest
import torch
from torch import Tensor

from ganflow.models import losses
from ganflow.models.losses import Loss, discriminator_loss
from ganflow.models.losses import minimax as minimax_of
from ganflow.models.losses import non_saturating as non_saturating_of

REAL = [-1.5, 0.0, 0.25, 3.0]
FAKE = [2.0, -0.5, 1.0]


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def minimax(fake: Tensor) -> Tensor:
    return minimax_of(fake, fake)


def non_saturating(fake: Tensor) -> Tensor:
    return non_saturating_of(fake, fake)


def d(logit: float) -> float:
    """D(x) of a logit."""
    return 1 / (1 + math.exp(-logit))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def test_discriminator_loss_is_the_formula() -> None:
    # J_D = -mean log D(x) - mean log(1 - D(G(z)))
    expected = -mean([math.log(d(x)) for x in REAL]) - mean([math.log(1 - d(x)) for x in FAKE])
    assert discriminator_loss(tensor(REAL), tensor(FAKE)).item() == pytest.approx(expected, rel=1e-12)


def test_discriminator_loss_by_hand() -> None:
    # D(x) = 3/4 and D(G(z)) = 1/4 lose -2 log(3/4); at chance it is 2 log 2.
    logit = math.log(3)
    assert discriminator_loss(tensor([logit]), tensor([-logit])).item() == pytest.approx(0.5753641449035618, rel=1e-12)
    assert discriminator_loss(tensor([0.0, 0.0]), tensor([0.0])).item() == pytest.approx(2 * math.log(2), rel=1e-12)


def test_minimax_is_the_formula() -> None:
    # J_G = mean log(1 - D(G(z)))
    expected = mean([math.log(1 - d(x)) for x in FAKE])
    assert minimax(tensor(FAKE)).item() == pytest.approx(expected, rel=1e-12)
    assert minimax(tensor([math.log(3)])).item() == pytest.approx(math.log(1 / 4), rel=1e-12)


def test_non_saturating_is_the_formula() -> None:
    # J_G = -mean log D(G(z))
    expected = -mean([math.log(d(x)) for x in FAKE])
    assert non_saturating(tensor(FAKE)).item() == pytest.approx(expected, rel=1e-12)
    assert non_saturating(tensor([-math.log(3)])).item() == pytest.approx(math.log(4), rel=1e-12)


def test_minimax_is_what_the_discriminator_maximises() -> None:
    """The zero-sum game: the generator's part of J_D, with its sign turned round."""
    real, fake = tensor(REAL), tensor(FAKE)
    (of_discriminator,) = torch.autograd.grad(discriminator_loss(real, fake), fake)
    (of_generator,) = torch.autograd.grad(minimax(fake), fake)
    torch.testing.assert_close(of_generator, -of_discriminator)


def test_gradients_of_the_theory() -> None:
    n = len(FAKE)
    fake = tensor(FAKE)
    (found,) = torch.autograd.grad(minimax(fake), fake)
    torch.testing.assert_close(found, tensor([-d(x) / n for x in FAKE]).detach())
    (found,) = torch.autograd.grad(non_saturating(fake), fake)
    torch.testing.assert_close(found, tensor([-(1 - d(x)) / n for x in FAKE]).detach())
    real = tensor(REAL)
    (found,) = torch.autograd.grad(discriminator_loss(real, fake), real)
    torch.testing.assert_close(found, tensor([-(1 - d(x)) / len(REAL) for x in REAL]).detach())


def test_only_minimax_saturates_where_the_discriminator_wins() -> None:
    gradients = {}
    for name, loss in {"minimax": minimax, "non_saturating": non_saturating}.items():
        fake = tensor([-20.0])
        (gradients[name],) = torch.autograd.grad(loss(fake), fake)
    assert abs(gradients["minimax"].item()) < 1e-8
    assert gradients["non_saturating"].item() == pytest.approx(-1, abs=1e-8)


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_extreme_logits_stay_finite(logit: float) -> None:
    """A sigmoid followed by a log would give infinity."""
    for loss in (lambda x: discriminator_loss(x, x), minimax, non_saturating):
        logits = torch.full((3,), logit, requires_grad=True)
        value = loss(logits)
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
    assert discriminator_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)


def test_means_do_not_depend_on_the_size_of_the_batch() -> None:
    for loss in (minimax, non_saturating, lambda x: discriminator_loss(x, x)):
        assert loss(tensor(FAKE)).item() == pytest.approx(loss(tensor(FAKE * 4)).item(), rel=1e-12)


# The other pairs, by their formulas


def pairs(real: list[float], fake: list[float]) -> list[tuple[float, float]]:
    return list(zip(real, fake, strict=True))


def log1p_exp(x: float) -> float:
    return math.log1p(math.exp(x))


R, F = REAL[:3], FAKE
BY_HAND: dict[str, tuple[Loss, float, float]] = {
    "hinge": (
        losses.HINGE,
        mean([max(0.0, 1 - x) for x in R]) + mean([max(0.0, 1 + x) for x in F]),
        -mean(F),
    ),
    "least_squares": (
        losses.LEAST_SQUARES,
        0.5 * mean([(x - 1) ** 2 for x in R]) + 0.5 * mean([(x + 1) ** 2 for x in F]),
        0.5 * mean([x**2 for x in F]),
    ),
    "relativistic": (
        losses.RELATIVISTIC,
        mean([log1p_exp(fake - real) for real, fake in pairs(R, F)]),
        mean([log1p_exp(real - fake) for real, fake in pairs(R, F)]),
    ),
    "wasserstein": (losses.WASSERSTEIN, mean(F) - mean(R), -mean(F)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_pairs_are_the_formulas(name: str) -> None:
    loss, of_discriminator, of_generator = BY_HAND[name]
    assert loss.discriminator(tensor(R), tensor(F)).item() == pytest.approx(of_discriminator, rel=1e-12)
    assert loss.generator(tensor(R), tensor(F)).item() == pytest.approx(of_generator, rel=1e-12)


def test_hinge_by_hand() -> None:
    # Beyond the margins of 1 nothing is lost.
    assert losses.HINGE.discriminator(tensor([1.0, 7.0]), tensor([-1.0, -9.0])).item() == 0
    assert losses.HINGE.discriminator(tensor([0.0]), tensor([0.0])).item() == 2


@pytest.mark.parametrize("name", [name for name in BY_HAND if name in {"relativistic", "wasserstein"}])
def test_relative_scores_may_all_move_together(name: str) -> None:
    loss, _, _ = BY_HAND[name]
    assert loss.scale == "relative"
    moved = loss.discriminator(tensor(R) + 5, tensor(F) + 5)
    torch.testing.assert_close(moved, loss.discriminator(tensor(R), tensor(F)))


ALL = {"minimax": losses.MINIMAX, "non_saturating": losses.NON_SATURATING} | {k: v[0] for k, v in BY_HAND.items()}


@pytest.mark.parametrize("name", ALL)
def test_the_discriminator_raises_real_scores_and_lowers_generated_ones_and_the_generator_raises_its_own(
    name: str,
) -> None:
    loss, real, fake = ALL[name], tensor([-0.5, 0.25]), tensor([-0.5, -0.25])
    up, down = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    assert (up < 0).all()
    assert (down > 0).all()
    (own,) = torch.autograd.grad(loss.generator(real, fake), fake)
    assert (own < 0).all()


@pytest.mark.parametrize("name", ALL)
def test_whether_the_generator_looks_at_real_pictures(name: str) -> None:
    one = ALL[name].generator(tensor([0.0, 1.0]), tensor([0.5, 0.5]))
    other = ALL[name].generator(tensor([2.0, -3.0]), tensor([0.5, 0.5]))
    assert (one.item() != other.item()) == ALL[name].generator_sees_real
