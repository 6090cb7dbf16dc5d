"""Which picture goes into which split.

Pictures are ranked by a keyed hash of their pixels, so that the splits depend on the seed and on the pictures alone,
not on names or on the order of the files; the same picture twice never lies on two sides; and a picture added
later moves at most a few others.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ganflow.errors import UserError

Keys = NDArray[np.uint64]
Labels = NDArray[np.int64]


class Cut(NamedTuple):
    """Indices of the pictures held out, and of those kept."""

    held: NDArray[np.int64]
    kept: NDArray[np.int64]


def picture_key(pixels: NDArray[np.uint8], seed: int) -> int:
    """Hash a picture into 64 bits: equal pixels have equal keys, and the order of the keys is random by seed."""
    shape = ",".join(map(str, pixels.shape)).encode()
    digest = hashlib.blake2b(shape, digest_size=8, key=seed.to_bytes(8, "big"))
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest(), "big")


def require_distinct(keys: Keys, needed: int) -> None:
    """Raise UserError unless there are at least `needed` different pictures to make the splits from."""
    distinct = len(np.unique(keys))
    if distinct < needed:
        raise UserError(
            f"data: {distinct} different usable pictures for training, but at least {needed} are needed "
            "to make the missing splits from; add pictures to data.root"
        )


def cut(keys: Keys, labels: Labels | None, fraction: float, spare: int) -> Cut:
    """Hold out a fraction of the pictures, of each class where there are labels.

    At least one different picture is held out of each class that has more than `spare`, and at least `spare` are
    kept. There must be more than `spare` different pictures in all.
    """
    strata = [keys] if labels is None else [keys[labels == label] for label in np.unique(labels)]
    held = np.isin(keys, np.concatenate([_lowest(stratum, fraction, spare) for stratum in strata]))
    if not held.any() or len(np.unique(keys[~held])) < spare:  # every class is tiny
        held = np.isin(keys, _lowest(keys, fraction, spare))
    return Cut(np.flatnonzero(held), np.flatnonzero(~held))


def shuffled(members: NDArray[np.int64], keys: Keys, labels: Labels | None) -> NDArray[np.int64]:
    """Order pictures at random, so that the first n of a split are a fair sample of it.

    Not by the keys themselves, of which `cut` took the lowest of each class: those that it kept would begin with the
    classes of which it took the fewest. The order is as independent of names and files as the keys are.
    """
    ties = np.zeros(len(members)) if labels is None else labels[members]
    return members[np.lexsort((ties, _mixed(keys[members])))]


def _mixed(keys: Keys) -> Keys:
    """Give each key another one that looks independent of it (Steele et al. 2014, SplitMix64's last steps)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _lowest(keys: Keys, fraction: float, spare: int) -> Keys:
    distinct = np.unique(keys)
    return distinct[: max(0, min(len(distinct) - spare, max(1, round(fraction * len(distinct)))))]
