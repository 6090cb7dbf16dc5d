import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import numpy as np
import pytest
from PIL import Image

from ganflow import params
from ganflow.data import packing
from ganflow.data.card import DataCard
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.stages import prepare as stage

DIGITS = params.parse({"model": {"family": "vanilla"}})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Stand in for the training of the classifier; collects what it was called with."""
    calls: list[tuple[int, int]] = []

    def train_classifier(packed: PackedData, seed: int, out: Path) -> None:
        calls.append((len(packed.images("train")), seed))
        (out / "extractor.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(stage, "train_classifier", train_classifier)
    return calls


@pytest.fixture
def pictures(tmp_path: Path) -> params.Params:
    """Parameters for a folder of pictures without labels."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for n, image in enumerate(np.random.default_rng(0).integers(0, 256, (9, 9, 9), dtype=np.uint8)):
        Image.fromarray(image).save(raw / f"{n}.png")
    return replace(DIGITS, data=replace(DIGITS.data, source="image_folder", name="mine", root=str(raw)))


def test_digits(tmp_path: Path, trained: list[tuple[int, int]], caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "artifacts" / "prepare"
    with caplog.at_level(logging.INFO, "ganflow"):
        card = stage.prepare(DIGITS, out)
    counts = [card.splits[split].count for split in ("train", "validation", "test")]
    assert sum(counts) == 1797
    assert PackedData(out).images("train").shape == (counts[0], 1, 16, 16)
    assert DataCard.load(out / "card.json") == card
    assert trained == [(counts[0], 0)]
    assert (out / "extractor.safetensors").exists()
    assert [path.name for path in out.parent.iterdir()] == ["prepare"]
    assert f"digits: {counts[0]} train" in caplog.text


def test_without_labels_no_classifier_and_a_warning(
    tmp_path: Path, trained: list[tuple[int, int]], pictures: params.Params, caplog: pytest.LogCaptureFixture
) -> None:
    card = stage.prepare(pictures, tmp_path / "out")
    assert card.name == "mine"
    assert trained == []
    assert "evaluate.extractor: inception" in caplog.text


def test_the_number_of_workers_is_passed_on(
    tmp_path: Path, trained: list[tuple[int, int]], pictures: params.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    @contextmanager
    def working(count: int) -> Iterator[Any]:
        asked.append(count)
        yield map

    monkeypatch.setattr(packing, "working", working)
    for workers in (None, 3):
        stage.prepare(pictures, tmp_path / "out", workers)
    assert asked == [1, 3]


def test_skipped_and_converted_are_told(
    tmp_path: Path, trained: list[tuple[int, int]], pictures: params.Params, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "raw" / "notes.txt").write_text("hello")
    Image.new("CMYK", (9, 9)).save(tmp_path / "raw" / "z.tiff")
    with caplog.at_level(logging.INFO, "ganflow"):
        stage.prepare(pictures, tmp_path / "out")
    assert "1 skipped, such as notes.txt: not a picture" in caplog.text
    assert "1 cmyk" in caplog.text


def test_a_second_time_replaces_the_first(
    tmp_path: Path, trained: list[tuple[int, int]], pictures: params.Params
) -> None:
    first = stage.prepare(pictures, tmp_path / "out")
    (tmp_path / "out" / "left.over").touch()
    (tmp_path / "raw" / "8.png").unlink()
    second = stage.prepare(pictures, tmp_path / "out")
    assert second.digest != first.digest
    assert DataCard.load(tmp_path / "out" / "card.json") == second
    assert not (tmp_path / "out" / "left.over").exists()


@pytest.mark.parametrize("earlier", [True, False])
def test_a_failure_leaves_what_was_there_before(
    tmp_path: Path,
    trained: list[tuple[int, int]],
    pictures: params.Params,
    monkeypatch: pytest.MonkeyPatch,
    earlier: bool,
) -> None:
    if earlier:
        card = stage.prepare(pictures, tmp_path / "out")

    def fail(*args: Any, **kwargs: Any) -> Never:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "pack", fail)
    with pytest.raises(KeyboardInterrupt):
        stage.prepare(pictures, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == ({"raw", "out"} if earlier else {"raw"})
    if earlier:
        assert DataCard.load(tmp_path / "out" / "card.json") == card


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path, trained: list[tuple[int, int]]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is in the way"):
        stage.prepare(DIGITS, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_an_empty_folder_is_filled(tmp_path: Path, trained: list[tuple[int, int]], pictures: params.Params) -> None:
    (tmp_path / "out").mkdir()
    stage.prepare(pictures, tmp_path / "out")
    assert (tmp_path / "out" / "card.json").exists()


def test_a_place_that_cannot_be_written(
    tmp_path: Path, trained: list[tuple[int, int]], pictures: params.Params
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        stage.prepare(pictures, tmp_path / "file" / "out")


def test_nothing_usable(tmp_path: Path, trained: list[tuple[int, int]]) -> None:
    (tmp_path / "raw").mkdir()
    data = replace(DIGITS.data, source="image_folder", root=str(tmp_path / "raw"))
    with pytest.raises(UserError, match="holds no files"):
        stage.prepare(replace(DIGITS, data=data), tmp_path / "out")
    assert not (tmp_path / "out").exists()
