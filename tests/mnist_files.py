"""A tiny MNIST of noise, in the files of the real one."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def idx(array: NDArray[np.uint8]) -> bytes:
    """The IDX format of MNIST's files."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(root: Path, kind: str = "MNIST", train: int = 5, test: int = 3) -> dict[str, NDArray[np.uint8]]:
    folder = root / kind / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {}
    for name, n in (("train", train), ("t10k", test)):
        images[name] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images[name]))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(n, dtype=np.uint8)))
    return images
