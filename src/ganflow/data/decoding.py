"""From a file of any kind to 8-bit pixels, or a reason why not: nothing that lies in a folder may stop a run."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# Raster formats whose decoders are part of Pillow: others start programs (EPS), or take almost any bytes (TGA, PCX).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_KINDS = {"1": "bilevel", "P": "palette", "PA": "palette", "CMYK": "cmyk", "YCbCr": "ycbcr", "HSV": "hsv"}


class UndecodableError(Exception):
    """A file that holds no usable picture; the message is the reason, and names no path."""


class Decoded(NamedTuple):
    """Pixels, uint8 (h, w) gray or (h, w, 3) RGB, and the kinds of conversion that they took."""

    pixels: NDArray[np.uint8]
    conversions: tuple[str, ...]


class Header(NamedTuple):
    """What a file says of its picture before any pixel is read, in Pillow's names of formats and modes."""

    format: str
    mode: str
    size: tuple[int, int]  # width, height, as stored


def decode(path: Path) -> Decoded:
    """Read the first frame of a picture, upright as its EXIF says, as 8-bit gray or RGB.

    Transparent pixels are laid over white, and 16-bit gray is scaled to 8 bits. 32-bit integers are taken as 0..255 or
    0..65535 and floats as 0..1, 0..255 or 0..65535, whichever first holds them all; else they are stretched from their
    least to their greatest value. Raises UndecodableError with the reason.
    """
    with _opened(path) as image:
        return _decode(image)


def read_header(path: Path) -> Header:
    """Read the header of a picture alone. Raises UndecodableError with the reason."""
    with _opened(path) as image:
        return Header(str(image.format), image.mode, image.size)


def is_picture(path: Path) -> bool:
    """Say from its header whether a file is a picture in one of the formats read."""
    try:
        read_header(path)
    except UndecodableError:
        return False
    return True


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; every complaint of the decoders, also while it is used, becomes a reason."""
    Image.init()
    try:
        if path.stat().st_size == 0:
            raise UndecodableError("empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                yield image
    except UndecodableError:
        raise
    except UnidentifiedImageError:
        raise UndecodableError(f"not a picture in a format that is read ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UndecodableError(f"claims more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except FileNotFoundError:
        raise UndecodableError("a link to nothing") from None
    except PermissionError:
        raise UndecodableError("may not be read (permission denied)") from None
    # The decoders raise almost anything on broken bytes: SyntaxError, struct.error, IndexError, zlib.error, ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UndecodableError(f"corrupt or truncated: {' '.join(reason.split())}") from None


def _decode(image: Image.Image) -> Decoded:
    conversions = []
    if getattr(image, "is_animated", False):
        conversions.append("first_frame")
    image.load()
    orientation = _orientation(image)
    pixels, kind = _to_8_bits(image)
    if kind is not None:
        conversions.append(kind)
    if orientation in _UPRIGHT:
        pixels = np.asarray(Image.fromarray(pixels).transpose(_UPRIGHT[orientation]))
        conversions.append("exif_orientation")
    return Decoded(pixels, tuple(conversions))


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # broken EXIF data beside good pixels
        return None


def _to_8_bits(image: Image.Image) -> tuple[NDArray[np.uint8], str | None]:
    """Pixels in 8 bits, gray or RGB, and the kind of conversion, if any."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _scaled(np.asarray(image), 65535), "gray16"
    if mode in {"I", "F"}:
        return _stretched(np.asarray(image)), "gray32" if mode == "I" else "float"
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", rgba.size, "white")
            return np.asarray(Image.alpha_composite(white, rgba).convert("RGB")), "transparency"
        return np.asarray(rgba.convert("RGB")), _KINDS.get(mode)
    if mode in {"L", "RGB"}:
        return np.asarray(image), None
    return np.asarray(image.convert("L" if mode == "1" else "RGB")), _KINDS.get(mode, mode.lower())


def _scaled(values: NDArray[Any], top: float, bottom: float = 0.0) -> NDArray[np.uint8]:
    """Map bottom..top to 0..255, rounded."""
    return np.rint((values.astype(np.float64) - bottom) * 255.0 / (top - bottom)).astype(np.uint8)


def _stretched(values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise UndecodableError("has pixels that are not finite")
    for top in (255.0, 65535.0) if values.dtype.kind == "i" else (1.0, 255.0, 65535.0):
        if low >= 0 and high <= top:
            return _scaled(values, top)
    return _scaled(values, high, low) if high > low else np.zeros(values.shape, np.uint8)
