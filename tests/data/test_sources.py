import pickle
import urllib.request
from hashlib import md5
from pathlib import Path
from typing import Any, Never
from urllib.error import URLError

import numpy as np
import pytest
from mnist_files import idx, write_mnist
from sklearn.datasets import load_digits

from ganflow.data.card import Split
from ganflow.data.sources import PICTURES_A_PART, ArraySource, Picture, Source, open_source
from ganflow.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> Never:
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


def pictures_of(source: Source, split: Split) -> list[Picture]:
    return [picture for part in source.parts(split) for picture in part.read()]


def test_parts_hold_all_pictures_in_their_order() -> None:
    n = 2 * PICTURES_A_PART + 1
    images, labels = np.arange(n, dtype=np.uint8).reshape(n, 1, 1), np.arange(n) % 3
    source = ArraySource({"train": (images, labels)}, "abc")
    assert [len(part) for part in source.parts("train")] == [PICTURES_A_PART, PICTURES_A_PART, 1]
    pictures = pictures_of(source, "train")
    assert [int(picture.pixels.item()) for picture in pictures] == [number % 256 for number in range(n)]
    assert [picture.label for picture in pictures] == labels.tolist()


def test_digits_are_scaled_to_bytes(tmp_path: Path) -> None:
    source = open_source("digits", tmp_path)
    pictures = pictures_of(source, "train")
    expected = load_digits()
    assert source.splits == ("train",)
    assert source.classes == [str(n) for n in range(10)]
    assert len(pictures) == source.candidates("train") == 1797
    assert [picture.label for picture in pictures] == expected.target.tolist()
    got = np.stack([picture.pixels for picture in pictures])
    assert got.dtype == np.uint8
    # k sixteenths of 255, rounded
    scale = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    np.testing.assert_array_equal(got, np.array(scale)[expected.images.astype(int)])


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_is_found_under_the_root(tmp_path: Path, offline: None, name: str, kind: str) -> None:
    images = write_mnist(tmp_path, kind)
    source = open_source(name, tmp_path)
    assert source.splits == ("train", "test")
    assert len(source.classes) == 10
    for split, file in (("train", "train"), ("test", "t10k")):
        pictures = pictures_of(source, split)
        np.testing.assert_array_equal(np.stack([picture.pixels for picture in pictures]), images[file])
        assert [picture.label for picture in pictures] == list(range(len(pictures)))


def test_class_names(tmp_path: Path, offline: None) -> None:
    write_mnist(tmp_path, "MNIST")
    write_mnist(tmp_path, "FashionMNIST")
    assert open_source("mnist", tmp_path).classes[3] == "3"
    assert open_source("fashion_mnist", tmp_path).classes[0] == "T-shirt/top"


@pytest.mark.parametrize("name", ["mnist", "stacked_mnist", "fashion_mnist", "cifar10"])
def test_absent_and_no_network(tmp_path: Path, offline: None, name: str) -> None:
    with pytest.raises(UserError) as caught:
        open_source(name, tmp_path / "raw")
    message = str(caught.value)
    assert f"data.source {name}" in message
    assert str(tmp_path / "raw") in message
    assert "data.root" in message
    assert "Name or service not known" in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path, offline: None) -> None:
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"mnist: MNIST/raw/t10k-labels-idx1-ubyte not found under"):
        open_source("mnist", tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk", b"\0" * 16, idx(np.zeros((5, 28, 28), np.uint8))[:1000]])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_corrupt_files(tmp_path: Path, offline: None, file: str, content: bytes) -> None:
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / file).write_bytes(content)
    with pytest.raises(UserError, match="are corrupt; delete them"):
        open_source("mnist", tmp_path)


def test_pictures_and_labels_that_do_not_match(tmp_path: Path, offline: None) -> None:
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(UserError, match="5 train pictures do not match their 4 labels"):
        open_source("mnist", tmp_path)


def test_cifar10_is_found_under_the_root(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5((folder / name).read_bytes()).hexdigest()]

    rows = {f"data_batch_{n}": rng.integers(0, 256, (2, 3072), dtype=np.uint8) for n in range(1, 6)}
    train = [write(name, {"data": data, "labels": [1, 2]}) for name, data in rows.items()]
    test = [write("test_batch", {"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, 9]})]
    names = write("batches.meta", {"label_names": [f"kind {n}" for n in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {"filename": names[0], "key": "label_names", "md5": names[1]})

    source = open_source("cifar10", tmp_path)
    assert source.classes[9] == "kind 9"
    assert [picture.label for picture in pictures_of(source, "test")] == [0, 1, 9]
    pictures = pictures_of(source, "train")
    assert len(pictures) == 10
    # A row holds the red plane, then the green, then the blue.
    np.testing.assert_array_equal(pictures[2].pixels, rows["data_batch_2"][0].reshape(3, 32, 32).transpose(1, 2, 0))

    (folder / "test_batch").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"cifar10: the files under data.root .* are corrupt"):
        open_source("cifar10", tmp_path)


@pytest.mark.skipif(not (SHARED / "MNIST" / "raw").is_dir(), reason="the real MNIST is not beside the repository")
def test_the_real_mnist(offline: None) -> None:
    source = open_source("mnist", SHARED)
    assert [source.candidates(split) for split in ("train", "test")] == [60_000, 10_000]
    first = next(next(source.parts("train")).read())
    assert first.label == 5
    assert first.pixels.shape == (28, 28)
    assert first.pixels.sum() == 27_525
