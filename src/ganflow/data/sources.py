"""Where pictures come from. A source yields them one at a time, split by split, in an order of its own."""

import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ganflow.data.card import Skipped, Split
from ganflow.errors import UserError

_DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte: a network that swallows packets would hang for ever


class Picture(NamedTuple):
    """Pixels, uint8 (h, w) gray or (h, w, 3) RGB, and the index of the class, or None without labels."""

    pixels: NDArray[np.uint8]
    label: int | None


@dataclass
class Report:
    """What a source left out, and how many pictures took each kind of conversion; filled as it is read."""

    skipped: list[Skipped] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)


class Source(Protocol):
    """A data set as it lies."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, or None if there are no labels."""

    @property
    def splits(self) -> Sequence[Split]:
        """The splits that the data set itself has, always with `train`."""

    @property
    def report(self) -> Report:
        """What was left out and converted so far."""

    def candidates(self, split: Split) -> int:
        """Count the pictures of a split, those included that will turn out to be unusable."""

    def pictures(self, split: Split) -> Iterator[Picture]:
        """Yield the usable pictures of a split."""


class ArraySource:
    """A labelled data set that is small enough to lie in memory: per split uint8 pictures, and labels (n,)."""

    def __init__(
        self, arrays: Mapping[Split, tuple[NDArray[np.uint8], NDArray[np.int64]]], classes: Sequence[str]
    ) -> None:
        self.classes = classes
        self.splits = tuple(arrays)
        self.report = Report()
        self._arrays = arrays

    def candidates(self, split: Split) -> int:
        """Count the pictures of a split."""
        return len(self._arrays[split][0])

    def pictures(self, split: Split) -> Iterator[Picture]:
        """Yield the pictures of a split."""
        for pixels, label in zip(*self._arrays[split], strict=True):
            yield Picture(pixels, int(label))


def open_source(name: str, root: Path) -> Source:
    """Open the data set `data.source`, with `root` as `data.root`. Raises UserError if it is not there."""
    if name == "digits":
        return _digits()
    if name == "image_folder":
        from ganflow.data.image_folder import ImageFolder

        return ImageFolder(root)
    return _torchvision(name, root)


def _digits() -> Source:
    from sklearn.datasets import load_digits  # slow to import, as torchvision is below

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return ArraySource({"train": (images, digits.target.astype(np.int64))}, [str(n) for n in range(10)])


_MNIST_FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_TORCHVISION_FILES = {
    "mnist": ("MNIST", tuple(f"MNIST/raw/{file}" for file in _MNIST_FILES)),
    "fashion_mnist": ("FashionMNIST", tuple(f"FashionMNIST/raw/{file}" for file in _MNIST_FILES)),
    "cifar10": (
        "CIFAR10",
        tuple(
            f"cifar-10-batches-py/{file}"
            for file in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta")
        ),
    ),
}


def _torchvision(name: str, root: Path) -> Source:
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
    return ArraySource(arrays, classes)


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
