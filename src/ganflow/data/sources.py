"""Where pictures come from. A source yields them in parts, split by split, in an order of its own."""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ganflow.data.card import Skipped, Split
from ganflow.errors import UserError

PICTURES_A_PART = 512
_DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte: a network that swallows packets would hang for ever


class Picture(NamedTuple):
    """Pixels, uint8 (h, w) gray or (h, w, 3) RGB, the index of the class, or None without labels, and conversions.

    The conversions are the kinds that the pixels took to come out of their file.
    """

    pixels: NDArray[np.uint8]
    label: int | None
    conversions: tuple[str, ...] = ()


class Part(Protocol):
    """Some of the pictures of a source, in a small form that can be sent to another process and read there."""

    def __len__(self) -> int:
        """Count them, those included that will turn out to be unusable."""

    def read(self) -> Iterator[Picture | Skipped]:
        """Yield them in their order, or why one was left out."""


class Source(Protocol):
    """A data set as it lies."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, or None if there are no labels."""

    @property
    def channel_classes(self) -> Sequence[str] | None:
        """Names of what one channel shows, where each is a picture of its own and `classes` are all combinations."""

    @property
    def splits(self) -> Sequence[Split]:
        """The splits that the data set itself has, always with `train`."""

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What was left out before any picture was read."""

    def candidates(self, split: Split) -> int:
        """Count the pictures of a split, those included that will turn out to be unusable."""

    def parts(self, split: Split) -> Iterator[Part]:
        """Yield the pictures of a split in parts."""

    def nothing_usable(self, split: Split, skipped: Sequence[Skipped], /) -> UserError:
        """Make the error for a split in which all that there is was skipped."""


Arrays = Mapping[Split, tuple[NDArray[np.uint8], NDArray[np.int64]]]
"""Per split the pictures (n, h, w) or (n, h, w, 3), and their labels (n,)."""


@dataclass(frozen=True)
class ArrayPart:
    """Pictures (n, h, w) or (n, h, w, 3) that lie in memory, with their labels (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def read(self) -> Iterator[Picture]:
        """Yield them."""
        for pixels, label in zip(self.images, self.labels, strict=True):
            yield Picture(pixels, int(label))


class ArraySource:
    """A labelled data set that is small enough to lie in memory."""

    def __init__(self, arrays: Arrays, classes: Sequence[str]) -> None:
        self.classes = classes
        self.channel_classes: Sequence[str] | None = None
        self.splits = tuple(arrays)
        self.skipped: tuple[Skipped, ...] = ()
        self._arrays = arrays

    def candidates(self, split: Split) -> int:
        """Count the pictures of a split."""
        return len(self._arrays[split][0])

    def parts(self, split: Split) -> Iterator[ArrayPart]:
        """Yield the pictures of a split in parts."""
        images, labels = self._arrays[split]
        for start in range(0, len(images), PICTURES_A_PART):
            part = slice(start, start + PICTURES_A_PART)
            yield ArrayPart(images[part], labels[part])

    def nothing_usable(self, split: Split, _: Sequence[Skipped], /) -> UserError:
        """Make the error for a split without pictures."""
        return UserError(f"data.source: the {split} split holds no pictures")


def open_source(name: str, root: Path) -> Source:
    """Open the data set `data.source`, with `root` as `data.root`. Raises UserError if it is not there."""
    if name == "digits":
        return _digits()
    if name == "image_folder":
        from ganflow.data.image_folder import ImageFolder

        return ImageFolder(root)
    arrays, classes = _torchvision(name, root)
    if name == "stacked_mnist":
        from ganflow.data.stacked_mnist import StackedMnist

        return StackedMnist(arrays, classes)
    return ArraySource(arrays, classes)


def _digits() -> Source:
    from sklearn.datasets import load_digits  # slow to import, as torchvision is below

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return ArraySource({"train": (images, digits.target.astype(np.int64))}, [str(n) for n in range(10)])


_MNIST_FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_MNIST = ("MNIST", tuple(f"MNIST/raw/{file}" for file in _MNIST_FILES))
_TORCHVISION_FILES = {
    "mnist": _MNIST,
    "stacked_mnist": _MNIST,
    "fashion_mnist": ("FashionMNIST", tuple(f"FashionMNIST/raw/{file}" for file in _MNIST_FILES)),
    "cifar10": (
        "CIFAR10",
        tuple(
            f"cifar-10-batches-py/{file}"
            for file in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta")
        ),
    ),
}


def _torchvision(name: str, root: Path) -> tuple[Arrays, Sequence[str]]:
    import torchvision.datasets

    class_name, files = _TORCHVISION_FILES[name]
    dataset_class = getattr(torchvision.datasets, class_name)
    missing = [file for file in files if not (root / file).is_file()]
    if missing:
        with _timeout(_DOWNLOAD_TIMEOUT):
            _attempt(
                partial(dataset_class, root, download=True),
                f"data.source {name}: {', '.join(missing)} not found under data.root ({root}), and the download "
                "failed; let data.root name a folder that holds the data set in torchvision's layout",
            )
    corrupt = f"data.source {name}: the files under data.root ({root}) are corrupt; delete them to download them again"
    arrays: dict[Split, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}
    classes: list[str] = []
    for split in ("train", "test"):
        dataset = _attempt(partial(dataset_class, root, train=split == "train"), corrupt)
        images, labels = np.asarray(dataset.data), np.asarray(dataset.targets, dtype=np.int64)
        classes = [label.partition(" - ")[0] for label in dataset.classes]  # MNIST's are named "0 - zero"
        if len(images) != len(labels) or not len(labels) or labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(f"{corrupt}: {len(images)} {split} pictures do not match their {len(labels)} labels")
        arrays[split] = images, labels
    return arrays, classes


def _attempt(read: Callable[[], Any], message: str) -> Any:
    """Call torchvision; on broken files it fails in many ways (RuntimeError, AssertionError, IndexError, EOFError)."""
    try:
        return read()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{message}: {reason}") from None


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
