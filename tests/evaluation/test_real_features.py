import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ganflow.data.card import Split
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation import real_features
from ganflow.evaluation.extractor import Extractor
from ganflow.evaluation.real_features import Key, RealFeatures, compute, find, key_of
from ganflow.evaluation.sampling import real_batches


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "states" / "features"


def batches(packed: PackedData, split: Split, count: int) -> Iterator[Tensor]:
    return real_batches(packed.images(split), 16, count)


def computed(
    packed: PackedData, extractor: Extractor, kept: Path, split: Split = "train", count: int = 50
) -> RealFeatures:
    return compute(batches(packed, split, count), key_of(packed, split, count, extractor), extractor, kept)


def found(packed: PackedData, extractor: Extractor, kept: Path) -> RealFeatures | None:
    return find(kept, key_of(packed, "train", 50, extractor), extractor)


def expected(packed: PackedData, extractor: Extractor, count: int = 50) -> Tensor:
    return extractor.features(torch.from_numpy(packed.images("train")[:count].copy()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Refusing:
    """An extractor that is known, but may not be asked for anything."""

    def __init__(self, extractor: Extractor) -> None:
        self.name, self.digest, self.dim = extractor.name, extractor.digest, extractor.dim
        self.resize, self.device = extractor.resize, extractor.device

    def features(self, images: Tensor) -> Tensor:
        pytest.fail("features were computed")

    logits = features


# What is kept


def test_features_come_back_as_they_were(
    packed: PackedData, pixel_extractor: Extractor, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_features, "_READ_AT_ONCE", 7)
    whole = expected(packed, pixel_extractor)

    for features in (computed(packed, pixel_extractor, kept), found(packed, Refusing(pixel_extractor), kept)):
        assert features is not None
        assert features.first(50).dtype == torch.float32
        assert torch.equal(features.first(50), whole)
        assert torch.equal(features.first(3), whole[:3])
        assert [len(batch) for batch in features.batches()] == [7] * 7 + [1]
        assert torch.equal(torch.cat(list(features.batches())), whole)
        assert [len(batch) for batch in features.batches(14)] == [7, 7]
        assert torch.equal(torch.cat(list(features.batches(12))), whole[:12])


def test_the_file_is_one_that_numpy_reads_and_says_what_it_is(
    packed: PackedData, pixel_extractor: Extractor, kept: Path
) -> None:
    folder = computed(packed, pixel_extractor, kept).folder

    assert np.array_equal(np.load(folder / "features.npy"), expected(packed, pixel_extractor).numpy())
    key = json.loads((folder / "key.json").read_text())
    assert key == {
        "data_digest": "sha256:bands",
        "extractor_digest": "sha256:pixels",
        "split": "train",
        "count": 50,
        "resize": "none",
        "device": "cpu",
        "code": key["code"],
    }
    assert folder.name == Key(**key).folder


def test_features_of_more_digits_are_kept_as_float32(
    packed: PackedData, pixel_extractor: Extractor, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = expected(packed, pixel_extractor)
    monkeypatch.setattr(type(pixel_extractor), "features", lambda self, images: whole[: len(images)].double())

    features = compute(
        [torch.zeros(50, 1, 8, 8, dtype=torch.uint8)],
        key_of(packed, "train", 50, pixel_extractor),
        pixel_extractor,
        kept,
    )
    assert torch.equal(features.first(50), whole)


def test_one_batch_is_in_memory_at_a_time(packed: PackedData, pixel_extractor: Extractor, kept: Path) -> None:
    seen: list[int] = []

    class Recording(Refusing):
        def features(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return pixel_extractor.features(images)

    computed(packed, Recording(pixel_extractor), kept)

    assert seen == [16, 16, 16, 2]


# What it is found by


@pytest.mark.parametrize(
    "other",
    [
        {"data_digest": "sha256:others"},
        {"extractor_digest": "sha256:others"},
        {"split": "test"},
        {"count": 49},
        {"resize": "to 299x299"},
        {"code": "other"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_whatever_differs_has_a_folder_of_its_own(
    other: dict[str, Any], packed: PackedData, pixel_extractor: Extractor, kept: Path
) -> None:
    computed(packed, pixel_extractor, kept)
    key = key_of(packed, "train", 50, pixel_extractor)
    changed = replace(key, **other)

    assert find(kept, key, pixel_extractor) is not None
    assert changed.folder != key.folder
    assert find(kept, changed, pixel_extractor) is None


def test_the_key_is_made_of_the_data_and_the_extractor(packed: PackedData, pixel_extractor: Extractor) -> None:
    key = key_of(packed, "test", 12, pixel_extractor)
    assert (key.data_digest, key.extractor_digest, key.resize) == ("sha256:bands", "sha256:pixels", "none")
    assert (key.split, key.count) == ("test", 12)


def test_other_code_has_another_key(
    packed: PackedData, pixel_extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of(packed, "test", 12, pixel_extractor)
    assert key_of(packed, "test", 12, pixel_extractor) == before
    with monkeypatch.context() as patch:
        patch.setattr(real_features, "_CODE", (*real_features._CODE, "frechet.py"))
        assert key_of(packed, "test", 12, pixel_extractor).code != before.code
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert key_of(packed, "test", 12, pixel_extractor).code != before.code


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content[:-16],
        lambda content: content + b"\0",
        lambda content: content + content[-16:],
        lambda content: b"PK\x03\x04" + content[4:],
        lambda content: b"\x80\x04" + content[2:],
        lambda content: content.replace(b"'shape': (50, 4)", b"'shape': (25, 8)"),
        lambda content: content.replace(b"'shape': (50, 4)", b"'shape': ((((((("),
        lambda content: content.replace(b"<f4", b">f4"),
        lambda content: content.replace(b"False", b"True "),
        lambda content: content[:11] + bytes(range(117)) + content[128:],
    ],
)
def test_damaged_features_are_noticed_and_made_anew(
    damage: Any, packed: PackedData, pixel_extractor: Extractor, kept: Path
) -> None:
    first = computed(packed, pixel_extractor, kept)
    first.moments(40)
    path = first.folder / "features.npy"
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))

    assert found(packed, pixel_extractor, kept) is None
    again = computed(packed, pixel_extractor, kept)
    assert path.read_bytes() == content
    assert names(kept) == [again.folder.name]
    assert names(again.folder) == ["features.npy", "key.json"], "moments of damaged features go with them"
    assert found(packed, pixel_extractor, kept) == again


def test_a_folder_without_features_is_filled(packed: PackedData, pixel_extractor: Extractor, kept: Path) -> None:
    folder = computed(packed, pixel_extractor, kept).folder
    (folder / "features.npy").unlink()

    assert found(packed, pixel_extractor, kept) is None
    again = computed(packed, pixel_extractor, kept)
    assert torch.equal(again.first(50), expected(packed, pixel_extractor))


def test_nothing_half_written_is_left(packed: PackedData, pixel_extractor: Extractor, kept: Path) -> None:
    def broken() -> Iterator[Tensor]:
        yield from list(batches(packed, "train", 50))[:2]
        raise MemoryError

    key = key_of(packed, "train", 50, pixel_extractor)
    with pytest.raises(MemoryError):
        compute(broken(), key, pixel_extractor, kept)

    assert names(kept) == []
    assert find(kept, key, pixel_extractor) is None


def test_a_folder_that_cannot_be_written(packed: PackedData, pixel_extractor: Extractor, tmp_path: Path) -> None:
    in_the_way = tmp_path / "states"
    in_the_way.write_text("a file in the place of a folder")

    with pytest.raises(UserError, match=r"states/features/\w+: .* cannot be kept there \(Not a directory\).* 0 MiB"):
        computed(packed, pixel_extractor, in_the_way / "features")

    class Large(Refusing):
        def features(self, images: Tensor) -> Tensor:
            raise OSError(28, "No space left on device")

    large = Large(pixel_extractor)
    large.dim = 2048
    key = replace(key_of(packed, "train", 50, large), count=50_000)
    with pytest.raises(UserError, match=r"No space left on device\); they take 391 MiB"):
        compute(batches(packed, "train", 50), key, large, tmp_path / "other")
    assert names(tmp_path / "other") == []


# Moments


@pytest.mark.parametrize("n", [2, 20, 50])
def test_moments_of_a_prefix_equal_numpy(
    n: int, packed: PackedData, pixel_extractor: Extractor, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_features, "_READ_AT_ONCE", 8)
    features = computed(packed, pixel_extractor, kept)
    values = expected(packed, pixel_extractor, n).double().numpy()

    for _ in range(2):
        moments = features.moments(n)
        assert moments.count == n
        assert moments.mean.dtype == moments.scatter.dtype == torch.float64
        np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-10)
        np.testing.assert_allclose(moments.covariance, np.cov(values, rowvar=False), rtol=1e-10, atol=1e-15)


def test_moments_are_computed_once(
    packed: PackedData, pixel_extractor: Extractor, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = computed(packed, pixel_extractor, kept)
    moments, fewer = first.moments(40), first.moments(30)
    assert names(first.folder) == ["features.npy", "key.json", "moments-30.safetensors", "moments-40.safetensors"]

    monkeypatch.setattr(RealFeatures, "batches", lambda *_: pytest.fail("features were read"))
    again = found(packed, pixel_extractor, kept)
    assert again is not None
    assert torch.equal(again.moments(40).mean, moments.mean)
    assert torch.equal(again.moments(40).scatter, moments.scatter)
    assert torch.equal(again.moments(30).scatter, fewer.scatter)
    assert not torch.equal(moments.scatter, fewer.scatter)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"\xff" * len(content),
        lambda content: content.replace(b"scatter", b"shatter"),
    ],
)
def test_damaged_moments_are_noticed_and_made_anew(
    damage: Any, packed: PackedData, pixel_extractor: Extractor, kept: Path
) -> None:
    features = computed(packed, pixel_extractor, kept)
    moments = features.moments(40)
    path = features.folder / "moments-40.safetensors"
    content = path.read_bytes()
    path.write_bytes(damage(content))

    assert torch.equal(features.moments(40).scatter, moments.scatter)
    assert path.read_bytes() == content
    assert names(features.folder) == ["features.npy", "key.json", "moments-40.safetensors"]


def test_moments_that_cannot_be_kept_are_given_all_the_same(
    packed: PackedData, pixel_extractor: Extractor, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = computed(packed, pixel_extractor, kept)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(real_features, "save_file", full)
        moments = features.moments(40)
    assert names(features.folder) == ["features.npy", "key.json"]
    assert torch.equal(moments.scatter, features.moments(40).scatter)


# Several at once


def test_two_that_compute_the_same_at_once(packed: PackedData, pixel_extractor: Extractor, kept: Path) -> None:
    """Both come to the writing before either is done; both end well, and with the same."""
    gate = threading.Barrier(2, timeout=20)

    class Meeting(Refusing):
        def features(self, images: Tensor) -> Tensor:
            gate.wait()
            return pixel_extractor.features(images)

    results: list[tuple[Tensor, Tensor]] = []

    def work() -> None:
        features = computed(packed, Meeting(pixel_extractor), kept)
        results.append((features.moments(40).scatter, features.first(50)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    whole = expected(packed, pixel_extractor)
    assert [torch.equal(features, whole) for _, features in results] == [True, True]
    assert torch.equal(results[0][0], results[1][0])
    (folder,) = kept.iterdir()
    assert names(folder) == ["features.npy", "key.json", "moments-40.safetensors"]


def test_the_slower_one_leaves_alone_what_the_faster_one_reads(
    packed: PackedData, pixel_extractor: Extractor, kept: Path
) -> None:
    faster: list[RealFeatures] = []

    def overtaken() -> Iterator[Tensor]:
        yield from batches(packed, "train", 50)
        faster.append(computed(packed, pixel_extractor, kept))
        faster[0].moments(40)

    key = key_of(packed, "train", 50, pixel_extractor)
    slower = compute(overtaken(), key, pixel_extractor, kept)

    assert slower == faster[0]
    assert names(slower.folder) == ["features.npy", "key.json", "moments-40.safetensors"], "not replaced under its feet"
    assert names(kept) == [slower.folder.name]
