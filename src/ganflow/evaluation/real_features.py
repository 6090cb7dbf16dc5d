"""Features of real pictures, computed once and kept on disk: every model is measured against the same ones."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ganflow.data.card import Split
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation.extractor import Extractor
from ganflow.evaluation.statistics import Moments, moments

_FEATURES = "features.npy"
_KEY = "key.json"
_READ_AT_ONCE = 1000
_ITEM = 4  # bytes of a float32
_CODE = ("classifier.py", "inception.py", "extractor.py", "statistics.py", "real_features.py")


@dataclass(frozen=True, kw_only=True)
class Key:
    """All that features of real pictures depend on."""

    data_digest: str
    extractor_digest: str
    split: Split
    count: int
    """How many: the first of the split."""
    resize: str
    device: str
    """Kind of processor: another one rounds in another way."""
    code: str
    """Digest of the code that makes them, with torch's version."""

    @property
    def folder(self) -> str:
        """Name of the folder that holds them."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class RealFeatures:
    """The features of the first pictures of a split: a file of float32 (count, d), read in parts."""

    folder: Path
    count: int
    dim: int
    device: torch.device
    """Where they go to when they are read."""

    def first(self, n: int) -> Tensor:
        """Read the features (n, d) of the first pictures into memory."""
        return self._read(0, n)

    def batches(self, n: int | None = None) -> Iterator[Tensor]:
        """Read the features of the first `n` pictures, or of all, in batches (at most 1000, d)."""
        end = self.count if n is None else n
        for start in range(0, end, _READ_AT_ONCE):
            yield self._read(start, min(start + _READ_AT_ONCE, end))

    def moments(self, n: int) -> Moments:
        """Give the moments of the first `n`, computed once and kept beside the features."""
        path = self.folder / f"moments-{n}.safetensors"
        device = torch.device("cpu") if self.device.type == "mps" else self.device  # MPS has no float64
        try:
            with safe_open(path, framework="pt") as file:
                mean, scatter = (file.get_tensor(name).to(device) for name in ("mean", "scatter"))
            return Moments(n, mean, scatter)
        except (OSError, SafetensorError):  # none yet, or damaged
            of = moments(self.batches(n))
        tensors = {"mean": of.mean.cpu().contiguous(), "scatter": of.scatter.cpu().contiguous()}
        # Where they cannot be written, they are computed the next time, too.
        with suppress(OSError, SafetensorError), TemporaryDirectory(dir=self.folder, prefix=".new-") as temporary:
            save_file(tensors, Path(temporary) / path.name)
            (Path(temporary) / path.name).replace(path)
        return of

    def _read(self, start: int, end: int) -> Tensor:
        """Read some rows; a memory map would do, but what was read of it counts as memory of the process."""
        path = self.folder / _FEATURES
        row = self.dim * _ITEM
        header = path.stat().st_size - self.count * row
        values = np.fromfile(path, np.float32, (end - start) * self.dim, offset=header + start * row)
        return torch.from_numpy(values.reshape(end - start, self.dim)).to(self.device)


def key_of(packed: PackedData, split: Split, count: int, extractor: Extractor) -> Key:
    """Say what the features of the first `count` pictures of a split depend on."""
    code = hashlib.sha256(torch.__version__.encode())
    for name in _CODE:
        code.update(Path(__file__).with_name(name).read_bytes())
    return Key(
        data_digest=packed.card.digest,
        extractor_digest=extractor.digest,
        split=split,
        count=count,
        resize=extractor.resize,
        device=extractor.device.type,
        code=code.hexdigest(),
    )


def find(kept: Path, key: Key, extractor: Extractor) -> RealFeatures | None:
    """Find features below the folder `kept`; None where there are none, or damaged ones."""
    folder = kept / key.folder
    header = _header(key.count, extractor.dim)  # compared, not parsed: a damaged one can be anything
    try:
        with (folder / _FEATURES).open("rb") as file:
            whole = file.read(len(header)) == header
            whole &= file.seek(0, os.SEEK_END) == len(header) + key.count * extractor.dim * _ITEM
    except OSError:
        return None
    return RealFeatures(folder, key.count, extractor.dim, extractor.device) if whole else None


def compute(batches: Iterable[Tensor], key: Key, extractor: Extractor, kept: Path) -> RealFeatures:
    """Compute the features of pictures, batches of uint8 (n, c, h, w), into a folder below `kept`, whole or not at all.

    One batch is in memory at a time. Raises UserError where they cannot be written.
    """
    target = kept / key.folder
    try:
        kept.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept, prefix=".new-") as temporary:
            staging = Path(temporary) / "features"
            staging.mkdir()
            _write(batches, key, extractor, staging)
            try:
                staging.rename(target)
            except OSError:
                # Another process was as fast, and reads its own by now; or what lies there is damaged.
                if find(kept, key, extractor) is None:
                    shutil.rmtree(target, ignore_errors=True)
                    staging.rename(target)
    except OSError as error:
        raise UserError(
            f"{target}: the features of real pictures cannot be kept there ({error.strerror or error}); they take "
            f"{key.count * extractor.dim * _ITEM / 2**20:.0f} MiB"
        ) from None
    return RealFeatures(target, key.count, extractor.dim, extractor.device)


def _write(batches: Iterable[Tensor], key: Key, extractor: Extractor, folder: Path) -> None:
    with (folder / _FEATURES).open("wb") as file:
        file.write(_header(key.count, extractor.dim))
        for batch in batches:
            file.write(extractor.features(batch).float().cpu().numpy().astype("<f4").tobytes())
        file.flush()
        os.fsync(file.fileno())  # before the rename that makes it count
    (folder / _KEY).write_text(json.dumps(asdict(key), indent=2) + "\n", encoding="utf-8")


def _header(count: int, dim: int) -> bytes:
    """Begin an NPY file of float32 (count, dim)."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, dim)})
    return file.getvalue()
