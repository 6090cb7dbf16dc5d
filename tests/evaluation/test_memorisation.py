from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganflow.errors import UserError
from ganflow.evaluation import memorisation as module
from ganflow.evaluation.discriminator import auc_interval
from ganflow.evaluation.memorisation import NearestNeighbours, memorisation, memorisation_interval

points = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=12)


def normal(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def nearest(queries: torch.Tensor, *batches: torch.Tensor) -> NearestNeighbours:
    found = NearestNeighbours(queries)
    for batch in batches:
        found.update(batch)
    return found


@settings(deadline=None)
@given(points, points, st.integers(1, 12))
def test_equals_loops_over_a_lattice(
    queries: list[tuple[int, int]], training: list[tuple[int, int]], batch_size: int
) -> None:
    found = nearest(torch.tensor(queries), *torch.tensor(training).split(batch_size))

    for query, distance, index in zip(queries, found.distances.tolist(), found.indices.tolist(), strict=True):
        squares = [(query[0] - x) ** 2 + (query[1] - y) ** 2 for x, y in training]
        assert distance == pytest.approx(min(squares) ** 0.5, abs=1e-12)
        assert squares[index] == min(squares)
        # The first batch that has one so near keeps the place.
        assert index // batch_size == squares.index(min(squares)) // batch_size


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("block", [1, 30, 1 << 20])
def test_any_batches_and_blocks_equal_the_whole(monkeypatch: pytest.MonkeyPatch, batch_size: int, block: int) -> None:
    queries, training = normal(1, 20, 5), normal(2, 64, 5)
    expected = torch.cdist(queries.double(), training.double(), compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    monkeypatch.setattr(module, "_BLOCK", block)

    found = nearest(queries, *training.split(batch_size))

    assert found.distances.dtype == torch.float64
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.distances.tolist() == pytest.approx(expected.values.tolist(), rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_copies_are_at_no_distance(offset: float) -> None:
    training = normal(3, 50, 64) + offset
    copies = torch.tensor([41, 3, 17])

    found = nearest(training[copies], *training.split(20))

    assert found.indices.tolist() == copies.tolist()
    assert found.distances.tolist() == [0, 0, 0]


def test_near_pictures_far_from_the_origin_are_told_apart() -> None:
    training = torch.tensor([[1e8, 0.0], [1e8, 1.0], [1e8, 2.0]], dtype=torch.float64)

    found = nearest(torch.tensor([[1e8, 1.4], [1e8, 1.6]], dtype=torch.float64), training)

    assert found.indices.tolist() == [1, 2]
    assert found.distances.tolist() == pytest.approx([0.4, 0.4])


def test_before_the_first_batch_nothing_is_near() -> None:
    found = NearestNeighbours(torch.zeros(2, 3))

    assert found.distances.tolist() == [inf, inf]
    assert found.indices.tolist() == [-1, -1]


def test_share_by_hand() -> None:
    # Of 2 x 3 pairs, 0.5 is nearer in 3, 2.0 in one and level in one.
    generated, held_out = torch.tensor([0.5, 2.0]), torch.tensor([1.0, 2.0, 3.0])

    assert memorisation(generated, held_out) == pytest.approx((3 + 1 + 0.5) / 6)
    assert memorisation_interval(generated, held_out) == auc_interval(4.5 / 6, 3, 2)


def test_three_kinds_of_generators() -> None:
    training, held_out = normal(4, 300, 4), normal(5, 200, 4)
    reference = nearest(held_out, training).distances

    def share(generated: torch.Tensor) -> tuple[float, bool]:
        distances = nearest(generated, training).distances
        low, high = memorisation_interval(distances, reference)
        return memorisation(distances, reference), low <= 0.5 <= high

    assert share(training[:150]) == (1, False)  # copies
    value, chance = share(normal(6, 150, 4))  # new pictures
    assert value == pytest.approx(0.5, abs=0.07)
    assert chance
    value, chance = share(3 * normal(6, 150, 4))  # strays
    assert value < 0.2
    assert not chance


def test_copies_win_even_where_held_out_pictures_are_copies_too() -> None:
    assert memorisation(torch.zeros(4), torch.tensor([0.0, 1.0])) == 0.75


def test_rejects_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        NearestNeighbours(torch.zeros(3))
    with pytest.raises(ValueError, match=r"\(b, 2\)"):
        NearestNeighbours(torch.zeros(3, 2)).update(torch.zeros(3, 4))
    with pytest.raises(UserError, match="not finite"):
        NearestNeighbours(torch.zeros(3, 2)).update(torch.full((1, 2), inf))
    for generated, held_out in ((torch.zeros(0), torch.zeros(1)), (torch.zeros(1), torch.tensor([inf]))):
        with pytest.raises(ValueError, match="finite"):
            memorisation(generated, held_out)
