"""A packed data set, opened from the folder that `prepare` wrote."""

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganflow.data.card import CARD_FILE, DataCard, Split
from ganflow.data.images import Images
from ganflow.errors import UserError


def shard_file(split: Split, number: int) -> str:
    """Name a file of a split's pictures; they are numbered from 0."""
    return f"{split}_images-{number:05}.npy"


def labels_file(split: Split) -> str:
    """Name the file of a split's labels."""
    return f"{split}_labels.npy"


def file_sizes(card: DataCard) -> dict[str, int]:
    """Give the size in bytes of each file of pictures or labels, by name."""
    picture = (card.channels, card.resolution, card.resolution)
    sizes = {}
    for split in card.splits:
        for number, count in enumerate(card.shards(split)):
            sizes[shard_file(split, number)] = _size((count, *picture), np.dtype(np.uint8))
        if card.classes is not None:
            sizes[labels_file(split)] = _size((card.splits[split].count,), np.dtype(np.int64))
    return sizes


def _size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return header.tell() + math.prod(shape) * dtype.itemsize


class PackedData:
    """Pictures and labels by split, memory-mapped, and the card that describes them."""

    def __init__(self, folder: Path) -> None:
        """Read the card. Raises UserError if the folder does not hold a packed data set."""
        self.folder = folder
        self.card = DataCard.load(folder / CARD_FILE)

    def images(self, split: Split) -> Images:
        """Map the pictures of a split: uint8 (n, channels, resolution, resolution), not writable."""
        card = self.card
        picture = (card.channels, card.resolution, card.resolution)
        return Images(
            [
                self._map(shard_file(split, number), (count, *picture), np.uint8)
                for number, count in enumerate(card.shards(split))
            ]
        )

    def labels(self, split: Split) -> NDArray[np.int64] | None:
        """Map the classes of a split: int64 (n,), as indices into `card.classes`; None if there are no labels."""
        if self.card.classes is None:
            return None
        return self._map(labels_file(split), (self.card.splits[split].count,), np.int64)

    def _map(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        path = self.folder / name
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{path}: there is no such file; run `ganflow prepare` again") from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: is not a packed array ({error}); run `ganflow prepare` again") from None
        if mapped.shape != shape or mapped.dtype != dtype:
            raise UserError(
                f"{path}: holds {mapped.dtype} {mapped.shape}, but the data card says {np.dtype(dtype)} {shape}; "
                "run `ganflow prepare` again"
            )
        # A plain array over the same map: the subclass makes every access slower.
        return np.asarray(mapped)
