import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ganflow.errors import UserError
from ganflow.evaluation.discriminator import (
    area_under_curve,
    auc_interval,
    auc_standard_error,
    best_threshold,
    calibration_error,
    score_discriminator,
    scores,
    wilson_interval,
)
from ganflow.models.game import Game

some_scores = st.lists(st.integers(-4, 4), min_size=1, max_size=20)
logit_values = st.floats(-4, 4) | st.sampled_from([-40.0, 40.0])  # 40 is a probability of 1 in float64


def test_by_hand() -> None:
    # Logit 0 is right for a fake and wrong for a real picture. Of 16 pairs, real is above fake in 10, level in 3.
    scored = score_discriminator(torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.tensor([0.0, -2.0, 1.0, -1.0]))

    assert scored.accuracy_real == 2 / 4
    assert scored.accuracy_fake == 3 / 4
    assert scored.accuracy == 5 / 8
    assert scored.auc == 11.5 / 16
    assert scored.accuracy_interval == wilson_interval(5, 8)
    assert scored.auc_interval == auc_interval(11.5 / 16, 4, 4)


@given(some_scores, some_scores)
def test_auc_equals_sklearn_with_ties(real: list[int], fake: list[int]) -> None:
    expected = roc_auc_score([1] * len(real) + [0] * len(fake), real + fake)

    assert area_under_curve(torch.tensor(real), torch.tensor(fake)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("right", "trials"), [(0, 10), (5, 10), (10, 10), (561, 1000)])
def test_wilson_equals_scipy(right: int, trials: int) -> None:
    expected = binomtest(right, trials).proportion_ci(0.95, method="wilson")

    assert wilson_interval(right, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_standard_error_is_the_spread_of_simulated_aucs() -> None:
    # The paper's model is exact for exponential scores: with means 4 and 1, P(positive > negative) is 4 / 5.
    rng = torch.Generator().manual_seed(0)
    positives = -4 * torch.rand(4000, 6, 1, generator=rng).log()
    negatives = -torch.rand(4000, 1, 30, generator=rng).log()
    aucs = (positives > negatives).float().mean(dim=(1, 2))

    assert float(aucs.mean()) == pytest.approx(0.8, abs=0.01)
    assert auc_standard_error(0.8, 6, 30) == pytest.approx(float(aucs.std()), rel=0.04)


@pytest.mark.parametrize("auc", [0.5, 0.63, 0.97])
def test_auc_interval_ends_where_the_auc_is_1_96_errors_off(auc: float) -> None:
    low, high = auc_interval(auc, 40, 60)

    for end in (low, high):
        assert abs(end - auc) == pytest.approx(1.959964 * auc_standard_error(end, 40, 60), rel=1e-5)
    assert low < auc < high


def test_perfect_separation_is_not_certain() -> None:
    low, high = auc_interval(1.0, 20, 20)

    assert 0.7 < low < 0.95
    assert high == 1
    assert auc_interval(0.0, 20, 20) == pytest.approx((0, 1 - low), abs=1e-9)


def test_interval_covers_the_truth_in_95_of_100() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = 0.5 * (1 + math.erf(1 / 2))  # P(N(1, 1) > N(0, 1)), whose difference is N(1, 2)
    intervals = [
        score_discriminator(torch.randn(60, generator=rng) + 1, torch.randn(60, generator=rng)).auc_interval
        for _ in range(300)
    ]

    assert 0.91 < sum(low <= truth <= high for low, high in intervals) / 300 < 0.99


def test_calibration_error_by_hand() -> None:
    # sigmoid(log 3) = 3/4. One bin has 3/4 for two reals and a fake, another 1/2 for a real, a third 1/4 for two fakes.
    real, fake = torch.tensor([3.0, 3.0, 1.0]).log(), torch.tensor([3.0, 1 / 3, 1 / 3]).log()
    expected = 3 / 6 * abs(2 / 3 - 3 / 4) + 1 / 6 * (1 - 1 / 2) + 2 / 6 * (1 / 4)

    assert calibration_error(real, fake) == pytest.approx(expected, rel=1e-6)
    assert score_discriminator(real, fake).calibration_error == calibration_error(real, fake)


@given(st.lists(st.tuples(logit_values, logit_values), min_size=1, max_size=40))
def test_calibration_error_equals_a_loop(pairs: list[tuple[float, float]]) -> None:
    real, fake = torch.tensor(pairs, dtype=torch.float64).T
    labelled = [(1 / (1 + math.exp(-x)), 1) for x, _ in pairs] + [(1 / (1 + math.exp(-x)), 0) for _, x in pairs]
    expected = 0.0
    for i in range(15):
        inside = [(p, y) for p, y in labelled if i / 15 < p <= (i + 1) / 15]
        if inside:
            share_real, mean = (sum(column) / len(inside) for column in reversed(list(zip(*inside, strict=True))))
            expected += len(inside) / len(labelled) * abs(share_real - mean)

    assert calibration_error(real, fake) == pytest.approx(expected, abs=1e-12)


def test_probabilities_that_come_true_are_calibrated() -> None:
    # Of every ten pictures at 0.9, nine are real, and so on.
    shares = {0.9: (9, 1), 0.7: (7, 3), 0.5: (5, 5), 0.3: (3, 7), 0.1: (1, 9)}
    real, fake = (
        torch.cat([torch.full((counts[kind],), p, dtype=torch.float64).logit() for p, counts in shares.items()])
        for kind in (0, 1)
    )

    assert calibration_error(real, fake) == pytest.approx(0, abs=1e-12)
    assert calibration_error(real * 3, fake * 3) > 0.1  # the same order, but too sure


def test_certain_and_wrong_is_the_worst_calibration() -> None:
    certain = torch.full((5,), 200.0)

    assert calibration_error(-certain, certain) == 1
    assert calibration_error(certain, -certain) == pytest.approx(0, abs=1e-12)
    assert calibration_error(certain, certain) == 0.5


def test_advantage_is_the_auc_from_minus_1_to_1() -> None:
    scored = score_discriminator(torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.tensor([0.0, -2.0, 1.0, -1.0]))

    assert scored.advantage == pytest.approx(7 / 16)  # above in 10, level in 3, below in 3 of 16
    assert scored.advantage_interval == pytest.approx([2 * end - 1 for end in scored.auc_interval])
    assert scored.converged == (scored.auc_interval.low <= 0.5)


def test_chance_is_found_converged_in_975_of_1000() -> None:
    rng = torch.Generator().manual_seed(0)
    found = [
        score_discriminator(torch.randn(100, generator=rng), torch.randn(100, generator=rng)).converged
        for _ in range(400)
    ]

    assert 0.95 < sum(found) / 400 < 1


def test_a_shifted_threshold_does_not_pass_for_convergence() -> None:
    rng = torch.Generator().manual_seed(0)
    fake = torch.randn(200, generator=rng)
    scored = score_discriminator(torch.randn(200, generator=rng) + 12, fake + 10)

    assert scored.accuracy == 0.5
    assert scored.advantage > 0.7
    assert not scored.converged


def test_a_discriminator_that_errs_is_no_better_than_chance() -> None:
    scored = score_discriminator(torch.zeros(30), torch.ones(30))

    assert scored.advantage == -1
    assert scored.converged


def test_rejects_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="as many real as fake"):
        score_discriminator(torch.zeros(3), torch.zeros(2))
    with pytest.raises(UserError, match="not finite"):
        score_discriminator(torch.tensor([math.nan]), torch.zeros(1))


# A threshold other than 0


def test_a_score_at_the_threshold_is_taken_for_generated() -> None:
    real, fake = torch.tensor([12.0, 11.0, 10.0, 9.0]), torch.tensor([10.0, 8.0, 11.0, 9.0])

    scored = score_discriminator(real, fake, threshold=10.0)

    assert scored.threshold == 10
    assert (scored.accuracy_real, scored.accuracy_fake, scored.accuracy) == (2 / 4, 3 / 4, 5 / 8)
    at_zero = score_discriminator(real, fake)
    assert at_zero.threshold == 0
    assert (at_zero.accuracy_real, at_zero.accuracy_fake) == (1, 0), "all of them are above 0"
    assert scored.auc == at_zero.auc, "which no threshold changes"


def test_scores_that_are_no_log_odds_have_no_calibration() -> None:
    real, fake = torch.tensor([2.0, 1.0]), torch.tensor([0.0, -3.0])

    assert score_discriminator(real, fake, log_odds=False).calibration_error is None
    assert score_discriminator(real, fake).calibration_error == calibration_error(real, fake)


@given(some_scores, some_scores)
def test_the_best_threshold_is_as_good_as_any(real: list[int], fake: list[int]) -> None:
    """Of all that tell the scores apart differently: whole scores lie between halves."""

    def balanced(threshold: float) -> float:
        right_real = sum(score > threshold for score in real) / len(real)
        return right_real + sum(score <= threshold for score in fake) / len(fake)

    found = best_threshold(torch.tensor(real, dtype=torch.float32), torch.tensor(fake, dtype=torch.float32))

    assert balanced(found) == pytest.approx(max(balanced(place / 2) for place in range(-11, 12)), abs=1e-12)
    assert found not in {*real, *fake}, "no score lies on the border"


def test_the_best_threshold_lies_in_the_middle_of_the_gap() -> None:
    assert best_threshold(torch.tensor([7.0, 5.0]), torch.tensor([4.0, -1.0])) == 4.5
    # Nothing is right but calling all of them the same.
    assert best_threshold(torch.tensor([1.0, 2.0]), torch.tensor([3.0])) in {0.0, 4.0}
    # Neighbours in float32, which a middle in float32 could not part.
    one, two, three = (torch.tensor([1 + n * torch.finfo(torch.float32).eps]) for n in range(3))
    for low, high in ((one, two), (two, three)):
        threshold = best_threshold(high, low)
        assert float(low) < threshold < float(high)
        assert score_discriminator(high, low, threshold=threshold).accuracy == 1


def test_a_fitted_threshold_finds_what_a_shift_hides() -> None:
    rng = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 500, generator=rng) + torch.tensor([[103.0], [100.0]])

    scored = score_discriminator(real, fake, threshold=best_threshold(real, fake), log_odds=False)

    assert scored.accuracy > 0.9
    assert score_discriminator(real, fake).accuracy == 0.5


# The scores of a game


class Mean(Game):
    """Scores a picture by its mean and its class; dropout would show training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = nn.Sequential(nn.Dropout(0.9), nn.Flatten(), nn.Linear(4, 1, bias=False), nn.Flatten(0))
        nn.init.constant_(self.discriminator[2].weight, 0.25)

    @property
    def players(self) -> tuple[()]:
        return ()

    def judge(self, images: Tensor, labels: Tensor | None) -> Tensor:
        assert self.discriminator is not None
        scored: Tensor = self.discriminator(images)
        return scored if labels is None else scored + 10 * labels


def test_scores_are_of_eval_mode_and_of_pixels_in_minus_1_to_1() -> None:
    white, black = torch.full((2, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)

    assert scores(Mean().train(), [(white, None), (black, None)]).tolist() == [1, 1, -1]
    assert scores(Mean(), [(white, torch.tensor([0, 3])), (black, torch.tensor([1]))]).tolist() == [1, 31, 9]
