from pathlib import Path

import numpy as np
import pytest

from ganflow.data.packed import PackedData
from ganflow.data.packing import Format, pack
from ganflow.data.sources import ArraySource
from ganflow.errors import UserError


@pytest.fixture
def packed(tmp_path: Path) -> PackedData:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    pack(
        ArraySource({"train": (images, np.arange(20) % 2)}, "ab"),
        tmp_path,
        name="mine",
        source_name="digits",
        packed_format=Format(1, 8),
        validation_fraction=0.1,
        test_fraction=0.2,
        seed=0,
    )
    return PackedData(tmp_path)


def test_shapes_and_types(packed: PackedData) -> None:
    images, labels = packed.images("train"), packed.labels("train")
    assert (images.shape, images.dtype) == ((14, 1, 8, 8), np.uint8)
    assert (labels.shape, labels.dtype) == ((14,), np.int64)


def test_pictures_are_mapped_and_cannot_be_changed(packed: PackedData) -> None:
    images = packed.images("train")
    assert isinstance(images.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_nothing_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ganflow prepare"):
        PackedData(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["train_images.npy", "train_labels.npy"])
@pytest.mark.parametrize("harm", ["missing", "empty", "junk", "truncated", "other shape", "pickled"])
def test_harm_to_the_files_is_told(packed: PackedData, name: str, harm: str) -> None:
    path = packed.folder / name
    content = path.read_bytes()
    path.unlink()
    if harm == "other shape":
        np.save(path, np.zeros(3, np.int64))
    elif harm == "pickled":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    elif harm != "missing":
        path.write_bytes({"empty": b"", "junk": b"junk" * 99, "truncated": content[:-1]}[harm])
    with pytest.raises(UserError, match=f"{name}: .*run `ganflow prepare` again"):
        packed.images("train") if "images" in name else packed.labels("train")
