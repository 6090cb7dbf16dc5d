"""Stacked MNIST: three digits drawn at random as the red, green and blue of a picture, so that there are 1000 classes.

It shows how many of many modes a generator finds (Metz et al. 2017, section 3.3.1).
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ganflow.data.card import Split
from ganflow.data.sources import PICTURES_A_PART, ArrayPart, Arrays, ArraySource

_CHANNELS: Final = 3
# As many to train on as in PacGAN (Lin et al. 2018), and as many to compare with as its evaluation generates.
_COUNTS: dict[Split, int] = {"train": 128_000, "test": 26_000}
# Constants, and not data.seed, for the data set is to be the same for everybody.
_SEEDS: dict[Split, int] = {"train": 0, "test": 1}


class StackedMnist(ArraySource):
    """Pictures (28, 28, 3) of three digits of one split each, stacked when they are asked for.

    The class of a picture is 100 a + 10 b + c for the digits a, b and c in its channels.
    """

    def __init__(self, digits: Arrays, names: Sequence[str]) -> None:
        """Take the digits, (n, 28, 28) with labels (n,), and the names of their classes."""
        super().__init__(digits, ["".join(each) for each in product(names, repeat=_CHANNELS)])
        self.channel_classes = names
        self._shape = (len(names),) * _CHANNELS

    def candidates(self, split: Split) -> int:
        """Count the pictures of a split."""
        return _COUNTS[split]

    def parts(self, split: Split) -> Iterator[ArrayPart]:
        """Yield the pictures of a split in parts."""
        digits, labels = self._arrays[split]
        chosen = _draw(split, len(digits))
        classes: NDArray[np.int64] = np.asarray(np.ravel_multi_index(tuple(labels[chosen].T), self._shape))
        for start in range(0, len(chosen), PICTURES_A_PART):
            part = slice(start, start + PICTURES_A_PART)
            yield ArrayPart(np.moveaxis(digits[chosen[part]], 1, -1), classes[part])


def _draw(split: Split, n: int) -> NDArray[np.int64]:
    """Choose which of n digits make up each picture of a split: (pictures, 3), from 0 to n - 1."""
    # Raw bits, since NumPy promises the same stream in every version for them alone.
    bits = np.random.PCG64(_SEEDS[split]).random_raw((_COUNTS[split], _CHANNELS))
    return (bits % np.uint64(n)).astype(np.int64)
