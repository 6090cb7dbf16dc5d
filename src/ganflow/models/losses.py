"""The losses of the original GAN, on logits: D(x) = sigmoid(logit).

softplus(-l) is -log D and softplus(l) is -log(1 - D), without the overflow of a sigmoid followed by a log.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn.functional import softplus

GeneratorLoss = Literal["minimax", "non_saturating"]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """J_D = -mean log D(x) - mean log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1, negated).

    Takes logits (n,) of real and of generated pictures; gives a scalar, 2 log 2 at chance.
    """
    return softplus(-real).mean() + softplus(fake).mean()


def minimax(fake: Tensor) -> Tensor:
    """J_G = mean log(1 - D(G(z))), the minimax game as written (Goodfellow et al. 2014, eq. 1); at most 0."""
    return -softplus(fake).mean()


def non_saturating(fake: Tensor) -> Tensor:
    """J_G = -mean log D(G(z)), which keeps its gradient when D wins (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake).mean()


GENERATOR_LOSSES: dict[GeneratorLoss, Callable[[Tensor], Tensor]] = {
    "minimax": minimax,
    "non_saturating": non_saturating,
}
