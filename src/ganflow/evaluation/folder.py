"""Pictures made elsewhere, read from any folder exactly as they are: nothing is resized, recoloured or left out."""

import hashlib
import json
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganflow.data.decoding import UndecodableError, decode, read_header
from ganflow.errors import UserError

_log = logging.getLogger("ganflow")

# The endings of the formats that `ganflow.data.decoding` reads, whatever this build of Pillow has decoders for: a
# picture that cannot be read here is an error, not a file to pass over.
ENDINGS = (
    *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf"),
    *(".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)

_LOSSY = ("AVIF", "JPEG", "JPEG2000", "WEBP")
_GRAY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA")
_CHANGED = {
    "first_frame": "holds several frames; save each sample as a picture of its own",
    "transparency": "has transparent pixels; save the samples without an alpha channel",
}
_SHOWN_ENDINGS = 5


class FolderPictures:
    """The pictures at any depth below a folder, as uint8, in an order that depends on their relative paths alone.

    The order is random, and the same every time: folders are often sorted by class or by time, and the first N
    pictures shall be a fair sample of them. What counts is the ending of a file's name (`ENDINGS`). Hidden files and
    folders are ignored; links are followed, except into a folder around them.
    """

    def __init__(self, folder: Path, channels: int, resolution: int) -> None:
        """Find the pictures and check their headers; pixels are checked when they are read.

        Args:
            folder: Where they lie.
            channels: 1 for gray, 3 for RGB.
            resolution: Width and height in pixels that each must have.

        Raises:
            UserError: if a folder or a header cannot be read, for another size, for colours that are not the data
                set's, and for fewer than two pictures.
        """
        self._folder = folder
        self._channels = channels
        self._resolution = resolution
        self._digest: str | None = None
        names = sorted(self._find())
        if len(names) < 2:
            raise UserError(
                f"{folder}: a score needs two pictures at least, but {len(names)} found; these endings count: "
                f"{' '.join(ENDINGS)}"
            )
        self._check_headers(names)
        self._names = [names[index] for index in np.random.default_rng(0).permutation(len(names))]

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self._names)

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels that `batches` read when it last came to its end: of what was measured.

        It depends on n, the shape and the pixels in their order, not on the batch size or on where the folder lies.
        Raises ValueError as long as `batches` has not come to its end.
        """
        if self._digest is None:
            raise ValueError("the digest is that of the pictures measured: read all batches first")
        return self._digest

    def batches(self, n: int, batch_size: int) -> Iterator[Tensor]:
        """Read the first `n` pictures in batches of uint8 (at most batch_size, c, h, w), on the CPU.

        No more than one batch is held. Raises ValueError unless n is 1 to all; while reading, UserError for a picture
        that is broken, or has colour or transparency that it may not have.
        """
        if not 1 <= n <= len(self) or batch_size < 1:
            raise ValueError(f"cannot read {n} of {len(self)} pictures in batches of {batch_size}")
        return self._read_batches(n, batch_size)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Read pictures by their places in the order: uint8 (len(indices), c, h, w), on the CPU.

        Raises ValueError for a place that there is not, and UserError as `batches` does.
        """
        pixels = np.empty((len(indices), self._channels, self._resolution, self._resolution), np.uint8)
        for picture, index in zip(pixels, indices, strict=True):
            if not 0 <= index < len(self):
                raise ValueError(f"there is no picture {index} among {len(self)}")
            picture[:] = self._read(self._folder / self._names[index])
        return torch.from_numpy(pixels)

    def _read_batches(self, n: int, batch_size: int) -> Iterator[Tensor]:
        shape = (n, self._channels, self._resolution, self._resolution)
        sha256 = hashlib.sha256(json.dumps(shape).encode())
        for start in range(0, n, batch_size):
            stop = min(start + batch_size, n)
            batch = self.take(range(start, stop))
            sha256.update(batch.numpy().tobytes())
            if stop == n:  # before the last batch goes out: who counts batches never comes back for more
                self._digest = f"sha256:{sha256.hexdigest()}"
            yield batch

    def _find(self) -> Iterator[str]:
        """Yield the relative paths of all picture files, in the order of the file system."""
        others: Counter[str] = Counter()
        folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]  # each with those around it
        while folders:
            prefix, around = folders.pop()
            try:
                with os.scandir(self._folder / prefix) as scanned:
                    entries = list(scanned)
                    status = (self._folder / prefix).stat()
            except OSError as error:
                raise UserError(
                    f"{self._folder / prefix}: cannot be read: {error.strerror}; give a folder of pictures"
                ) from None
            if (identity := (status.st_dev, status.st_ino)) in around:
                continue  # a link to a folder that holds it: its pictures are found without it
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name, ending = prefix + entry.name, PurePath(entry.name).suffix
                kind = _kind(entry)
                if kind == stat.S_IFDIR:
                    folders.append((f"{name}/", (*around, identity)))
                elif ending.lower() not in ENDINGS:
                    others[ending or entry.name] += 1
                elif kind in {stat.S_IFREG, None}:
                    yield name
                else:
                    raise UserError(f"{self._folder / name}: is not a regular file; replace it or remove it")
        if others:
            shown = ", ".join(sorted(others)[:_SHOWN_ENDINGS]) + (", ..." if len(others) > _SHOWN_ENDINGS else "")
            _log.info(
                "%s: files passed over, for their endings are not those of pictures: %d (%s)",
                self._folder,
                others.total(),
                shown,
            )

    def _check_headers(self, names: Sequence[str]) -> None:
        lossy: Counter[str] = Counter()
        for name in names:
            path = self._folder / name
            try:
                header = read_header(path)
            except UndecodableError as error:
                raise _unreadable(path, error) from None
            self._check_size(path, *header.size)
            if header.mode not in (*_GRAY_MODES, *_COLOUR_MODES):
                raise UserError(f"{path}: is of mode {header.mode}; save the samples as 8-bit gray or RGB")
            if self._channels == 3 and header.mode in _GRAY_MODES:
                raise _gray(path)
            if header.format in _LOSSY:
                lossy[header.format] += 1
        if lossy:
            _log.warning(
                "%s: %d of %d pictures are in formats that lose detail, or may (%s), which alone changes a FID; "
                "save samples as PNG",
                self._folder,
                lossy.total(),
                len(names),
                ", ".join(f"{name}: {count}" for name, count in sorted(lossy.items())),
            )

    def _read(self, path: Path) -> NDArray[np.uint8]:
        """Read a picture as (c, h, w)."""
        try:
            pixels, conversions = decode(path)
        except UndecodableError as error:
            raise _unreadable(path, error) from None
        self._check_size(path, pixels.shape[1], pixels.shape[0])
        for conversion in conversions:
            if conversion in _CHANGED:
                raise UserError(f"{path}: {_CHANGED[conversion]}")
        if pixels.ndim == 2:
            if self._channels == 3:  # the file is not the one whose header was read
                raise _gray(path)
            return pixels[None]
        if self._channels == 3:
            return pixels.transpose(2, 0, 1)
        if (pixels != pixels[:, :, :1]).any():
            raise UserError(
                f"{path}: has colours, but the data set is gray; give gray samples, or compare with a data set "
                "prepared with data.channels: 3"
            )
        return pixels[None, :, :, 0]

    def _check_size(self, path: Path, width: int, height: int) -> None:
        side = self._resolution
        if (width, height) != (side, side):
            raise UserError(
                f"{path}: is {width}x{height} pixels, but the data set is {side}x{side}; sample at that size, or "
                "prepare the data set at the pictures' size: resized pictures give scores that cannot be compared"
            )


def _kind(entry: os.DirEntry[str]) -> int | None:
    """Tell what lies behind a name or a link: one of stat's S_IF..., or None for a link to nothing."""
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{entry.path}: cannot be read: {error.strerror}; replace it or remove it") from None


def _gray(path: Path) -> UserError:
    return UserError(
        f"{path}: is gray, but the data set is RGB; give RGB samples, or compare with a data set prepared with "
        "data.channels: 1"
    )


def _unreadable(path: Path, error: UndecodableError) -> UserError:
    return UserError(f"{path}: {error}; no picture is left out of a score: replace the file or remove it")
