import pickle
from pathlib import Path

import numpy as np
import pytest
from mnist_files import write_mnist
from numpy.typing import NDArray

from ganflow.data import stacked_mnist
from ganflow.data.card import SPLITS, Split
from ganflow.data.format import Format
from ganflow.data.packed import PackedData
from ganflow.data.packing import pack
from ganflow.data.sources import PICTURES_A_PART, Source, open_source
from ganflow.data.stacked_mnist import StackedMnist

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
NAMES = [str(n) for n in range(10)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_mnist, "_COUNTS", {"train": PICTURES_A_PART + 100, "test": 50})


def stacked() -> StackedMnist:
    """Of 20 digits to train on and 10 to test, digit n of the gray level n, or of n + 100 where it is a test digit."""
    levels = {"train": np.arange(20, dtype=np.uint8), "test": np.arange(100, 110, dtype=np.uint8)}
    arrays = {split: (np.tile(of[:, None, None], (1, 28, 28)), of % 10) for split, of in levels.items()}
    return StackedMnist({split: (images, labels.astype(np.int64)) for split, (images, labels) in arrays.items()}, NAMES)


def read(source: Source, split: Split) -> tuple[NDArray[np.uint8], list[int | None]]:
    pictures = [picture for part in source.parts(split) for picture in part.read()]
    return np.stack([picture.pixels for picture in pictures]), [picture.label for picture in pictures]


def run(source: Source, out: Path, seed: int = 0, workers: int = 1) -> PackedData:
    out.mkdir()
    pack(
        source,
        out,
        name="stacked_mnist",
        source_name="stacked_mnist",
        packed_format=Format(3, 28),
        validation_fraction=0.2,
        test_fraction=0.2,
        seed=seed,
        workers=workers,
    )
    return PackedData(out)


@pytest.mark.parametrize(("split", "first", "count"), [("train", 0, PICTURES_A_PART + 100), ("test", 100, 50)])
def test_the_class_is_that_of_the_three_digits(few: None, split: Split, first: int, count: int) -> None:
    source = stacked()
    pixels, labels = read(source, split)
    assert pixels.shape == (count, 28, 28, 3)
    assert source.candidates(split) == count
    assert (pixels == pixels[:, :1, :1]).all(), "a channel shows one digit"
    assert pixels.min() == first, "of the split's own digits"
    assert pixels.max() == first + (19 if split == "train" else 9)
    assert labels == [100 * (r % 10) + 10 * (g % 10) + b % 10 for r, g, b in pixels[:, 0, 0].tolist()]
    assert (len(source.classes), source.classes[0], source.classes[207]) == (1000, "000", "207")
    assert source.channel_classes == NAMES


def test_the_pictures_are_the_same_for_everybody(few: None) -> None:
    pixels, _ = read(stacked(), "train")
    # The first numbers of PCG64 by seed 0: 11749869230777074271, 4976686463289251617, 755828109848996024 and
    # 304881062738325533, 15002187965291974971, 16837368535893154894; modulo 20.
    assert pixels[:2, 0, 0].tolist() == [[11, 17, 4], [13, 11, 14]]
    # By seed 1: 9441442522235856127, 17532960557476522086, 2659275481604167885; modulo 10.
    assert read(stacked(), "test")[0][0, 0, 0].tolist() == [107, 106, 105]
    np.testing.assert_array_equal(read(stacked(), "train")[0], pixels)


def test_all_thousand_classes_come_alike() -> None:
    labels = np.concatenate([part.labels for part in stacked().parts("train")])
    assert len(labels) == 128_000
    counts = np.bincount(labels, minlength=1000)
    chi_squared = ((counts - 128) ** 2 / 128).sum()
    assert 999 - 5 * (2 * 999) ** 0.5 < chi_squared < 999 + 5 * (2 * 999) ** 0.5


def test_parts_are_small() -> None:
    part = next(stacked().parts("train"))
    assert len(part) == PICTURES_A_PART
    assert len(pickle.dumps(part)) < 1.01 * PICTURES_A_PART * (3 * 28 * 28 + 8)


def test_packed_alike_by_any_number_of_workers(few: None, tmp_path: Path) -> None:
    one, two = (run(stacked(), tmp_path / str(workers), workers=workers) for workers in (1, 2))
    assert one.card == two.card
    counts = {split: one.card.splits[split].count for split in SPLITS}
    assert (counts["train"] + counts["validation"], counts["test"]) == (PICTURES_A_PART + 100, 50)
    assert counts["validation"] > 0
    assert len(one.card.classes or ()) == 1000
    images, labels = one.images("test"), one.labels("test")
    assert labels is not None
    for picture, label in zip(images[:], labels, strict=True):
        assert [int(channel[0, 0]) - 100 for channel in picture] == [label // 100, label // 10 % 10, label % 10]


def test_the_seed_of_the_data_cuts_the_splits_and_changes_no_picture(few: None, tmp_path: Path) -> None:
    first, second = (run(stacked(), tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert first.card.digest != second.card.digest
    assert not np.array_equal(first.images("validation")[:], second.images("validation")[:])

    def everything(data: PackedData) -> list[bytes]:
        return sorted(picture.tobytes() for split in SPLITS for picture in data.images(split)[:])

    assert everything(first) == everything(second)


def test_it_is_made_of_mnist_under_the_root(few: None, tmp_path: Path) -> None:
    digits = write_mnist(tmp_path)
    pixels, labels = read(open_source("stacked_mnist", tmp_path), "test")
    for picture, label in zip(pixels, labels, strict=True):
        for channel, digit in enumerate(f"{label:03}"):
            np.testing.assert_array_equal(picture[:, :, channel], digits["t10k"][int(digit)])


@pytest.mark.skipif(not (SHARED / "MNIST" / "raw").is_dir(), reason="the real MNIST is not beside the repository")
def test_the_real_one() -> None:
    source = open_source("stacked_mnist", SHARED)
    assert [source.candidates(split) for split in ("train", "test")] == [128_000, 26_000]
    for split in ("train", "test"):
        assert len(np.unique(np.concatenate([part.labels for part in source.parts(split)]))) == 1000
