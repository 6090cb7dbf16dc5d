import json
from pathlib import Path

import numpy as np
import pytest
from packed_noise import pack_noise

from ganflow.data import packing
from ganflow.data.packed import PackedData
from ganflow.errors import UserError


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackedData:
    """14, 2 and 4 pictures, in shards of at most 5."""
    monkeypatch.setattr(packing, "_SHARD_BYTES", 5 * 64)
    pack_noise(tmp_path, 20)
    return PackedData(tmp_path)


def test_shapes_and_types(packed: PackedData) -> None:
    images, labels = packed.images("train"), packed.labels("train")
    assert (images.shape, images[0].dtype) == ((14, 1, 8, 8), np.uint8)
    assert (labels.shape, labels.dtype) == ((14,), np.int64)


def test_pictures_are_mapped_and_cannot_be_changed(packed: PackedData) -> None:
    images = packed.images("train")[:5]
    assert isinstance(images.base.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_nothing_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ganflow prepare"):
        PackedData(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["train_images-00000.npy", "train_images-00002.npy", "train_labels.npy"])
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


def test_a_file_of_another_shard_is_told(packed: PackedData) -> None:
    (packed.folder / "train_images-00002.npy").replace(packed.folder / "train_images-00001.npy")
    with pytest.raises(UserError, match=r"00001.npy: holds uint8 \(4, 1, 8, 8\), but the data card says uint8 \(5, "):
        packed.images("train")


def test_a_folder_of_one_file_a_split_is_to_be_prepared_again(packed: PackedData) -> None:
    path = packed.folder / "card.json"
    tree = json.loads(path.read_text())
    del tree["pictures_a_shard"]
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"is of an earlier ganflow.*; run `ganflow prepare` again"):
        PackedData(packed.folder)
