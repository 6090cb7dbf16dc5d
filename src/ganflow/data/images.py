"""The pictures of one split as one array, though they lie in several files."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Images:
    """Pictures in shards: arrays of uint8 (n_i, c, h, w), all of the same length but the last, which may be shorter.

    The shards are memory maps as a rule, so that what is read of them is loaded by the system, and let go again when
    memory runs short.
    """

    def __init__(self, shards: Sequence[NDArray[np.uint8]]) -> None:
        """Take one shard at least. Raises ValueError for shards that do not belong together."""
        self._length = max(1, len(shards[0]))
        *whole, last = shards
        if any(len(shard) != self._length for shard in whole) or len(last) > self._length:
            raise ValueError("all shards but the last must be of one length, and the last no longer")
        if any(shard.shape[1:] != last.shape[1:] or shard.dtype != np.uint8 for shard in shards):
            raise ValueError("shards must be uint8, and their pictures of one shape")
        self._shards = tuple(shards)
        self.shape: tuple[int, ...] = (self._length * len(whole) + len(last), *last.shape[1:])

    @property
    def nbytes(self) -> int:
        """Size of all pictures together."""
        return sum(shard.nbytes for shard in self._shards)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: int | slice) -> NDArray[np.uint8]:
        """Give one picture (c, h, w), or those of a slice (n, c, h, w): a view where they lie in one shard."""
        if isinstance(place, slice):
            return self._slice(range(len(self))[place])
        shard, row = divmod(range(len(self))[place], self._length)
        picture: NDArray[np.uint8] = self._shards[shard][row]
        return picture

    def channels_apart(self) -> "Images":
        """Take every channel for a picture: a view of (n * c, 1, h, w), those of the first picture first."""
        _, channels, *sides = self.shape
        return Images([shard.reshape(len(shard) * channels, 1, *sides) for shard in self._shards])

    def take(self, order: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the pictures at some places into `out`, uint8 (len(order), c, h, w).

        The places must be from 0 up to the number of pictures: they are not checked.
        """
        if len(self._shards) == 1:
            np.take(self._shards[0], order, axis=0, out=out, mode="clip")  # other modes take a detour by a buffer
            return
        for row, place in zip(out, order.tolist(), strict=True):
            shard, index = divmod(place, self._length)
            row[...] = self._shards[shard][index]

    def _slice(self, places: range) -> NDArray[np.uint8]:
        if not places:
            return self._shards[0][:0]
        (shard, first), (other, last) = (divmod(place, self._length) for place in (places[0], places[-1]))
        if shard == other:
            stop = last + (1 if places.step > 0 else -1)
            return self._shards[shard][first : stop if stop >= 0 else None : places.step]
        out = np.empty((len(places), *self.shape[1:]), np.uint8)
        self.take(np.array(places, dtype=np.int64), out)
        return out
