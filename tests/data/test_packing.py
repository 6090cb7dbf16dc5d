import hashlib
import json
import os
import shutil
import signal
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ganflow.data import image_folder, packing
from ganflow.data.card import SPLITS, DataCard, Skipped, Split
from ganflow.data.digest import digest_of
from ganflow.data.format import Format, pack_picture
from ganflow.data.image_folder import ImageFolder
from ganflow.data.packed import PackedData
from ganflow.data.packing import pack
from ganflow.data.sources import ArraySource, Picture, Source
from ganflow.errors import UserError


def noise(n: int, shape: tuple[int, ...] = (8, 8), seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def labelled(n: int, classes: int = 3, seed: int = 0) -> ArraySource:
    return ArraySource({"train": (noise(n, seed=seed), np.arange(n) % classes)}, [f"class {c}" for c in range(classes)])


GRAY = Format(1, 8)


def run(
    source: Source,
    out: Path,
    packed_format: Format = GRAY,
    *,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    workers: int | None = None,
) -> PackedData:
    out.mkdir(parents=True, exist_ok=True)
    pack(
        source,
        out,
        name="mine",
        source_name="digits",
        packed_format=packed_format,
        validation_fraction=validation,
        test_fraction=test,
        seed=seed,
        workers=workers,
    )
    return PackedData(out)


def rows(data: PackedData, split: Split) -> list[tuple[bytes, int | None]]:
    """The pictures of a split as bytes, each with its label."""
    images, labels = data.images(split), data.labels(split)
    return [(image.tobytes(), None if labels is None else int(labels[n])) for n, image in enumerate(images)]


class TestPicture:
    def test_the_central_square_is_taken(self) -> None:
        wide = np.arange(8 * 13, dtype=np.uint8).reshape(8, 13)
        np.testing.assert_array_equal(pack_picture(wide, Format(1, 8))[0], wide[:, 2:10])
        np.testing.assert_array_equal(pack_picture(wide.T, Format(1, 8))[0], wide.T[2:10])

    def test_gray_is_the_luma_of_itu_r_601(self) -> None:
        colours = noise(1, (8, 8, 3))[0]
        luma = colours.astype(float) @ [0.299, 0.587, 0.114]
        got = pack_picture(colours, Format(1, 8))
        assert got.shape == (1, 8, 8)
        assert np.abs(got[0] - luma).max() <= 0.51

    def test_gray_becomes_three_equal_channels(self) -> None:
        gray = noise(1)[0]
        np.testing.assert_array_equal(pack_picture(gray, Format(3, 8)), np.stack([gray] * 3))

    def test_colours_go_first(self) -> None:
        colours = noise(1, (8, 8, 3))[0]
        np.testing.assert_array_equal(pack_picture(colours, Format(3, 8)), np.moveaxis(colours, -1, 0))

    @pytest.mark.parametrize("side", [1, 5, 8, 9, 50])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("shape", [(), (3,)])
    def test_flat_colour_stays_flat_at_any_size(self, side: int, channels: int, shape: tuple[int, ...]) -> None:
        flat = np.full((side, side + 3, *shape), 77, np.uint8)
        got = pack_picture(flat, Format(channels, 8))
        assert got.shape == (channels, 8, 8)
        assert got.dtype == np.uint8
        assert (got == 77).all()

    def test_shrinking_is_antialiased(self) -> None:
        stripes = np.zeros((64, 64), np.uint8)
        stripes[:, ::2] = 255
        inner = pack_picture(stripes, Format(1, 8))[0, :, 1:-1]
        assert np.abs(inner.astype(int) - 128).max() <= 4  # picking pixels would give 0 or 255

    def test_growing_is_smooth(self) -> None:
        edge = np.zeros((8, 8), np.uint8)
        edge[:, 4:] = 255
        row = pack_picture(edge, Format(1, 16))[0, 5].astype(int)
        assert all(left <= right for left, right in pairwise(row))
        assert 0 < row[7] < row[8] < 255


class TestSplits:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_splits_are_disjoint_exhaustive_and_of_the_sizes_asked(self, tmp_path: Path, channels: int) -> None:
        data = run(labelled(100), tmp_path, Format(channels, 8), validation=0.25, test=0.2)
        # of classes of 34, 33 and 33: 7, 7 and 7 for the test, then 7, 6 and 6 for validation
        assert [data.card.splits[split].count for split in SPLITS] == [60, 19, 21]
        everything = [row for split in SPLITS for row in rows(data, split)]
        assert len(set(everything)) == 100
        expected = {(np.stack([image] * channels).tobytes(), int(n % 3)) for n, image in enumerate(noise(100))}
        assert set(everything) == expected

    def test_a_split_of_the_source_is_kept(self, tmp_path: Path) -> None:
        images = noise(30)
        source = ArraySource({"train": (images[:20], np.arange(20) % 2), "test": (images[20:], np.ones(10, int))}, "ab")
        data = run(source, tmp_path, validation=0.3, test=0.5)
        assert [data.card.splits[split].count for split in SPLITS] == [14, 6, 10]
        assert sorted(rows(data, "test")) == sorted((image.tobytes(), 1) for image in images[20:])

    def test_all_three_of_a_folder_are_kept(self, tmp_path: Path) -> None:
        for n, (split, name) in enumerate([("train", "a"), ("train", "b"), ("val", "a"), ("test", "b")]):
            (tmp_path / "raw" / split / name).mkdir(parents=True)
            Image.fromarray(noise(1, seed=n)[0]).save(tmp_path / "raw" / split / name / "x.png")
        data = run(ImageFolder(tmp_path / "raw"), tmp_path / "out")
        assert set(rows(data, "train")) == {(noise(1, seed=0).tobytes(), 0), (noise(1, seed=1).tobytes(), 1)}
        assert rows(data, "validation") == [(noise(1, seed=2).tobytes(), 0)]
        assert rows(data, "test") == [(noise(1, seed=3).tobytes(), 1)]

    def test_any_first_part_of_a_split_is_a_fair_sample(self, tmp_path: Path) -> None:
        data = run(labelled(3000, classes=2), tmp_path)
        first = data.labels("train")[:400]
        assert 150 < first.sum() < 250  # sorted by class, it would be 0 or 400

    def test_the_same_picture_twice_is_never_on_two_sides(self, tmp_path: Path) -> None:
        source = ArraySource({"train": (np.repeat(noise(20), 4, axis=0), np.zeros(80, int))}, ["a"])
        data = run(source, tmp_path)
        sides = [{image for image, _ in rows(data, split)} for split in SPLITS]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 20

    @pytest.mark.parametrize("n", [1, 2])
    def test_too_few_pictures_say_how_many_are_needed(self, tmp_path: Path, n: int) -> None:
        with pytest.raises(UserError, match="at least 3 are needed"):
            run(labelled(n), tmp_path)

    def test_a_source_with_a_test_split_needs_two(self, tmp_path: Path) -> None:
        test = noise(9), np.zeros(9, int)
        with pytest.raises(UserError, match=r"1 different usable pictures .* at least 2 are needed"):
            run(ArraySource({"train": (np.repeat(noise(1), 5, axis=0), np.zeros(5, int)), "test": test}, "a"), tmp_path)

    def test_three_pictures_are_enough(self, tmp_path: Path) -> None:
        data = run(labelled(3, classes=1), tmp_path, validation=0.5, test=0.5)
        assert [data.card.splits[split].count for split in SPLITS] == [1, 1, 1]


class TestDeterminism:
    def test_the_same_again(self, tmp_path: Path) -> None:
        first, second = run(labelled(50), tmp_path / "a"), run(labelled(50), tmp_path / "b")
        names = sorted(path.name for path in first.folder.iterdir())
        assert names == [
            "card.json",
            *sorted(f"{split}_{what}.npy" for split in SPLITS for what in ("images-00000", "labels")),
        ]
        for name in names:
            assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()

    def test_another_seed_splits_otherwise(self, tmp_path: Path) -> None:
        first, second = run(labelled(50), tmp_path / "a"), run(labelled(50), tmp_path / "b", seed=1)
        assert set(rows(first, "test")) != set(rows(second, "test"))
        assert first.card.digest != second.card.digest

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for n, image in enumerate(noise(12)):
            (tmp_path / "raw" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "raw" / "ab"[n % 2] / f"{n}.png")
        return tmp_path / "raw"

    def test_the_digest_knows_the_content_and_not_the_place(self, folder: Path, tmp_path: Path) -> None:
        before = run(ImageFolder(folder), tmp_path / "out").card
        shutil.copytree(folder, tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "a" / "0.png").rename(tmp_path / "elsewhere" / "a" / "renamed.png")
        assert run(ImageFolder(tmp_path / "elsewhere"), tmp_path / "out2").card == before

        Image.fromarray(noise(1, seed=9)[0]).save(folder / "a" / "more.png")
        after = run(ImageFolder(folder), tmp_path / "out3").card
        assert after.digest != before.digest
        assert sum(split.count for split in after.splits.values()) == 13

    @pytest.mark.parametrize("change", ["pixel", "label", "class name", "format"])
    def test_the_digest_sees_every_change(self, tmp_path: Path, change: str) -> None:
        before = run(labelled(30), tmp_path / "a").card.digest
        images, labels, names = noise(30), np.arange(30) % 3, [f"class {c}" for c in range(3)]
        if change == "pixel":
            images[7, 3, 3] ^= 1
        if change == "label":
            labels[7] = 0
        if change == "class name":
            names[1] = "other"
        source = ArraySource({"train": (images, labels)}, names)
        after = run(source, tmp_path / "b", Format(3 if change == "format" else 1, 8)).card.digest
        assert after != before

    def test_the_digest_can_be_recomputed_from_the_files(self, tmp_path: Path) -> None:
        data = run(labelled(30), tmp_path)
        expected = hashlib.sha256(json.dumps(data.card.classes).encode())
        for split in SPLITS:
            images = data.images(split)
            expected.update(
                json.dumps([split, images.shape]).encode() + images[:].tobytes() + data.labels(split).tobytes()
            )
        assert data.card.digest == f"sha256:{expected.hexdigest()}"


class TestShards:
    def test_a_split_is_cut_into_files_that_numpy_reads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = run(labelled(100), tmp_path / "whole")
        monkeypatch.setattr(packing, "_SHARD_BYTES", 30 * 64 + 63)
        data = run(labelled(100), tmp_path / "cut")
        assert [data.card.shards(split) for split in SPLITS] == [[30, 30, 10], [9], [21]]
        parts = [np.load(data.folder / f"train_images-{number:05}.npy") for number in range(3)]
        assert [part.shape for part in parts] == [(30, 1, 8, 8), (30, 1, 8, 8), (10, 1, 8, 8)]
        np.testing.assert_array_equal(np.concatenate(parts), np.load(whole.folder / "train_images-00000.npy"))
        for split in SPLITS:
            assert rows(data, split) == rows(whole, split)
        assert data.card.digest == whole.card.digest == digest_of(data) == digest_of(whole)
        assert len(list(data.folder.glob("*_images-*"))) == 5

    def test_the_digest_of_the_files_sees_a_change(self, tmp_path: Path) -> None:
        data = run(labelled(30), tmp_path)
        path = tmp_path / "validation_images-00000.npy"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert digest_of(data) != data.card.digest


class TestWorkers:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Pictures of two classes, some of which cannot be read or are converted, in parts of seven."""
        monkeypatch.setattr(image_folder, "PICTURES_A_PART", 7)
        root = tmp_path / "raw"
        for n, image in enumerate(noise(50)):
            path = root / "ab"[n % 2] / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint16) * 257 if n % 5 == 3 else image).save(path)
            if n % 6 == 1:
                path.write_bytes(b"" if n % 4 == 1 else b"junk")
        return root

    def test_any_number_of_processes_gives_the_same_files(self, folder: Path, tmp_path: Path) -> None:
        usable = {image.tobytes() for n, image in enumerate(noise(50)) if n % 6 != 1}
        alone = run(ImageFolder(folder), tmp_path / "alone", workers=1)
        assert {image for split in SPLITS for image, _ in rows(alone, split)} == usable
        two = run(ImageFolder(folder), tmp_path / "two", workers=2)
        assert alone.card == two.card
        assert len(alone.card.skipped) == 9
        assert alone.card.skipped == sorted(alone.card.skipped, key=lambda entry: entry.file)
        assert alone.card.converted == {"gray16": 8}
        names = [path.name for path in alone.folder.iterdir()]
        assert sorted(names) == sorted(path.name for path in two.folder.iterdir())
        for name in names:
            assert (alone.folder / name).read_bytes() == (two.folder / name).read_bytes()

    def test_a_folder_of_junk_has_its_message(self, folder: Path, tmp_path: Path) -> None:
        for path in folder.rglob("*.png"):
            path.write_bytes(b"")
        for workers in (1, 2):
            with pytest.raises(
                UserError, match=r"none of the 50 files tried is a usable picture \(a/0.png: empty file"
            ):
                run(ImageFolder(folder), tmp_path / "out", workers=workers)
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_process_that_is_killed_leaves_nothing(self, tmp_path: Path) -> None:
        class Deadly(Endless):
            def parts(self, split: Split) -> Iterator[MadePart]:
                yield from (MadePart(0, 100), DeadlyPart(0, 100), MadePart(0, 100))

        with pytest.raises(UserError, match="one of the 2 worker processes died"):
            run(Deadly(300), tmp_path / "out", Format(3, 64), workers=2)
        assert list((tmp_path / "out").iterdir()) == []

    def test_only_many_pictures_are_worth_other_processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packing, "available_workers", lambda: 7)
        assert packing._fitting(9_999) == 1
        assert packing._fitting(10_000) == 7


class TestCard:
    def test_counts_mean_and_deviation(self, tmp_path: Path) -> None:
        source = ArraySource({"train": (noise(40, (8, 8, 3)), np.arange(40) % 4)}, list("abcd"))
        data = run(source, tmp_path, Format(3, 8))
        pixels = data.images("train")[:] / 255
        np.testing.assert_allclose(data.card.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(data.card.std, pixels.std(axis=(0, 2, 3)), rtol=1e-9)
        for split in SPLITS:
            counts = np.bincount(data.labels(split), minlength=4).tolist()
            assert data.card.splits[split].class_counts == dict(zip("abcd", counts, strict=True))
        assert (data.card.name, data.card.source, data.card.resolution, data.card.channels) == ("mine", "digits", 8, 3)
        assert DataCard.load(tmp_path / "card.json") == data.card

    def test_a_folder_of_odd_files(self, tmp_path: Path) -> None:
        raw = tmp_path / "raw"
        (raw / "a").mkdir(parents=True)
        (raw / "b").mkdir()
        (raw / "never").mkdir()
        for n, image in enumerate(noise(6, (20, 30, 3))):
            Image.fromarray(image).save(raw / "ab"[n % 2] / f"{n}.png")
        Image.new("CMYK", (9, 9), (1, 2, 3, 4)).save(raw / "a" / "cmyk.tiff")
        Image.fromarray(noise(1).astype(np.uint16)[0] * 257).save(raw / "b" / "deep.png")
        (raw / "b" / "empty.jpg").touch()
        (raw / "never" / "broken.png").write_bytes((raw / "a" / "0.png").read_bytes()[:300])
        data = run(ImageFolder(raw), tmp_path / "out", Format(3, 16))
        card = data.card
        assert card.classes == ["a", "b"]
        assert sum(split.count for split in card.splits.values()) == 8
        assert set(data.labels("train")) <= {0, 1}
        assert card.converted == {"cmyk": 1, "gray16": 1}
        assert card.skipped[0] == Skipped("b/empty.jpg", "empty file")
        assert card.skipped[1].file == "never/broken.png"
        assert card.skipped[1].reason.startswith("corrupt or truncated")
        assert card.skipped[2] == Skipped("never", "a class without a usable picture")

    def test_combinations_of_channels_keep_their_numbers(self, tmp_path: Path) -> None:
        source = ArraySource({"train": (noise(40, (8, 8, 3)), np.full(40, 6))}, [f"{n:03b}" for n in range(8)])
        source.channel_classes = "01"
        data = run(source, tmp_path, Format(3, 8))
        assert (data.card.classes, data.card.channel_classes) == (source.classes, "01")
        assert set(data.labels("train")) == {6}
        assert data.card.skipped == []
        assert data.card.splits["test"].class_counts == {name: 8 * (name == "110") for name in source.classes}

    def test_without_labels(self, tmp_path: Path) -> None:
        raw = tmp_path / "raw"
        raw.mkdir()
        for n, image in enumerate(noise(10)):
            Image.fromarray(image).save(raw / f"{n}.png")
        data = run(ImageFolder(raw), tmp_path / "out")
        assert data.card.classes is None
        assert data.labels("train") is None
        assert data.card.splits["test"].class_counts is None
        assert not list((tmp_path / "out").glob("*labels*"))


@dataclass
class MadePart:
    seed: int
    n: int

    def __len__(self) -> int:
        return self.n

    def read(self) -> Iterator[Picture]:
        rng = np.random.default_rng(self.seed)
        for n in range(self.n):
            yield Picture(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), n % 2)


@dataclass
class DeadlyPart(MadePart):
    def read(self) -> Iterator[Picture]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from ()


class Endless:
    """Pictures that are made as they are asked for."""

    classes = ("even", "odd")
    channel_classes = None
    splits: tuple[Split, ...] = ("train", "test")
    skipped = ()

    def __init__(self, n: int) -> None:
        self._n = n

    def candidates(self, split: Split) -> int:
        return self._n

    def parts(self, split: Split) -> Iterator[MadePart]:
        yield from (MadePart(len(split) * 1000 + n, 100) for n in range(self._n // 100))

    def nothing_usable(self, split: Split, skipped: Sequence[Skipped], /) -> UserError:
        raise AssertionError


def test_memory_is_bounded(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        data = run(Endless(1500), tmp_path, Format(3, 64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    packed = sum(data.images(split).nbytes for split in SPLITS)
    assert packed == 3000 * 64 * 64 * 3  # 37 MB
    assert peak < 0.3 * packed, f"{peak / 1e6:.0f} MB in use to pack {packed / 1e6:.0f} MB"
