"""Fixtures of the evaluation's tests."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from ganflow.data.card import DataCard, SplitCard
from ganflow.data.format import Format
from ganflow.data.packed import PackedData, labels_file, shard_file
from ganflow.data.packing import pack
from ganflow.data.quantise import to_float
from ganflow.data.sources import ArraySource
from ganflow.evaluation.extractor import Extractor


def _write_packed(folder: Path, classes: int | None = 2, train: int = 60, test: int = 40, side: int = 8) -> PackedData:
    """Pictures with a bright band whose place tells the class, in noise."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", train), ("validation", 20), ("test", test)):
        labels = np.arange(count) % (classes or 1)
        images = rng.integers(0, 100, (count, 1, side, side), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, 2 * label : 2 * label + 2] += 100
        np.save(folder / shard_file(split, 0), images)
        if classes:
            np.save(folder / labels_file(split), labels)
        splits[split] = SplitCard(count, None)
        if split == "train":
            pixels = images / 255
    names = None if classes is None else [str(label) for label in range(classes)]
    DataCard(
        name="bands",
        source="image_folder",
        resolution=side,
        channels=1,
        classes=names,
        splits=splits,
        pictures_a_shard=100,
        mean=[float(pixels.mean())],
        std=[float(pixels.std())],
        digest="sha256:bands",
        skipped=[],
        converted={},
    ).save(folder / "card.json")
    return PackedData(folder)


@pytest.fixture
def write_packed() -> Callable[..., PackedData]:
    """Write a packed data set into a folder, with so many classes (None for no labels) and pictures."""
    return _write_packed


@pytest.fixture
def packed(tmp_path: Path) -> PackedData:
    """Two classes of 8x8 pictures: 60 to train on, 20 to validate, 40 to test."""
    return _write_packed(tmp_path)


@pytest.fixture
def packed_channels(tmp_path: Path) -> PackedData:
    """Pictures of 8x8 with a bright band in one of three places of each channel, by itself: 27 classes."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 500), ("test", 60)):
        places = rng.integers(0, 3, (count, 3))
        images = rng.integers(0, 60, (count, 8, 8, 3), dtype=np.uint8)
        for image, each in zip(images, places, strict=True):
            for channel, place in enumerate(each):
                image[2 * place : 2 * place + 2, :, channel] += 60 + 60 * channel  # red is darker than blue
        splits[split] = images, places @ [9, 3, 1]
    source = ArraySource(splits, ["".join(each) for each in product("xyz", repeat=3)])
    source.channel_classes = "xyz"
    folder = tmp_path / "channels"
    folder.mkdir()
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.1}
    pack(source, folder, name="bands", source_name="mine", packed_format=Format(3, 8), seed=0, **fractions)
    return PackedData(folder)


class _PixelExtractor:
    """The mean of each quarter of a picture as features (n, 4), in [-1, 1], the largest of which is its class."""

    name = "pixels"
    digest = "sha256:pixels"
    dim = 4
    resize = "none"
    device = torch.device("cpu")

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(to_float(images).mean(1, keepdim=True), 2).flatten(1)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return 10 * features


@pytest.fixture
def pixel_extractor() -> Extractor:
    """An extractor without weights."""
    return _PixelExtractor()
