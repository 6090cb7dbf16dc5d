"""Pack a source into shards, a few large uint8 files, with a data card: by several processes, in bounded memory."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ganflow.data.card import CARD_FILE, SPLITS, DataCard, Skipped, Split, SplitCard
from ganflow.data.digest import DataDigest
from ganflow.data.format import Format
from ganflow.data.packed import labels_file, shard_file
from ganflow.data.sources import Source
from ganflow.data.splitting import Labels, cut, require_distinct, shuffled
from ganflow.data.spooling import Spool, spool
from ganflow.data.workers import available_workers, working

_CHUNK_BYTES = 2**20
_SHARD_BYTES = 2**27  # of pixels, at most; each shard in use takes one of the files that a process may have open
_SMALL = 10_000  # pictures that are packed before other processes have started


@dataclass(frozen=True)
class _Members:
    """Which pictures of a spool make up a split, in which order."""

    spool: Spool
    indices: NDArray[np.int64]

    @property
    def labels(self) -> Labels | None:
        return None if self.spool.labels is None else self.spool.labels[self.indices]


def pack(
    source: Source,
    out: Path,
    *,
    name: str,
    source_name: str,
    packed_format: Format,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    workers: int | None = None,
) -> DataCard:
    """Write `<split>_images-00000.npy`, ..., `<split>_labels.npy` (with labels only) and the card into a folder.

    Splits that the source has are kept; a missing test split, and then a missing validation split, are cut from the
    training pictures. `workers` is the number of processes that read and pack pictures, by default one for each CPU;
    the result is the same for any. Raises UserError if there are too few pictures, or a process dies.
    """
    count = workers or _fitting(sum(map(source.candidates, source.splits)))
    with TemporaryDirectory(dir=out, prefix=".spool-") as folder:
        with working(count) as in_order:
            spools = {
                split: spool(
                    source, split, Path(folder) / split, packed_format=packed_format, seed=seed, in_order=in_order
                )
                for split in source.splits
            }
        splits = _split(spools, validation_fraction, test_fraction)
        classes, skipped = source.classes, [*source.skipped, *(each for s in spools.values() for each in s.skipped)]
        if classes is not None and source.channel_classes is None:  # the place of a combination says what it is of
            used = np.unique(np.concatenate([spool.labels for spool in spools.values() if spool.labels is not None]))
            skipped += [
                Skipped(classes[n], "a class without a usable picture") for n in range(len(classes)) if n not in used
            ]
            classes = [classes[n] for n in used]
            splits = {split: _renumber(members, used) for split, members in splits.items()}
        writer = _Writer(packed_format, classes)
        for split in SPLITS:
            writer.write(split, splits[split], out)
    mean, std = writer.mean_and_std
    converted = sum((Counter(spool.converted) for spool in spools.values()), Counter())
    card = DataCard(
        name=name,
        source=source_name,
        resolution=packed_format.resolution,
        channels=packed_format.channels,
        classes=classes,
        splits=writer.cards,
        pictures_a_shard=writer.pictures_a_shard,
        mean=mean,
        std=std,
        digest=str(writer.digest),
        skipped=skipped,
        converted=dict(sorted(converted.items())),
        channel_classes=source.channel_classes,
    )
    card.save(out / CARD_FILE)
    return card


def _fitting(candidates: int) -> int:
    """Give the number of processes that pay for so many pictures."""
    return 1 if candidates < _SMALL else available_workers()


def _split(spools: Mapping[Split, Spool], validation_fraction: float, test_fraction: float) -> dict[Split, _Members]:
    fractions: dict[Split, float] = {"test": test_fraction, "validation": validation_fraction}
    missing = {split: fraction for split, fraction in fractions.items() if split not in spools}
    train = spools["train"]
    require_distinct(train.keys, 1 + len(missing))
    parts = {split: (spool, np.arange(len(spool.keys))) for split, spool in spools.items()}
    for position, (split, fraction) in enumerate(missing.items()):
        rest = parts["train"][1]
        labels = None if train.labels is None else train.labels[rest]
        held, kept = cut(train.keys[rest], labels, fraction, spare=len(missing) - position)
        parts[split], parts["train"] = (train, rest[held]), (train, rest[kept])
    return {
        split: _Members(spool, shuffled(indices, spool.keys, spool.labels)) for split, (spool, indices) in parts.items()
    }


def _renumber(members: _Members, used: Labels) -> _Members:
    """Number the classes in use 0, 1, 2, ..."""
    spool = members.spool
    labels = None if spool.labels is None else np.searchsorted(used, spool.labels).astype(np.int64)
    return _Members(replace(spool, labels=labels), members.indices)


class _Writer:
    """Writes the splits one after the other, and sums up what the card says of them on the way."""

    def __init__(self, packed_format: Format, classes: Sequence[str] | None) -> None:
        self.cards: dict[Split, SplitCard] = {}
        self.pictures_a_shard = max(1, _SHARD_BYTES // packed_format.nbytes)
        self.digest = DataDigest(classes)
        self._format = packed_format
        self._classes = classes
        # Sums of whole numbers are exact in any order.
        self._sum = np.zeros(packed_format.channels, np.int64)
        self._sum_of_squares = np.zeros(packed_format.channels, np.int64)

    @property
    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Per channel of the training pixels, scaled to [0, 1]."""
        n = self.cards["train"].count * self._format.resolution**2
        mean = self._sum / n
        std = np.sqrt(np.maximum(self._sum_of_squares / n - mean**2, 0))
        return (mean / 255).tolist(), (std / 255).tolist()

    def write(self, split: Split, members: _Members, out: Path) -> None:
        n = len(members.indices)
        self.digest.begin(split, (n, *self._format.shape))
        for number, start in enumerate(range(0, n, self.pictures_a_shard)):
            indices = members.indices[start : start + self.pictures_a_shard]
            with (out / shard_file(split, number)).open("wb") as file:
                shape = (len(indices), *self._format.shape)
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for chunk in self._chunks(members.spool, indices):
                    file.write(chunk)
                    self.digest.add_pixels(chunk)
                    if split == "train":
                        self._add(chunk)
        counts = None
        if self._classes is not None and members.labels is not None:
            labels = members.labels.astype("<i8")
            np.save(out / labels_file(split), labels, allow_pickle=False)
            self.digest.add_labels(labels)
            per_class = np.bincount(labels, minlength=len(self._classes)).tolist()
            counts = dict(zip(self._classes, per_class, strict=True))
        self.cards[split] = SplitCard(n, counts)

    def _chunks(self, spool: Spool, indices: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield the bytes of the pictures, some at a time."""
        nbytes = self._format.nbytes
        length = max(1, _CHUNK_BYTES // nbytes)
        with spool.path.open("rb") as file:
            for start in range(0, len(indices), length):
                offsets = (spool.slots[indices[start : start + length]] * nbytes).tolist()
                yield b"".join(os.pread(file.fileno(), nbytes, offset) for offset in offsets)

    def _add(self, chunk: bytes) -> None:
        pixels = np.frombuffer(chunk, np.uint8).reshape(-1, *self._format.shape)
        self._sum += pixels.sum(axis=(0, 2, 3), dtype=np.int64)
        self._sum_of_squares += (pixels.astype(np.uint16) ** 2).sum(axis=(0, 2, 3), dtype=np.int64)
