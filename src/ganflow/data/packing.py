"""Pack a source into a few large uint8 files with a data card, in bounded memory.

Each picture is cropped to its central square, turned gray (ITU-R 601 luma) or RGB, and resized: by Lanczos, which
filters out what is too fine, where it shrinks, and bicubically where it grows.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ganflow.data.card import CARD_FILE, SPLITS, DataCard, Skipped, Split, SplitCard
from ganflow.data.packed import images_file, labels_file
from ganflow.data.sources import Source
from ganflow.data.splitting import Keys, Labels, by_key, cut, picture_key, require_distinct

_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Format:
    """What all packed pictures have in common: uint8 (channels, resolution, resolution)."""

    channels: int
    resolution: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one packed picture."""
        return self.channels, self.resolution, self.resolution

    @property
    def nbytes(self) -> int:
        """Size of one packed picture."""
        return self.channels * self.resolution**2


@dataclass(frozen=True)
class _Spool:
    """The packed pictures of one split of the source, in its order: a raw file, and in memory the little rest."""

    path: Path
    keys: Keys
    labels: Labels | None


@dataclass(frozen=True)
class _Members:
    """Which pictures of a spool make up a split, in which order."""

    spool: _Spool
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
) -> DataCard:
    """Write `<split>_images.npy`, `<split>_labels.npy` (with labels only) and the card into the folder `out`.

    Splits that the source has are kept; a missing test split, and then a missing validation split, are cut from the
    training pictures. Raises UserError if there are too few pictures.
    """
    with TemporaryDirectory(dir=out, prefix=".spool-") as folder:
        spools = {split: _spool(source, split, Path(folder) / split, packed_format, seed) for split in source.splits}
        splits = _split(spools, validation_fraction, test_fraction)
        classes, skipped = source.classes, list(source.report.skipped)
        if classes is not None:
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
    card = DataCard(
        name=name,
        source=source_name,
        resolution=packed_format.resolution,
        channels=packed_format.channels,
        classes=classes,
        splits=writer.cards,
        mean=mean,
        std=std,
        digest=writer.digest,
        skipped=skipped,
        converted=dict(sorted(source.report.converted.items())),
    )
    card.save(out / CARD_FILE)
    return card


def pack_picture(pixels: NDArray[np.uint8], packed_format: Format) -> NDArray[np.uint8]:
    """Crop, colour and resize a picture, uint8 (h, w) or (h, w, 3), to (channels, resolution, resolution)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    gray = packed_format.channels == 1
    if side == packed_format.resolution and (square.ndim == 2) == gray:
        return square[None] if gray else square.transpose(2, 0, 1)
    image = Image.fromarray(np.ascontiguousarray(square))
    if gray:
        image = image.convert("L")
    if side != packed_format.resolution:
        kernel = Image.Resampling.LANCZOS if side > packed_format.resolution else Image.Resampling.BICUBIC
        image = image.resize((packed_format.resolution, packed_format.resolution), kernel)
    if gray:
        return np.asarray(image)[None]
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _spool(source: Source, split: Split, path: Path, packed_format: Format, seed: int) -> _Spool:
    keys, labels = array("Q"), array("q")
    bar = tqdm(source.pictures(split), f"packing {split}", source.candidates(split), unit=" pictures", disable=None)
    with path.open("wb") as file:
        for pixels, label in bar:
            file.write(pack_picture(pixels, packed_format).tobytes())
            keys.append(picture_key(pixels, seed))
            if label is not None:
                labels.append(label)
    return _Spool(
        path,
        np.array(keys, dtype=np.uint64),
        None if source.classes is None else np.array(labels, dtype=np.int64),
    )


def _split(spools: Mapping[Split, _Spool], validation_fraction: float, test_fraction: float) -> dict[Split, _Members]:
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
        split: _Members(spool, by_key(indices, spool.keys, spool.labels)) for split, (spool, indices) in parts.items()
    }


def _renumber(members: _Members, used: Labels) -> _Members:
    """Number the classes in use 0, 1, 2, ..."""
    spool = members.spool
    labels = None if spool.labels is None else np.searchsorted(used, spool.labels).astype(np.int64)
    return _Members(_Spool(spool.path, spool.keys, labels), members.indices)


class _Writer:
    """Writes the splits one after the other, and sums up what the card says of them on the way."""

    def __init__(self, packed_format: Format, classes: list[str] | None) -> None:
        self.cards: dict[Split, SplitCard] = {}
        self._format = packed_format
        self._classes = classes
        self._hash = hashlib.sha256(json.dumps(classes).encode())
        # Sums of whole numbers are exact in any order.
        self._sum = np.zeros(packed_format.channels, np.int64)
        self._sum_of_squares = np.zeros(packed_format.channels, np.int64)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    @property
    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Per channel of the training pixels, scaled to [0, 1]."""
        n = self.cards["train"].count * self._format.resolution**2
        mean = self._sum / n
        std = np.sqrt(np.maximum(self._sum_of_squares / n - mean**2, 0))
        return (mean / 255).tolist(), (std / 255).tolist()

    def write(self, split: Split, members: _Members, out: Path) -> None:
        shape = (len(members.indices), *self._format.shape)
        self._hash.update(json.dumps([split, shape]).encode())
        with (out / images_file(split)).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for chunk in self._chunks(members):
                file.write(chunk)
                self._hash.update(chunk)
                if split == "train":
                    self._add(chunk)
        counts = None
        if self._classes is not None and members.labels is not None:
            labels = members.labels.astype("<i8")
            np.save(out / labels_file(split), labels, allow_pickle=False)
            self._hash.update(labels.tobytes())
            per_class = np.bincount(labels, minlength=len(self._classes)).tolist()
            counts = dict(zip(self._classes, per_class, strict=True))
        self.cards[split] = SplitCard(shape[0], counts)

    def _chunks(self, members: _Members) -> Iterator[bytes]:
        """Yield the bytes of the pictures, some at a time."""
        nbytes = self._format.nbytes
        length = max(1, _CHUNK_BYTES // nbytes)
        with members.spool.path.open("rb") as file:
            for start in range(0, len(members.indices), length):
                offsets = (members.indices[start : start + length] * nbytes).tolist()
                yield b"".join(os.pread(file.fileno(), nbytes, offset) for offset in offsets)

    def _add(self, chunk: bytes) -> None:
        pixels = np.frombuffer(chunk, np.uint8).reshape(-1, *self._format.shape)
        self._sum += pixels.sum(axis=(0, 2, 3), dtype=np.int64)
        self._sum_of_squares += (pixels.astype(np.uint16) ** 2).sum(axis=(0, 2, 3), dtype=np.int64)
