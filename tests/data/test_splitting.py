import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ganflow.data.splitting import cut, picture_key, require_distinct, shuffled
from ganflow.errors import UserError

FRACTIONS = st.floats(0.01, 0.5)


@st.composite
def pools(draw: st.DrawFn) -> tuple[NDArray[np.uint64], NDArray[np.int64] | None]:
    """Keys with repetitions, and labels or None."""
    keys = np.array(draw(st.lists(st.integers(0, 40), min_size=3, max_size=80)), np.uint64)
    labels = None
    if draw(st.booleans()):
        labels = np.array([draw(st.integers(0, 4)) for _ in keys], np.int64)
    return keys, labels


@settings(max_examples=200, deadline=None)
@given(pool=pools(), fraction=FRACTIONS, spare=st.integers(1, 2))
def test_cuts_are_disjoint_exhaustive_and_keep_equal_pictures_together(
    pool: tuple[NDArray[np.uint64], NDArray[np.int64] | None], fraction: float, spare: int
) -> None:
    keys, labels = pool
    if len(np.unique(keys)) <= spare:
        return
    held, kept = cut(keys, labels, fraction, spare)
    assert sorted([*held, *kept]) == list(range(len(keys)))
    assert len(held) > 0
    assert len(np.unique(keys[kept])) >= spare
    assert not set(keys[held]) & set(keys[kept])


@settings(max_examples=100, deadline=None)
@given(pool=pools(), fraction=FRACTIONS, seed=st.integers(0, 9))
def test_cuts_do_not_depend_on_the_order_of_the_files(
    pool: tuple[NDArray[np.uint64], NDArray[np.int64] | None], fraction: float, seed: int
) -> None:
    keys, labels = pool
    if len(np.unique(keys)) <= 1:
        return
    order = np.random.default_rng(seed).permutation(len(keys))
    held = cut(keys, labels, fraction, 1).held
    shuffled = cut(keys[order], None if labels is None else labels[order], fraction, 1).held
    assert set(order[shuffled]) == set(held)


def test_the_fraction_is_held_out_of_each_class() -> None:
    keys = np.random.default_rng(0).permutation(1000).astype(np.uint64)
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    held = cut(keys, labels, 0.2, spare=2).held
    assert np.bincount(labels[held]).tolist() == [140, 40, 20]


def test_small_classes_are_in_every_split_that_they_can_fill() -> None:
    keys = np.arange(109).astype(np.uint64)
    labels = np.repeat([0, 1, 2, 3], [100, 4, 3, 2])
    assert np.bincount(labels[cut(keys, labels, 0.1, spare=2).held], minlength=4).tolist() == [10, 1, 1, 0]
    assert np.bincount(labels[cut(keys, labels, 0.1, spare=1).held], minlength=4).tolist() == [10, 1, 1, 1]


def test_one_picture_a_class_is_split_without_regard_to_classes() -> None:
    held, kept = cut(np.arange(10).astype(np.uint64), np.arange(10), 0.3, spare=1)
    assert (len(held), len(kept)) == (3, 7)


def test_one_more_picture_moves_at_most_one_other() -> None:
    keys = np.random.default_rng(1).integers(0, 2**62, 101).astype(np.uint64)
    before = set(keys[:100][cut(keys[:100], None, 0.2, 1).held])
    after = set(keys[cut(keys, None, 0.2, 1).held])
    assert len(before ^ after) <= 2


def test_too_few_different_pictures() -> None:
    require_distinct(np.array([1, 2, 3, 3], np.uint64), 3)
    with pytest.raises(UserError, match=r"2 different usable pictures .* at least 3 are needed"):
        require_distinct(np.array([1, 2, 2, 2], np.uint64), 3)


def test_keys_follow_pixels_shape_and_seed() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(2, 6)
    assert picture_key(picture, 0) == picture_key(picture.copy(), 0)
    assert picture_key(picture, 0) == picture_key(np.asfortranarray(picture), 0)
    others = [picture_key(picture, 1), picture_key(picture + 1, 0), picture_key(picture.reshape(3, 4), 0)]
    assert picture_key(picture, 0) not in others


def test_the_order_is_the_pictures_own() -> None:
    keys = np.array([5, 1, 9, 1, 7], np.uint64)
    labels = np.array([0, 2, 0, 1, 0])
    members = np.array([0, 1, 3, 4])
    order = shuffled(members, keys, labels)
    assert sorted(order) == sorted(members)
    assert shuffled(members[::-1], keys, labels).tolist() == order.tolist()
    first = order.tolist().index(3)
    assert order[first + 1] == 1, "of equal pictures, the lower class first"
    assert len(shuffled(np.array([0, 1, 4]), keys, None)) == 3


@pytest.mark.parametrize("side", ["held", "kept"])
def test_the_first_pictures_of_a_split_are_a_fair_sample_of_many_small_classes(side: str) -> None:
    """Pearson's statistic over the classes, against what a draw without replacement leads to expect."""
    classes, each, share = 200, 200, 0.2
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**63, classes * each).astype(np.uint64) * np.uint64(2)
    labels = rng.permutation(np.repeat(np.arange(classes), each))
    members = getattr(cut(keys, labels, 0.5, spare=2), side)
    for part in (slice(None, round(share * len(members))), slice(round((1 - share) * len(members)), None)):
        counts = np.bincount(labels[shuffled(members, keys, labels)[part]], minlength=classes)
        expected = share * each / 2
        statistic = ((counts - expected) ** 2 / expected).sum() / (1 - share)
        assert statistic == pytest.approx(classes - 1, abs=4 * (2 * (classes - 1)) ** 0.5)
