from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from ganflow.errors import UserError
from ganflow.evaluation import manifold as module
from ganflow.evaluation.manifold import LEAST_PICTURES, Manifold, ManifoldScores

Points = list[tuple[int, int]]
points = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=6, max_size=14)


def normal(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def line(*places: float) -> torch.Tensor:
    return torch.tensor(places)[:, None]


def squared(a: tuple[int, int], b: tuple[int, int]) -> int:
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2


def radius(which: int, among: Points, k: int) -> int:
    return sorted(squared(among[which], other) for i, other in enumerate(among) if i != which)[k - 1]


def by_loops(real: Points, fake: Points) -> ManifoldScores:
    real3, real5 = ([radius(i, real, k) for i in range(len(real))] for k in (3, 5))
    fake3 = [radius(j, fake, 3) for j in range(len(fake))]
    balls = [[squared(x, y) <= r for y in fake] for x, r in zip(real, real5, strict=True)]
    return ManifoldScores(
        precision=np.mean([any(squared(x, y) <= r for x, r in zip(real, real3, strict=True)) for y in fake]),
        recall=np.mean([any(squared(x, y) <= r for y, r in zip(fake, fake3, strict=True)) for x in real]),
        density=np.sum(balls) / (5 * len(fake)),
        coverage=np.mean(np.any(balls, axis=1)),
    )


def test_by_hand() -> None:
    # Around the places 0 to 5: radii to the third neighbour 3, 2, 2, 2, 2, 3; to the fifth 5, 4, 3, 3, 4, 5.
    real, fake = line(0, 1, 2, 3, 4, 5), line(-3.5, -3, -0.5, 8, 9, 20)
    # -3 and 8 lie on the edge of [-3, 3] and [2, 8], -0.5 within. Of [-5, 5] [-3, 5] [-1, 5] [0, 6] [0, 8] [0, 10],
    # the fakes are in 1, 2, 3, 2, 1 and 0; the fourth ball is empty.
    scores = Manifold(real).score(fake)

    assert scores.precision == 3 / 6
    assert scores.density == pytest.approx(9 / (5 * 6))
    assert scores.coverage == 5 / 6
    assert Manifold(fake).score(real).recall == 3 / 6


@settings(deadline=None)
@given(points, points)
def test_equals_loops_over_a_lattice(real: Points, fake: Points) -> None:
    # Full of ties and of copies; the loops are exact.
    scores = Manifold(torch.tensor(real)).score(torch.tensor(fake))

    assert scores == pytest.approx(by_loops(real, fake))


def test_precision_and_recall_equal_torch_fidelity() -> None:
    real, fake = normal(1, 40, 5), normal(2, 60, 5) + 1.5
    expected = prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)

    scores = Manifold(real).score(fake)

    assert scores.precision == pytest.approx(expected[KEY_METRIC_PRECISION], rel=1e-6)
    assert scores.recall == pytest.approx(expected[KEY_METRIC_RECALL], rel=1e-6)
    assert 0.2 < scores.precision < 0.95
    assert 0.2 < scores.recall < 0.9


@pytest.mark.parametrize("block", [1, 150, 1000])
def test_any_blocks_equal_the_whole(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    real, fake = normal(1, 40, 5), normal(2, 60, 5) + 1
    whole = Manifold(real).score(fake)
    monkeypatch.setattr(module, "_BLOCK", block)

    assert Manifold(real).score(fake) == whole


def test_equal_distributions_score_as_expected() -> None:
    # Density is 1 in expectation; a real's 5 nearest of all others are all real with the probability below (Naeem et
    # al. 2020, lemma 2).
    n, m = 30, 45
    missed = prod((n - i) / (n + m - i) for i in range(1, 6))
    scores = [Manifold(normal(2 * i, n, 2)).score(normal(2 * i + 1, m, 2)) for i in range(400)]
    _, _, density, coverage = torch.tensor(scores).mean(dim=0).tolist()

    assert density == pytest.approx(1, abs=0.02)
    assert coverage == pytest.approx(1 - missed, abs=0.005)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_reals_themselves_are_perfect(offset: float) -> None:
    # Each ball holds its centre and five neighbours, of which the farthest is on the edge.
    real = normal(3, 50, 8) + offset

    assert Manifold(real).score(real.flip(0)) == (1, 1, 6 / 5, 1)


def test_scores_stay_far_from_the_origin() -> None:
    real, fake = normal(4, 40, 3), normal(5, 40, 3) + 0.5

    assert Manifold(real + 1e7).score(fake + 1e7) == Manifold(real).score(fake)


def test_far_away_is_nothing() -> None:
    assert Manifold(normal(6, 20, 3)).score(normal(7, 20, 3) + 100) == (0, 0, 0, 0)


def test_copies_count_where_balls_have_no_radius() -> None:
    picture, others = normal(8, 1, 64) * 37, normal(9, 12, 64)
    real = torch.cat([picture.expand(7, -1), others])

    # The copies lie in the 7 balls without a radius, and in others' that reach them or not.
    scores = Manifold(real).score(picture.expand(6, -1))
    assert scores.precision == 1
    assert scores.recall == 7 / 19
    assert scores.coverage >= 7 / 19
    assert scores.density >= 7 / 5
    # But next to them is not on them.
    near = picture + 1e-3
    assert Manifold(real).score(near.expand(6, -1)).recall == 0


def test_a_real_outlier_fools_precision_but_not_density() -> None:
    # It has a ball of its own that reaches back to the others.
    scores = Manifold(line(0, 1, 2, 3, 4, 5, 100)).score(line(95, 96, 97, 98, 99, 101))

    assert scores.precision == 1
    assert scores.density == pytest.approx(1 / 5)
    assert scores.coverage == 1 / 7


def test_a_generated_outlier_fools_recall_but_not_coverage() -> None:
    # The balls of the five beside 100 reach no real; that of 100 reaches -3 and with it all of them.
    fake = line(100, 205, 204, 203, 202, 201)
    manifold = Manifold(line(0, 1, 2, 3, 4, 5))

    assert manifold.score(fake) == (0, 1, 0, 0)
    assert manifold.score(line(200, 205, 204, 203, 202, 201)) == (0, 0, 0, 0)


def test_rejects_what_does_not_fit() -> None:
    few, enough = torch.zeros(LEAST_PICTURES - 1, 2), torch.zeros(LEAST_PICTURES, 2)
    with pytest.raises(ValueError, match="at least 6"):
        Manifold(few)
    with pytest.raises(ValueError, match="at least 6"):
        Manifold(enough).score(few)
    with pytest.raises(ValueError, match=r"\(m, 2\)"):
        Manifold(enough).score(enough[:, :1])
    with pytest.raises(UserError, match="not finite"):
        Manifold(enough).score(enough * torch.nan)
