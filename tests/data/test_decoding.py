"""Every odd kind of file is converted to known pixels, or refused with a reason; nothing else ever comes out."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ganflow.data.decoding import Header, UndecodableError, decode, is_picture, read_header

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(image: Image.Image, name: str = "a.png", **options: Any) -> Path:
        path = tmp_path / name
        image.save(path, **options)
        return path

    return save


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG from (type, content) chunks, for headers that no writer would write."""
    parts = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.tiff", "a.ppm", "wrong-suffix.jpg", "no_suffix"])
def test_lossless_rgb_comes_out_as_it_is(save: Save, name: str) -> None:
    kind = {"wrong-suffix.jpg": "PNG", "no_suffix": "PNG", "a.webp": "WEBP"}.get(name)
    path = save(Image.fromarray(COLOURS), name, format=kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels, conversions = decode(path)
    np.testing.assert_array_equal(pixels, COLOURS)
    assert conversions == ()


def test_gray_stays_gray(save: Save) -> None:
    pixels, conversions = decode(save(Image.fromarray(RAMP)))
    np.testing.assert_array_equal(pixels, RAMP)
    assert conversions == ()


def test_jpeg_is_close(save: Save) -> None:
    smooth = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)
    pixels, _ = decode(save(Image.fromarray(smooth), "a.jpg", quality=100, subsampling=0))
    assert np.abs(pixels.astype(int) - smooth).max() <= 6


def test_cmyk_becomes_rgb(save: Save) -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow ink: red
    pixels, conversions = decode(save(cmyk, "a.tiff"))
    assert pixels.shape == (8, 8, 3)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert conversions == ("cmyk",)


def test_bilevel_becomes_black_and_white(save: Save) -> None:
    pixels, conversions = decode(save(Image.fromarray(RAMP > 100)))
    np.testing.assert_array_equal(pixels, np.where(RAMP > 100, 255, 0))
    assert conversions == ("bilevel",)


def test_palette_is_looked_up(save: Save) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    pixels, conversions = decode(save(image))
    assert pixels.tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert conversions == ("palette",)


def test_transparent_palette_is_laid_over_white(save: Save) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    pixels, conversions = decode(save(image, transparency=1))
    assert pixels.tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert conversions == ("transparency",)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (0, 100, 200, 0), [255, 255, 255]),
        ("RGBA", (0, 100, 200, 51), [204, 224, 244]),  # 0.2 of the colour, 0.8 of white
        ("LA", (100, 51), [224, 224, 224]),
    ],
)
def test_transparent_pixels_are_laid_over_white(
    save: Save, mode: str, colour: tuple[int, ...], expected: list[int]
) -> None:
    pixels, conversions = decode(save(Image.new(mode, (3, 3), colour)))
    assert pixels[1, 1].tolist() == expected
    assert conversions == ("transparency",)


def test_opaque_alpha_is_no_conversion(save: Save) -> None:
    pixels, conversions = decode(save(Image.new("RGBA", (3, 3), (1, 2, 3, 255))))
    assert pixels[0, 0].tolist() == [1, 2, 3]
    assert conversions == ()


def test_colour_key_of_an_rgb_png(save: Save) -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    pixels, conversions = decode(save(image, transparency=(1, 2, 3)))
    assert pixels.tolist() == [[[255, 255, 255], [4, 5, 6]]]
    assert conversions == ("transparency",)


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_gray_is_scaled_not_clipped(save: Save, name: str) -> None:
    deep = np.array([[0, 128, 129, 257], [32768, 40000, 65406, 65535]], np.uint16)
    pixels, conversions = decode(save(Image.fromarray(deep), name))
    assert pixels.tolist() == [[0, 0, 1, 1], [128, 156, 254, 255]]  # rounded n / 257
    assert conversions == ("gray16",)


def test_16_bit_pgm_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + struct.pack(">2H", 257, 65535))
    assert decode(path).pixels.tolist() == [[1, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 7, 255], [0, 7, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([-100, 0, 100], [0, 128, 255]),
        ([-5, -5, -5], [0] * 3),
    ],
)
def test_32_bit_integers(save: Save, values: list[float], expected: list[int]) -> None:
    pixels, conversions = decode(save(Image.fromarray(np.array([values], np.int32)), "a.tiff"))
    assert pixels.tolist() == [expected]
    assert conversions == ("gray32",)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0.2, 1], [0, 51, 255]), ([0, 2, 255], [0, 2, 255]), ([-1, 0, 1], [0, 128, 255])],
)
def test_floats(save: Save, values: list[float], expected: list[int]) -> None:
    pixels, conversions = decode(save(Image.fromarray(np.array([values], np.float32)), "a.tiff"))
    assert pixels.tolist() == [expected]
    assert conversions == ("float",)


def test_floats_that_are_not_finite_are_refused(save: Save) -> None:
    with pytest.raises(UndecodableError, match="not finite"):
        decode(save(Image.fromarray(np.array([[0, np.nan]], np.float32)), "a.tiff"))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_applied(save: Save, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, conversions = decode(save(Image.fromarray(COLOURS[:4]), exif=exif))
    stored = COLOURS[:4]
    upright = {
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }
    np.testing.assert_array_equal(pixels, upright[orientation])
    assert conversions == ("exif_orientation",)


def test_broken_exif_is_ignored_without_a_warning(save: Save, recwarn: pytest.WarningsRecorder) -> None:
    entries_that_do_not_follow = b"Exif\0\0II*\0\x08\0\0\0\x05\0"
    path = save(Image.new("RGB", (4, 4), "red"), "a.jpg", exif=entries_that_do_not_follow)
    assert decode(path).pixels.shape == (4, 4, 3)
    assert not recwarn.list


def test_first_frame_of_an_animation(save: Save) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    path = save(frames[0], "a.gif", save_all=True, append_images=frames[1:])
    pixels, conversions = decode(path)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert "first_frame" in conversions


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"name,label\na,b\n", "not a picture in a format that is read"),
        (b"\x89PNG\r\n\x1a\n", "not a picture|corrupt or truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),  # its decoder would start a program
        (bytes(1000), "not a picture"),
    ],
)
def test_what_is_not_a_picture_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UndecodableError, match=reason) as caught:
        decode(path)
    assert str(tmp_path) not in str(caught.value)
    assert not is_picture(path) or "corrupt" in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, kind)
    path = tmp_path / "a"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(UndecodableError):
        decode(path)


def test_flipped_bits_are_refused(save: Save) -> None:
    path = save(Image.fromarray(COLOURS))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UndecodableError, match="corrupt or truncated"):
        decode(path)


@pytest.mark.parametrize("side", [10_000, 100_000])  # Pillow warns of the first, and raises for the second
def test_decompression_bombs_are_refused_unread(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(png((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")))
    with pytest.raises(UndecodableError, match=r"claims more than \d+ pixels"):
        decode(path)


def test_headers_are_read_without_the_pixels(save: Save) -> None:
    path = save(Image.fromarray(COLOURS[:4]), "wrong-suffix.jpg", format="PNG")
    path.write_bytes(path.read_bytes()[:-30])
    assert read_header(path) == Header("PNG", "RGB", (8, 4))
    with pytest.raises(UndecodableError):
        decode(path)
    path.write_bytes(b"junk")
    with pytest.raises(UndecodableError, match="not a picture"):
        read_header(path)


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UndecodableError, match="a link to nothing"):
        decode(tmp_path / "nowhere")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]), data=st.data())
def test_broken_bytes_give_pixels_or_a_reason_and_no_warning(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    whole = io.BytesIO()
    Image.fromarray(COLOURS).save(whole, kind)
    content = bytearray(whole.getvalue())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "a"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            pixels = decode(path).pixels
        except UndecodableError:
            return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2 or pixels.shape[2:] == (3,)
