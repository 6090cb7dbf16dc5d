"""How well a discriminator tells real from generated pictures: accuracy at logit 0 and AUC, with their confidence.

A generator has converged, in the sense of Goodfellow et al. 2014 (section 4.1), when both are 1/2. Of the two, the AUC
decides: a threshold that has shifted hides an AUC of 0.9 behind an accuracy of 1/2.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ganflow.data.quantise import to_float
from ganflow.errors import UserError

_Z = 1.959963984540054  # the normal distribution's 97.5 % point: two-sided 95 %
_CALIBRATION_BINS = 15  # as in most of the literature since Guo et al. 2017


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class DiscriminatorScores:
    """Shares in [0, 1]: of real pictures, of generated ones and of both that are told right, and the AUC.

    `calibration_error`, in [0, 1], is how far the discriminator's probabilities are from what it meets.

    `advantage` is 2 AUC - 1: 0 for a discriminator that does no better than chance, 1 for one that tells every real
    picture from every generated one, below 0 for one that has them the wrong way round. `converged` says that the lower
    end of its 95 % interval is at most 0, so that these pictures do not show the discriminator to be better than
    chance. It takes more pictures to see a smaller advantage; and a discriminator that has learnt nothing does not
    beat chance either, whatever the generator makes.
    """

    accuracy: float
    accuracy_real: float
    accuracy_fake: float
    accuracy_interval: Interval
    auc: float
    auc_interval: Interval
    calibration_error: float
    advantage: float
    advantage_interval: Interval
    converged: bool


def score_discriminator(real: Tensor, fake: Tensor) -> DiscriminatorScores:
    """Score the logits (n,) of real pictures and as many of generated ones, in eval mode.

    A real picture is told right if its logit is above 0, a generated one otherwise; `accuracy` is balanced. Its
    interval is Wilson's over the 2n trials, a little wide where the two shares differ.

    Raises ValueError for other shapes, UserError for logits that are not finite.
    """
    if real.ndim != 1 or real.shape != fake.shape or len(real) == 0:
        raise ValueError(f"logits must be (n,) and as many real as fake, not {tuple(real.shape)}, {tuple(fake.shape)}")
    if not (torch.isfinite(real).all() and torch.isfinite(fake).all()):
        raise UserError("the discriminator's logits are not finite: train again, with smaller learning rates")
    n = len(real)
    right_real, right_fake = int((real > 0).sum()), int((fake <= 0).sum())
    auc = area_under_curve(real, fake)
    auc_low, auc_high = auc_interval(auc, n, n)
    advantage_interval = Interval(2 * auc_low - 1, 2 * auc_high - 1)
    return DiscriminatorScores(
        accuracy=(right_real + right_fake) / (2 * n),
        accuracy_real=right_real / n,
        accuracy_fake=right_fake / n,
        accuracy_interval=wilson_interval(right_real + right_fake, 2 * n),
        auc=auc,
        auc_interval=Interval(auc_low, auc_high),
        calibration_error=calibration_error(real, fake),
        advantage=2 * auc - 1,
        advantage_interval=advantage_interval,
        converged=advantage_interval.low <= 0,
    )


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """Give the probability that a positive scores above a negative, ties counting 1/2 (Mann and Whitney 1947).

    Takes scores (n,) and (m,); O((n + m) log m).
    """
    negative = negative.sort().values
    below = torch.searchsorted(negative, positive, right=False)
    not_above = torch.searchsorted(negative, positive, right=True)
    return int((below + not_above).sum()) / (2 * len(positive) * len(negative))


def calibration_error(real: Tensor, fake: Tensor) -> float:
    """Give the expected calibration error of sigmoid(logit) as the probability of being real (Guo et al. 2017, eq. 3).

    Takes logits (n,) of real pictures and as many of generated ones. The probabilities fall into 15 equal bins, each
    with its upper end; what a bin adds is how far the share of reals in it is from its mean probability, times the
    share of pictures in it. In [0, 1]: 0 for probabilities that come true, 1 for certainty that is always wrong. Of
    logits that no loss has made log-odds (a critic's), it says nothing.
    """
    probabilities = torch.cat([real, fake]).to(torch.float64).sigmoid()
    is_real = torch.zeros_like(probabilities)
    is_real[: len(real)] = 1
    bins = (probabilities * _CALIBRATION_BINS).ceil().long().sub(1).clamp_min(0)
    # How far apart a bin's means are, times its share of all pictures, is how far its sums are, over all pictures.
    gaps = torch.bincount(bins, is_real - probabilities, _CALIBRATION_BINS)
    return float(gaps.abs().sum()) / len(probabilities)


def wilson_interval(right: int, trials: int) -> Interval:
    """Give Wilson's score interval (1927) for a share: the p at which `right` of `trials` lies 1.96 deviations off."""
    share = right / trials
    centre = share + _Z**2 / (2 * trials)
    half = _Z * sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    scale = 1 + _Z**2 / trials
    return Interval(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def auc_standard_error(auc: float, positives: int, negatives: int) -> float:
    """Give the standard error of an AUC (Hanley and McNeil 1982), Q1 and Q2 being those of exponential scores."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return sqrt(max(0.0, variance) / (positives * negatives))


def auc_interval(auc: float, positives: int, negatives: int) -> Interval:
    """Give the score interval for an AUC: the true AUCs from which `auc` lies 1.96 standard errors off.

    That is what Wilson's interval is to a share, with the error of Hanley and McNeil (Newcombe 2006, part 2): an
    AUC of 1 seen in a few pictures is not certain.
    """

    def too_far(true: float) -> bool:
        return abs(auc - true) > _Z * auc_standard_error(true, positives, negatives)

    return Interval(_boundary(too_far, auc, 0.0), _boundary(too_far, auc, 1.0))


def logits(discriminator: nn.Module, batches: Iterable[Tensor], device: torch.device) -> Tensor:
    """Run a discriminator, put into eval mode, over batches of uint8 (n, c, h, w): logits (sum of n,) on the CPU.

    Real and generated pictures both come as bytes: were the generated ones not rounded like the real ones, the
    rounding alone could give them away.
    """
    discriminator.eval()
    with torch.inference_mode():
        return torch.cat([discriminator(to_float(batch.to(device))).cpu() for batch in batches])


def _boundary(outside: Callable[[float], bool], inner: float, outer: float) -> float:
    """Bisect for the point between `inner`, which is not outside, and `outer` where `outside` begins."""
    for _ in range(60):
        middle = (inner + outer) / 2
        if outside(middle):
            outer = middle
        else:
            inner = middle
    return (inner + outer) / 2
