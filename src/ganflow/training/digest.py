"""One digest of named tensors."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def tensors_digest(tensors: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """SHA-256 of names, types, shapes and values, in the order given, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, values in tensors:
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
