"""Folders as people have them, written with Pillow: each is read to the byte, or refused with the file's name."""

import hashlib
import io
import json
import logging
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ganflow.data import decoding
from ganflow.errors import UserError
from ganflow.evaluation.folder import ENDINGS, FolderPictures

SIDE = 4
GRAY = np.arange(16, dtype=np.uint8).reshape(SIDE, SIDE) * 16
COLOURS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def save(pixels: NDArray[Any] | Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)


def shade(value: int, path: Path) -> None:
    save(np.full((SIDE, SIDE), value, np.uint8), path)


def shades(folder: Path) -> list[int]:
    """The values of pictures of one gray each, in the order in which they are read."""
    pictures = FolderPictures(folder, 1, SIDE)
    return [int(picture[0, 0, 0]) for batch in pictures.batches(len(pictures), 3) for picture in batch]


def read_one(
    folder: Path, pixels: NDArray[Any] | Image.Image, channels: int, name: str = "b.png", **options: Any
) -> Any:
    """Read a picture through a folder that holds it and another of the right kind."""
    save(GRAY if channels == 1 else COLOURS, folder / "a.png")
    save(pixels, folder / name, **options)
    pictures = FolderPictures(folder, channels, SIDE)
    (place,) = {0, 1} - {order(["a.png", name]).index("a.png")}
    return pictures.take([place])[0].numpy()


def order(names: list[str]) -> list[str]:
    names = sorted(names)
    return [names[index] for index in np.random.default_rng(0).permutation(len(names))]


# What is found, and in which order


def test_pictures_at_any_depth_in_a_random_order_that_never_changes(tmp_path: Path) -> None:
    for value in range(6):
        shade(value, tmp_path / ("x" * (value // 2)) / f"{value}.png")  # sorted by path: 0, 1, 2, 3, 4, 5

    assert shades(tmp_path) == [3, 2, 5, 4, 0, 1]  # numpy's permutation of six, seeded with 0


def test_the_order_is_that_of_the_paths_and_not_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n % 3}/{n}.png" for n in range(12)]
    for value, name in enumerate(names):
        shade(value, tmp_path / "first" / name)
    for value, name in reversed(list(enumerate(names))):
        shade(value, tmp_path / "second" / name)
    expected = [names.index(name) for name in order(names)]

    assert shades(tmp_path / "first") == shades(tmp_path / "second") == expected
    backwards = os.scandir

    class Reversed:
        def __init__(self, path: Path) -> None:
            self.entries = list(backwards(path))[::-1]

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert shades(tmp_path / "first") == expected


def test_the_endings_are_those_of_the_formats_that_are_read() -> None:
    registered = {ending for ending, name in Image.registered_extensions().items() if name in decoding.FORMATS}

    assert set(ENDINGS) >= registered


def test_other_endings_are_passed_over_but_not_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shade(1, tmp_path / "a.PNG")
    shade(2, tmp_path / "looks.like" / "b.png")
    for name in ("README", "notes.txt", "samples.npz", "sub/other.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not a picture")

    with caplog.at_level(logging.INFO, "ganflow"):
        assert sorted(shades(tmp_path)) == [1, 2]

    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().endswith("4 (.npz, .txt, README)")


def test_a_folder_of_pictures_alone_is_read_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shade(1, tmp_path / "a.png")
    shade(2, tmp_path / "b.bmp")

    with caplog.at_level(logging.INFO, "ganflow"):
        shades(tmp_path)

    assert not caplog.records


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    shade(1, tmp_path / "a.png")
    shade(2, tmp_path / "b.png")
    shade(3, tmp_path / ".c.png")
    shade(4, tmp_path / ".thumbnails" / "a.png")
    (tmp_path / ".broken.png").write_bytes(b"")

    assert sorted(shades(tmp_path)) == [1, 2]


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "root"
    shade(1, tmp_path / "elsewhere" / "a.png")
    shade(2, tmp_path / "single.png")
    shade(3, root / "own" / "deep" / "b.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "single.png").symlink_to(tmp_path / "single.png")
    (root / "own" / "deep" / "loop").symlink_to(root)
    (root / "own" / "loop").symlink_to(root / "own")
    (root / "notes").symlink_to(tmp_path / "gone")

    assert sorted(shades(root)) == [1, 2, 3]


@pytest.mark.parametrize("target", ["gone.png", "b.png"])  # to nothing, and to itself
def test_a_broken_link_with_a_picture_s_name_is_an_error(tmp_path: Path, target: str) -> None:
    shade(1, tmp_path / "a.png")
    shade(2, tmp_path / "c.png")
    (tmp_path / "b.png").symlink_to(tmp_path / target)

    with pytest.raises(UserError, match=r"b\.png: .*(a link to nothing|symbolic links).*replace"):
        FolderPictures(tmp_path, 1, SIDE)


def test_a_pipe_with_a_picture_s_name_is_an_error_and_is_not_waited_for(tmp_path: Path) -> None:
    shade(1, tmp_path / "a.png")
    shade(2, tmp_path / "c.png")
    os.mkfifo(tmp_path / "b.png")

    with pytest.raises(UserError, match=r"b\.png: is not a regular file"):
        FolderPictures(tmp_path, 1, SIDE)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures(tmp_path: Path, count: int) -> None:
    for n in range(count):
        shade(n, tmp_path / f"{n}.png")
    (tmp_path / "samples.npz").write_bytes(b"PK")

    with pytest.raises(UserError, match=rf"two pictures at least, but {count} found.* \.png .*\.webp"):
        FolderPictures(tmp_path, 1, SIDE)


def test_two_pictures_are_enough(tmp_path: Path) -> None:
    shade(0, tmp_path / "0.png")
    shade(1, tmp_path / "1.png")

    assert len(FolderPictures(tmp_path, 1, SIDE)) == 2


def test_no_folder_and_a_file_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: cannot be read: No such file or directory; give a folder"):
        FolderPictures(tmp_path / "gone", 1, SIDE)
    shade(1, tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: cannot be read: Not a directory; give a folder"):
        FolderPictures(tmp_path / "a.png", 1, SIDE)


def test_a_folder_inside_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        shade(n, tmp_path / f"{n}.png")
    shade(3, tmp_path / "locked" / "3.png")
    scandir = os.scandir

    def refuse(path: Path) -> Any:  # root may read everything: permissions alone would test nothing
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"locked: cannot be read: Permission denied"):
        FolderPictures(tmp_path, 1, SIDE)


# Broken files


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_only_claims_to_be_a_picture_is_found_at_once(tmp_path: Path, content: bytes) -> None:
    for n in range(3):
        shade(n, tmp_path / f"{n}.png")
    (tmp_path / "bad.jpg").write_bytes(content)

    with pytest.raises(UserError, match=r"bad\.jpg: .*replace the file or remove it"):
        FolderPictures(tmp_path, 1, SIDE)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_a_truncated_picture_is_an_error_when_its_pixels_are_read(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for n in range(2):
        save(noise, tmp_path / f"{n}.png")
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, kind)
    name = f"bad.{kind.lower()}"
    (tmp_path / name).write_bytes(whole.getvalue()[:-1000])

    with pytest.raises(UserError, match=rf"{name}: .*replace the file or remove it"):
        list(FolderPictures(tmp_path, 3, 64).batches(3, 1))


def test_a_decompression_bomb_is_refused_unread(tmp_path: Path) -> None:
    shade(1, tmp_path / "a.png")
    shade(2, tmp_path / "b.png")
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in parts)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))

    with pytest.raises(UserError, match=r"bomb\.png: claims more than \d+ pixels"):
        FolderPictures(tmp_path, 1, SIDE)


# Sizes and colours


@pytest.mark.parametrize(("width", "height"), [(5, 4), (4, 5), (8, 2), (8, 8)])
def test_another_size_is_refused_and_not_resized(tmp_path: Path, width: int, height: int) -> None:
    shade(1, tmp_path / "a.png")
    save(Image.new("L", (width, height)), tmp_path / "b.png")

    with pytest.raises(UserError, match=rf"b\.png: is {width}x{height} pixels, but the data set is 4x4; sample at"):
        FolderPictures(tmp_path, 1, SIDE)


@pytest.mark.parametrize("name", ["b.png", "b.bmp", "b.tif", "b.PNG"])
def test_gray_for_gray(tmp_path: Path, name: str) -> None:
    np.testing.assert_array_equal(read_one(tmp_path, GRAY.T, 1, name), GRAY.T[None])


@pytest.mark.parametrize("name", ["b.png", "b.bmp", "b.ppm", "b.tiff", "b.webp"])
def test_rgb_for_rgb(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name == "b.webp" else {}
    pixels = read_one(tmp_path, COLOURS[::-1], 3, name, **options)

    assert pixels.shape == (3, SIDE, SIDE)
    for channel in range(3):
        np.testing.assert_array_equal(pixels[channel], COLOURS[::-1, :, channel])


def test_black_and_white_for_gray(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_one(tmp_path, GRAY > 100, 1), np.where(GRAY > 100, 255, 0)[None])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_gray_saved_with_more_channels_for_gray(tmp_path: Path, mode: str) -> None:
    """As torchvision's save_image writes gray pictures: the three channels are equal."""
    np.testing.assert_array_equal(read_one(tmp_path, Image.fromarray(GRAY.T).convert(mode), 1), GRAY.T[None])


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_pixel_of_colour_is_refused_for_gray(tmp_path: Path, channel: int) -> None:
    pixels = np.stack([GRAY] * 3, -1)
    pixels[3, 2, channel] ^= 1

    with pytest.raises(UserError, match=r"b\.png: has colours, but the data set is gray"):
        read_one(tmp_path, pixels, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_gray_is_refused_for_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(GRAY.astype(np.uint16)) if mode == "I;16" else Image.fromarray(GRAY).convert(mode)

    with pytest.raises(UserError, match=r"b\.png: is gray, but the data set is RGB"):
        read_one(tmp_path, image, 3)


@pytest.mark.parametrize("name", ["b.png", "b.gif"])
def test_palettes_are_looked_up_for_rgb(tmp_path: Path, name: str) -> None:
    image = Image.new("P", (SIDE, SIDE))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)

    pixels = read_one(tmp_path, image, 3, name)

    assert pixels[:, 0, :2].T.tolist() == [[10, 20, 30], [200, 100, 50]]


def test_an_alpha_channel_that_hides_nothing_is_dropped(tmp_path: Path) -> None:
    pixels = read_one(tmp_path, Image.fromarray(COLOURS).convert("RGBA"), 3)

    np.testing.assert_array_equal(pixels, COLOURS.transpose(2, 0, 1))


@pytest.mark.parametrize(("mode", "colour", "channels"), [("RGBA", (9, 9, 9, 254), 3), ("LA", (9, 0), 1)])
def test_transparency_is_refused(tmp_path: Path, mode: str, colour: tuple[int, ...], channels: int) -> None:
    with pytest.raises(UserError, match=r"b\.png: has transparent pixels"):
        read_one(tmp_path, Image.new(mode, (SIDE, SIDE), colour), channels)


def test_16_bit_gray_is_scaled_as_the_data_set_is(tmp_path: Path) -> None:
    deep = GRAY.astype(np.uint16) * 257

    np.testing.assert_array_equal(read_one(tmp_path, deep, 1), GRAY[None])


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (Image.new("CMYK", (SIDE, SIDE)), "CMYK"),
        (Image.new("I", (SIDE, SIDE)), "I"),  # of any range: what is white in it cannot be known
        (Image.new("F", (SIDE, SIDE)), "F"),
    ],
)
def test_other_kinds_of_pixels_are_refused(tmp_path: Path, image: Image.Image, mode: str) -> None:
    with pytest.raises(UserError, match=rf"b\.tif: is of mode {mode}; save the samples as 8-bit"):
        read_one(tmp_path, image, 3, "b.tif")


def test_an_animation_is_not_a_sample(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "lime")]

    with pytest.raises(UserError, match=r"b\.gif: holds several frames"):
        read_one(tmp_path, frames[0], 3, "b.gif", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [(COLOURS[:, :, 0], "is gray"), (COLOURS[:2], "is 4x2 pixels"), (None, "a link to nothing")],
)
def test_a_file_that_changes_after_its_header_was_read_is_an_error(
    tmp_path: Path, pixels: NDArray[np.uint8] | None, message: str
) -> None:
    for name in ("a.png", "b.png"):
        save(COLOURS, tmp_path / name)
    pictures = FolderPictures(tmp_path, 3, SIDE)
    if pixels is None:
        (tmp_path / "b.png").unlink()
    else:
        save(pixels, tmp_path / "b.png")

    with pytest.raises(UserError, match=rf"b\.png: {message}"):
        list(pictures.batches(2, 2))


def test_one_warning_counts_the_pictures_of_lossy_formats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(3):
        shade(n, tmp_path / f"{n}.jpg")
    shade(3, tmp_path / "3.png")
    save(COLOURS, tmp_path / "4.webp")

    # An ending tells nothing: what is a PNG inside loses nothing.
    save(GRAY, tmp_path / "5.jpeg", format="PNG")
    pictures = FolderPictures(tmp_path, 1, SIDE)

    assert len(pictures) == 6
    (record,) = caplog.records
    assert record.name == "ganflow"
    assert record.levelno == logging.WARNING
    assert "4 of 6 pictures are in formats that lose detail, or may (JPEG: 3, WEBP: 1)" in record.getMessage()


# Reading


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    """A folder of seven pictures of noise."""
    for n in range(7):
        save(np.random.default_rng(n).integers(0, 256, (SIDE, SIDE, 3), np.uint8), tmp_path / "seven" / f"{n}.png")
    return tmp_path / "seven"


def test_batches_are_bytes_in_the_order_and_of_no_more_than_n(seven: Path) -> None:
    expected = [np.asarray(Image.open(seven / name)) for name in order([f"{n}.png" for n in range(7)])]
    pictures = FolderPictures(seven, 3, SIDE)

    for n, sizes in ((7, [3, 3, 1]), (6, [3, 3]), (2, [2]), (1, [1])):
        batches = list(pictures.batches(n, 3))
        assert [tuple(batch.shape) for batch in batches] == [(size, 3, SIDE, SIDE) for size in sizes]
        assert all(batch.dtype == torch.uint8 and batch.is_contiguous() for batch in batches)
        np.testing.assert_array_equal(torch.cat(batches).permute(0, 2, 3, 1).numpy(), expected[:n])


def test_no_more_than_one_batch_is_read_ahead(seven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def decode(path: Path) -> decoding.Decoded:
        read.append(path)
        return decoding.decode(path)

    monkeypatch.setattr("ganflow.evaluation.folder.decode", decode)
    pictures = FolderPictures(seven, 3, SIDE)
    assert not read

    batches = pictures.batches(7, 2)
    for count in (2, 4, 6, 7):
        next(batches)
        assert len(read) == count


def test_take_gives_pictures_by_their_places(seven: Path) -> None:
    pictures = FolderPictures(seven, 3, SIDE)
    everything = torch.cat(list(pictures.batches(7, 7)))

    taken = pictures.take([5, 0, 5])

    assert torch.equal(taken, everything[[5, 0, 5]])
    assert pictures.take([]).shape == (0, 3, SIDE, SIDE)
    for place in (-1, 7):
        with pytest.raises(ValueError, match=f"no picture {place} among 7"):
            pictures.take([0, place])


@pytest.mark.parametrize(("n", "batch_size"), [(0, 1), (-1, 1), (8, 1), (7, 0)])
def test_counts_that_make_no_sense_are_refused_before_anything_is_read(seven: Path, n: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"cannot read {n} of 7 pictures in batches of {batch_size}"):
        FolderPictures(seven, 3, SIDE).batches(n, batch_size)


# The digest


def measured(folder: Path, n: int = 7, batch_size: int = 3, channels: int = 3) -> str:
    pictures = FolderPictures(folder, channels, SIDE)
    for _ in pictures.batches(n, batch_size):
        pass
    return pictures.digest


def test_the_digest_is_that_of_n_the_shape_and_the_pixels_in_order(seven: Path) -> None:
    pixels = [np.asarray(Image.open(seven / name)) for name in order([f"{n}.png" for n in range(7)])][:5]
    content = json.dumps([5, 3, SIDE, SIDE]).encode() + b"".join(p.transpose(2, 0, 1).tobytes() for p in pixels)

    assert measured(seven, 5) == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", measured(seven))


def test_the_digest_depends_neither_on_the_batch_size_nor_on_the_place_nor_on_the_format(seven: Path) -> None:
    before = measured(seven)
    assert {measured(seven, batch_size=size) for size in (1, 2, 7, 100)} == {before}

    moved = seven.parent / "moved" / "far"
    shutil.copytree(seven, moved)
    assert measured(moved) == before
    for path in list(moved.iterdir()):
        save(Image.open(path), path.with_suffix(".bmp"))
        path.unlink()
    assert measured(moved) == before


def change_one_pixel(folder: Path) -> None:
    pixels = np.array(Image.open(folder / "3.png"))
    pixels[1, 2, 0] ^= 1
    save(pixels, folder / "3.png")


def exchange_two(folder: Path) -> None:
    (folder / "3.png").rename(folder / "x")
    (folder / "4.png").rename(folder / "3.png")
    (folder / "x").rename(folder / "4.png")


@pytest.mark.parametrize("change", [change_one_pixel, exchange_two])
def test_the_digest_tells_other_pictures(seven: Path, change: Callable[[Path], None]) -> None:
    before = measured(seven)
    change(seven)

    assert measured(seven) != before


def test_the_digest_says_how_many_were_measured(seven: Path) -> None:
    assert len({measured(seven, n) for n in range(1, 8)}) == 7


def test_there_is_no_digest_before_all_is_read_and_it_is_there_with_the_last_batch(seven: Path) -> None:
    pictures = FolderPictures(seven, 3, SIDE)
    batches = pictures.batches(7, 4)
    next(batches)
    with pytest.raises(ValueError, match="read all batches first"):
        _ = pictures.digest

    next(batches)

    assert pictures.digest == measured(seven)


def test_the_digest_is_that_of_the_last_reading_that_came_to_its_end(seven: Path) -> None:
    pictures = FolderPictures(seven, 3, SIDE)
    for n in (7, 4):
        list(pictures.batches(n, 2))
        assert pictures.digest == measured(seven, n)

    next(pictures.batches(7, 2))
    pictures.take([6])

    assert pictures.digest == measured(seven, 4)
