import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganflow.data import image_folder as module
from ganflow.data.card import Skipped, Split
from ganflow.data.image_folder import ImageFolder
from ganflow.data.sources import Picture
from ganflow.errors import UserError


def draw(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path)


def read(folder: ImageFolder, split: Split = "train") -> list[tuple[int, str | None]]:
    """Shade and class name of every picture."""
    return [
        (int(entry.pixels.flat[0]), None if entry.label is None else folder.classes[entry.label])
        for entry in entries(folder, split)
        if isinstance(entry, Picture)
    ]


def entries(folder: ImageFolder, split: Split = "train") -> list[Picture | Skipped]:
    return [entry for part in folder.parts(split) for entry in part.read()]


def left_out(folder: ImageFolder, split: Split = "train") -> list[Skipped]:
    """All that is no picture, whether it was opened or not."""
    return [*folder.skipped, *(entry for entry in entries(folder, split) if isinstance(entry, Skipped))]


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "b.png", 1)
    draw(tmp_path / "cat" / "a.png", 2)
    draw(tmp_path / "ant" / "deep" / "er" / "z.png", 3)
    folder = ImageFolder(tmp_path)
    assert folder.classes == ["ant", "cat"]
    assert folder.splits == ("train",)
    assert folder.candidates("train") == 3
    assert read(folder) == [(3, "ant"), (2, "cat"), (1, "cat")]


def test_pictures_at_the_top_have_no_labels(tmp_path: Path) -> None:
    draw(tmp_path / "b.png", 1)
    draw(tmp_path / "a.png", 2)
    folder = ImageFolder(tmp_path)
    assert folder.classes is None
    assert read(folder) == [(2, None), (1, None)]


def test_pictures_beside_class_folders_are_left_out_and_listed(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.png", 1)
    draw(tmp_path / "cover.png", 2)
    folder = ImageFolder(tmp_path)
    assert read(folder) == [(1, "cat")]
    assert left_out(folder) == [Skipped("cover.png", "lies beside the class folders, so that it has no class")]


def test_a_folder_of_notes_makes_no_class(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("hello")
    folder = ImageFolder(tmp_path)
    assert read(folder) == [(1, None)]
    assert [entry.file for entry in left_out(folder)] == ["notes/readme.txt"]


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_folders_of_the_splits(tmp_path: Path, validation: str) -> None:
    draw(tmp_path / "train" / "cat" / "a.png", 1)
    draw(tmp_path / "train" / "dog" / "a.png", 2)
    draw(tmp_path / "test" / "dog" / "a.png", 3)
    draw(tmp_path / validation / "eel" / "a.png", 4)
    (tmp_path / "README.md").write_text("hello")
    folder = ImageFolder(tmp_path)
    assert folder.splits == ("train", "validation", "test")
    assert folder.classes == ["cat", "dog", "eel"]
    assert read(folder, "train") == [(1, "cat"), (2, "dog")]
    assert read(folder, "test") == [(3, "dog")]
    assert read(folder, "validation") == [(4, "eel")]
    assert left_out(folder) == [Skipped("README.md", "lies beside the folders of the splits")]


def test_folders_of_the_splits_without_labels(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a.png", 1)
    draw(tmp_path / "test" / "a.png", 2)
    folder = ImageFolder(tmp_path)
    assert folder.classes is None
    assert read(folder, "test") == [(2, None)]


def test_train_beside_other_folders_is_a_class(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a.png", 1)
    draw(tmp_path / "boat" / "a.png", 2)
    assert ImageFolder(tmp_path).classes == ["boat", "train"]


@pytest.mark.parametrize("names", [["test"], ["test", "val"], ["train", "val", "validation"]])
def test_ambiguous_folders_of_splits(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        draw(tmp_path / name / "a.png", 1)
    with pytest.raises(UserError, match=r"no train folder|both validation and val"):
        ImageFolder(tmp_path)


def test_hidden_files_are_ignored_in_silence(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 1)
    draw(tmp_path / ".thumbnails" / "a.png", 2)
    draw(tmp_path / ".hidden.png", 3)
    for name in (".gitignore", ".gitkeep", ".DS_Store"):
        (tmp_path / name).write_text("x")
    folder = ImageFolder(tmp_path)
    assert read(folder) == [(1, None)]
    assert left_out(folder) == []


def test_parts_hold_all_files_in_their_order_with_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PICTURES_A_PART", 4)
    for n in range(5):
        draw(tmp_path / "ab"[n % 2] / f"{n}.png", n)
    draw(tmp_path / "beside.png", 9)
    folder = ImageFolder(tmp_path)
    parts = list(folder.parts("train"))
    assert [len(part) for part in parts] == [4, 2]
    assert parts[1].names == ["b/3.png", "beside.png"]
    assert read(folder) == [(0, "a"), (2, "a"), (4, "a"), (1, "b"), (3, "b")]


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "root"
    draw(tmp_path / "elsewhere" / "a.png", 1)
    draw(root / "own" / "b.png", 2)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "own" / "loop").symlink_to(root)
    (root / "own" / "nothing.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(root / "own" / "pipe.png")
    folder = ImageFolder(root)
    assert read(folder) == [(1, "linked"), (2, "own")]
    assert {entry.file: entry.reason for entry in left_out(folder)} == {
        "own/loop": "a link to a folder that holds it",
        "own/nothing.png": "a link to nothing",
        "own/pipe.png": "not a regular file",
    }


def test_conversions_are_told(tmp_path: Path) -> None:
    for n in range(2):
        Image.new("CMYK", (4, 4)).save(tmp_path / f"{n}.tiff")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    read_in = [entry.conversions for entry in entries(ImageFolder(tmp_path)) if isinstance(entry, Picture)]
    assert read_in == [("cmyk",), ("cmyk",), ("gray16",)]


def test_nothing_usable_names_the_folder_the_number_and_reasons(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"{n}.png").write_bytes(b"" if n else b"junk")
    folder = ImageFolder(tmp_path)
    message = str(folder.nothing_usable("train", left_out(folder)))
    assert message.startswith(f"{tmp_path}: none of the 5 files tried is a usable picture")
    assert "0.png: not a picture" in message
    assert "1.png: empty file" in message
    assert message.endswith("...)")


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a.png", 1)
    (tmp_path / "test").mkdir()
    folder = ImageFolder(tmp_path)
    assert list(folder.parts("test")) == []
    assert "the test split: holds no files" in str(folder.nothing_usable("test", []))


def test_missing_folder_and_file_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        ImageFolder(tmp_path / "gone")
    (tmp_path / "pictures.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="is not a folder"):
        ImageFolder(tmp_path / "pictures.zip")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_may_not_be_read(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "a.png", 1)
    draw(tmp_path / "locked" / "a.png", 1)
    (tmp_path / "locked").chmod(0)
    try:
        folder = ImageFolder(tmp_path)
        assert read(folder) == [(1, "a")]
        assert [entry.file for entry in left_out(folder)] == ["locked"]
    finally:
        (tmp_path / "locked").chmod(0o700)
