"""The pictures of one split of a source, packed into a file in the source's order: by several processes, if wanted.

Each part of the source has its own place in the file, so that nothing depends on who is the first to be done.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ganflow.data.card import Skipped, Split
from ganflow.data.format import Format, pack_picture
from ganflow.data.sources import Part, Source
from ganflow.data.splitting import Keys, Labels, picture_key
from ganflow.data.workers import InOrder


@dataclass(frozen=True)
class Spool:
    """The packed pictures of one split of the source: a raw file with gaps, and in memory the little rest.

    `slots` are the places in the file, in sizes of a packed picture; `keys` and `labels` (None without any) belong to
    them.
    """

    path: Path
    keys: Keys
    labels: Labels | None
    slots: NDArray[np.int64]
    skipped: list[Skipped]
    converted: Mapping[str, int]


@dataclass(frozen=True)
class _Written:
    """What became of one part: some of its pictures are in the file, from a place on, and the others were skipped."""

    first: int
    keys: Keys
    labels: Labels
    skipped: list[Skipped]
    converted: Counter[str]


def spool(source: Source, split: Split, path: Path, *, packed_format: Format, seed: int, in_order: InOrder) -> Spool:
    """Pack the usable pictures of a split into a new file. Raises UserError if there are none."""
    path.touch()
    keys, labels, slots = [], [], []
    skipped: list[Skipped] = []
    converted: Counter[str] = Counter()
    total = source.candidates(split)
    with tqdm(total=total, desc=f"packing {split}", unit=" pictures", disable=None) as bar:
        for written in in_order(partial(_write, path, packed_format, seed), _numbered(source.parts(split))):
            keys.append(written.keys)
            labels.append(written.labels)
            slots.append(np.arange(written.first, written.first + len(written.keys)))
            skipped += written.skipped
            converted += written.converted
            bar.update(len(written.keys) + len(written.skipped))
    if not any(map(len, keys)):
        raise source.nothing_usable(split, skipped)
    labelled = source.classes is not None
    return Spool(
        path,
        np.concatenate(keys),
        np.concatenate(labels) if labelled else None,
        np.concatenate(slots),
        skipped,
        converted,
    )


def _numbered(parts: Iterator[Part]) -> Iterator[tuple[int, Part]]:
    """Give each part the place in the file at which it begins; there is room for all that it may hold."""
    first = 0
    for part in parts:
        yield first, part
        first += len(part)


def _write(path: Path, packed_format: Format, seed: int, numbered: tuple[int, Part]) -> _Written:
    first, part = numbered
    keys, labels = array("Q"), array("q")
    skipped: list[Skipped] = []
    converted: Counter[str] = Counter()
    with path.open("r+b") as file:
        file.seek(first * packed_format.nbytes)
        for entry in part.read():
            if isinstance(entry, Skipped):
                skipped.append(entry)
                continue
            file.write(pack_picture(entry.pixels, packed_format).tobytes())
            keys.append(picture_key(entry.pixels, seed))
            converted.update(entry.conversions)
            if entry.label is not None:
                labels.append(entry.label)
    return _Written(first, np.array(keys, np.uint64), np.array(labels, np.int64), skipped, converted)
