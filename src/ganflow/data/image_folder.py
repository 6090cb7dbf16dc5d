"""Any folder of pictures as a data set.

A picture's class is the first folder below the root that holds it. Where no sub-folder holds pictures, there are no
labels; where some do, pictures that lie beside the class folders are left out, for they have no class. If the only
folders at the top are `train` and, as wanted, `test` and `validation` (or `val`), then each is a split, and
classes are looked for inside it. Hidden files are ignored; links are followed, except into a folder around them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ganflow.data.card import SPLITS, Skipped, Split
from ganflow.data.decoding import UndecodableError, decode, is_picture
from ganflow.data.sources import Picture, Report
from ganflow.errors import UserError

_SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
_SHOWN_REASONS = 3


class _File(NamedTuple):
    name: str  # below the root; millions of Path objects would take gigabytes
    folder: str | None  # the class folder, or None beside the class folders


class ImageFolder:
    """The pictures below a folder, decoded as they are asked for, in the order of their names."""

    def __init__(self, root: Path) -> None:
        """Look through the folder. Raises UserError if it is missing or ambiguous."""
        self.report = Report()
        self._root = root
        self._files = {split: list(self._walk_split(folder)) for split, folder in self._split_folders().items()}
        self.splits = tuple(split for split in SPLITS if split in self._files)
        self.classes = self._find_classes()

    def candidates(self, split: Split) -> int:
        """Count the files of a split."""
        return len(self._files[split])

    def pictures(self, split: Split) -> Iterator[Picture]:
        """Yield the usable pictures of a split. Raises UserError after the last file if there was none."""
        before, usable = len(self.report.skipped), 0
        numbers = {name: number for number, name in enumerate(self.classes or ())}
        for name, folder in self._files[split]:
            path = self._root / name
            if self.classes is not None and folder is None:
                self._skip(path, "lies beside the class folders, so that it has no class")
                continue
            try:
                pixels, conversions = decode(path)
            except UndecodableError as error:
                self._skip(path, str(error))
                continue
            self.report.converted.update(conversions)
            usable += 1
            yield Picture(pixels, None if self.classes is None or folder is None else numbers[folder])
        if not usable:
            raise self._nothing_usable(split, self.report.skipped[before:])

    def _nothing_usable(self, split: Split, skipped: list[Skipped]) -> UserError:
        what = f"{self._root}: " if len(self.splits) == 1 else f"{self._root}: the {split} split: "
        if not skipped:
            return UserError(f"{what}holds no files; let data.root name a folder of pictures")
        reasons = "; ".join(f"{entry.file}: {entry.reason}" for entry in skipped[:_SHOWN_REASONS])
        more = "; ..." if len(skipped) > _SHOWN_REASONS else ""
        return UserError(f"{what}none of the {len(skipped)} files tried is a usable picture ({reasons}{more})")

    def _split_folders(self) -> dict[Split, Path]:
        if not self._root.is_dir():
            what = "is not a folder" if self._root.exists() else "there is no such folder"
            raise UserError(f"data.root: {self._root}: {what}; image_folder needs a folder of pictures")
        children = self._children(self._root, raising=True)
        folders = {child.name: child for child in children if child.is_dir()}
        if not folders or not folders.keys() <= _SPLIT_FOLDERS.keys():
            return {"train": self._root}
        if "train" not in folders:
            raise UserError(f"{self._root}: holds {', '.join(folders)} but no train folder")
        if {"validation", "val"} <= folders.keys():
            raise UserError(f"{self._root}: holds both validation and val; keep one")
        for child in children:
            if child.name not in folders:
                self._skip(child, "lies beside the folders of the splits")
        return {_SPLIT_FOLDERS[name]: folder for name, folder in folders.items()}

    def _walk_split(self, folder: Path) -> Iterator[_File]:
        for child in self._children(folder):
            class_folder = child.name if child.is_dir() else None
            for path in self._walk(child, (_identity(folder),)):
                yield _File(self._name(path), class_folder)

    def _find_classes(self) -> list[str] | None:
        """Name the class folders, or None if there are no labels."""
        inside = [file for files in self._files.values() for file in files if file.folder is not None]
        beside = any(file.folder is None for files in self._files.values() for file in files)
        # A folder of notes among loose pictures does not make a class.
        if not inside or (beside and not any(is_picture(self._root / file.name) for file in inside)):
            return None
        return sorted({file.folder for file in inside if file.folder is not None})

    def _walk(self, path: Path, around: tuple[tuple[int, int], ...]) -> Iterator[Path]:
        """Yield the files at or below a path, by name, depth first."""
        if path.is_dir():
            if (identity := _identity(path)) in around:
                self._skip(path, "a link to a folder that holds it")
                return
            for child in self._children(path):
                yield from self._walk(child, (*around, identity))
        elif path.is_file() or not path.exists():
            yield path
        else:
            self._skip(path, "not a regular file")

    def _children(self, folder: Path, *, raising: bool = False) -> list[Path]:
        """List a folder by name, without what is hidden."""
        try:
            return sorted((child for child in folder.iterdir() if not child.name.startswith(".")), key=lambda p: p.name)
        except OSError as error:
            if raising:
                raise UserError(f"data.root: {folder}: cannot be read: {error.strerror}") from None
            self._skip(folder, f"cannot be read: {error.strerror}")
            return []

    def _skip(self, path: Path, reason: str) -> None:
        self.report.skipped.append(Skipped(self._name(path), reason))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
