"""What two players lose by a discriminator's scores, family by family: pairs of functions of scores (n,).

Where a score is a logit, D(x) = sigmoid(logit): softplus(-l) is -log D and softplus(l) is -log(1 - D), without the
overflow of a sigmoid followed by a log.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus

from ganflow.models.game import Scale


class Loss(NamedTuple):
    """What discriminator and generator lose, each from the scores (n,) of real and of generated pictures, a scalar."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    scale: Scale = "log_odds"
    generator_sees_real: bool = False
    """The generator's loss depends on real pictures too; else their scores need not be computed."""


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """J_D = -mean log D(x) - mean log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1, negated).

    Takes logits (n,) of real and of generated pictures; gives a scalar, 2 log 2 at chance.
    """
    return softplus(-real).mean() + softplus(fake).mean()


def minimax(_: Tensor, fake: Tensor) -> Tensor:
    """J_G = mean log(1 - D(G(z))), the minimax game as written (Goodfellow et al. 2014, eq. 1); at most 0."""
    return -softplus(fake).mean()


def non_saturating(_: Tensor, fake: Tensor) -> Tensor:
    """J_G = -mean log D(G(z)), which keeps its gradient when D wins (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Mean max(0, 1 - s(x)) + mean max(0, 1 + s(G(z))) (Lim and Ye 2017, section 3; Miyato et al. 2018, eq. 16)."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def critic(_: Tensor, fake: Tensor) -> Tensor:
    """-mean s(G(z)): the generator raises its scores (Arjovsky et al. 2017, Algorithm 1)."""
    return -fake.mean()


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 mean (s(x) - 1)^2 + 1/2 mean (s(G(z)) + 1)^2 (Mao et al. 2017, eq. 8: a = -1, b = 1)."""
    return ((real - 1).square().mean() + (fake + 1).square().mean()) / 2


def least_squares_generator(_: Tensor, fake: Tensor) -> Tensor:
    """1/2 mean s(G(z))^2 (Mao et al. 2017, eq. 8: c = 0, where b - c = 1 and b - a = 2 give Pearson's chi-squared)."""
    return fake.square().mean() / 2


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Mean softplus(s(G(z)) - s(x)), in pairs (Jolicoeur-Martineau 2019, section 4.1; Huang et al. 2024, eq. 2)."""
    return softplus(fake - real).mean()


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """Mean softplus(s(x) - s(G(z))), in pairs, the discriminator's with the sides changed."""
    return softplus(real - fake).mean()


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Mean s(G(z)) - mean s(x): less the distance that a Lipschitz critic measures (Arjovsky et al. 2017, eq. 2)."""
    return fake.mean() - real.mean()


MINIMAX = Loss(discriminator_loss, minimax)
NON_SATURATING = Loss(discriminator_loss, non_saturating)
HINGE = Loss(hinge_discriminator, critic, "signed")
LEAST_SQUARES = Loss(least_squares_discriminator, least_squares_generator, "signed")
RELATIVISTIC = Loss(relativistic_discriminator, relativistic_generator, "relative", generator_sees_real=True)
WASSERSTEIN = Loss(wasserstein_discriminator, critic, "relative")
