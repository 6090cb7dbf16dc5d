import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ganflow.data.images import Images


def numbered(n: int) -> NDArray[np.uint8]:
    return np.arange(n * 4, dtype=np.uint8).reshape(n, 1, 2, 2)


def cut(whole: NDArray[np.uint8], length: int) -> Images:
    return Images([whole[start : start + length] for start in range(0, len(whole), length)])


@given(st.data())
def test_shards_are_as_good_as_one_array(data: st.DataObject) -> None:
    n, length = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 14))
    whole = numbered(n)
    images = cut(whole, length)
    assert (len(images), images.shape, images.nbytes) == (n, whole.shape, whole.nbytes)

    place = data.draw(st.integers(-n, n - 1))
    np.testing.assert_array_equal(images[place], whole[place])
    part = data.draw(st.slices(n))
    np.testing.assert_array_equal(images[part], whole[part])
    assert images[part].shape == whole[part].shape

    order = np.array(data.draw(st.lists(st.integers(0, n - 1))), dtype=np.int64)
    out = np.zeros((len(order), 1, 2, 2), np.uint8)
    images.take(order, out)
    np.testing.assert_array_equal(out, whole[order])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_channels_apart_are_pictures_of_their_own(length: int) -> None:
    whole = np.arange(5 * 12, dtype=np.uint8).reshape(5, 3, 2, 2)
    apart = cut(whole, length).channels_apart()
    assert apart.shape == (15, 1, 2, 2)
    for picture in range(5):
        for channel in range(3):
            np.testing.assert_array_equal(apart[3 * picture + channel][0], whole[picture, channel])
    assert np.shares_memory(apart[14], whole)
    assert Images([whole[:0]]).channels_apart().shape == (0, 1, 2, 2)


@pytest.mark.parametrize("place", [5, -6])
def test_there_is_nothing_beyond_the_ends(place: int) -> None:
    with pytest.raises(IndexError):
        cut(numbered(5), 2)[place]


def test_what_lies_in_one_shard_is_not_copied() -> None:
    whole = numbered(7)
    images = cut(whole, 3)
    for part in (slice(0, 3), slice(4, 5), slice(5, 2, -2), slice(6, None)):
        assert np.shares_memory(images[part], whole), part
    assert not np.shares_memory(images[2:4], whole)


@pytest.mark.parametrize(
    "shards",
    [
        [numbered(2), numbered(1), numbered(2)],
        [numbered(2), numbered(3)],
        [numbered(2), numbered(2).reshape(2, 1, 1, 4)],
        [numbered(2), numbered(2).astype(np.int64)],
    ],
)
def test_shards_that_do_not_belong_together(shards: list[NDArray[np.uint8]]) -> None:
    with pytest.raises(ValueError, match="shards"):
        Images(shards)
