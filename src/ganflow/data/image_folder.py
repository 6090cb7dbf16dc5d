"""Any folder of pictures as a data set.

A picture's class is the first folder below the root that holds it. Where no sub-folder holds pictures, there are no
labels; where some do, pictures that lie beside the class folders are left out, for they have no class. If the only
folders at the top are `train` and, as wanted, `test` and `validation` (or `val`), then each is a split, and
classes are looked for inside it. Hidden files are ignored; links are followed, except into a folder around them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ganflow.data.card import SPLITS, Skipped, Split
from ganflow.data.decoding import UndecodableError, decode, is_picture
from ganflow.data.sources import PICTURES_A_PART, Picture
from ganflow.errors import UserError

_SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
_SHOWN_REASONS = 3


@dataclass(frozen=True)
class FolderPart:
    """Some files below a folder, by name, with the index of each one's class.

    `labels` is None without labels; with them, the label None stands for a file beside the class folders.
    """

    root: Path
    names: Sequence[str]
    labels: Sequence[int | None] | None

    def __len__(self) -> int:
        return len(self.names)

    def read(self) -> Iterator[Picture | Skipped]:
        """Decode them, one after the other."""
        for name, label in zip(self.names, self.labels or [None] * len(self), strict=True):
            if self.labels is not None and label is None:
                yield Skipped(name, "lies beside the class folders, so that it has no class")
                continue
            try:
                pixels, conversions = decode(self.root / name)
            except UndecodableError as error:
                yield Skipped(name, str(error))
                continue
            yield Picture(pixels, label, conversions)


@dataclass(frozen=True)
class _Files:
    """The files of a split: names below the root (millions of Path objects would take gigabytes), and class folders.

    The folder None is beside the class folders.
    """

    names: list[str]
    folders: list[str | None]


class ImageFolder:
    """The pictures below a folder, decoded as they are asked for, in the order of their names."""

    def __init__(self, root: Path) -> None:
        """Look through the folder. Raises UserError if it is missing or ambiguous."""
        self.skipped: list[Skipped] = []
        self._root = root
        self._files = {split: self._walk_split(folder) for split, folder in self._split_folders().items()}
        self.splits = tuple(split for split in SPLITS if split in self._files)
        self.classes = self._find_classes()
        self.channel_classes = None

    def candidates(self, split: Split) -> int:
        """Count the files of a split."""
        return len(self._files[split].names)

    def parts(self, split: Split) -> Iterator[FolderPart]:
        """Yield the files of a split in parts."""
        files = self._files[split]
        numbers: dict[str | None, int] = {name: number for number, name in enumerate(self.classes or ())}
        for start in range(0, len(files.names), PICTURES_A_PART):
            part = slice(start, start + PICTURES_A_PART)
            labels = None if self.classes is None else [numbers.get(folder) for folder in files.folders[part]]
            yield FolderPart(self._root, files.names[part], labels)

    def nothing_usable(self, split: Split, skipped: Sequence[Skipped]) -> UserError:
        """Make the error for a split in which all files were skipped; the first reasons are told."""
        what = f"{self._root}: " if len(self.splits) == 1 else f"{self._root}: the {split} split: "
        if not skipped:
            return UserError(f"{what}holds no files; let data.root name a folder of pictures")
        reasons = "; ".join(f"{entry.file}: {entry.reason}" for entry in skipped[:_SHOWN_REASONS])
        more = "; ..." if len(skipped) > _SHOWN_REASONS else ""
        return UserError(f"{what}none of the {len(skipped)} files tried is a usable picture ({reasons}{more})")

    def _split_folders(self) -> dict[Split, str]:
        """Name the folder of each split, below the root."""
        if not self._root.is_dir():
            what = "is not a folder" if self._root.exists() else "there is no such folder"
            raise UserError(f"data.root: {self._root}: {what}; image_folder needs a folder of pictures")
        children = self._children("", raising=True)
        folders = [child for child in children if (self._root / child).is_dir()]
        if not folders or not set(folders) <= _SPLIT_FOLDERS.keys():
            return {"train": ""}
        if "train" not in folders:
            raise UserError(f"{self._root}: holds {', '.join(folders)} but no train folder")
        if {"validation", "val"} <= set(folders):
            raise UserError(f"{self._root}: holds both validation and val; keep one")
        for child in children:
            if child not in folders:
                self._skip(child, "lies beside the folders of the splits")
        return {_SPLIT_FOLDERS[name]: name for name in folders}

    def _walk_split(self, folder: str) -> _Files:
        files = _Files([], [])
        for child in self._children(folder):
            class_folder = child.rpartition("/")[2] if (self._root / child).is_dir() else None
            for name in self._walk(child, (_identity(self._root / folder),)):
                files.names.append(name)
                files.folders.append(class_folder)
        return files

    def _find_classes(self) -> list[str] | None:
        """Name the class folders, or None if there are no labels."""
        folders = {folder for files in self._files.values() for folder in files.folders}
        inside = folders - {None}
        # A folder of notes among loose pictures does not make a class.
        if not inside or (None in folders and not any(is_picture(self._root / name) for name in self._inside())):
            return None
        return sorted(folder for folder in inside if folder is not None)

    def _inside(self) -> Iterator[str]:
        """Yield the files in class folders."""
        for files in self._files.values():
            yield from (name for name, folder in zip(files.names, files.folders, strict=True) if folder is not None)

    def _walk(self, name: str, around: tuple[tuple[int, int], ...]) -> Iterator[str]:
        """Yield the files at or below a path, by name, depth first."""
        path = self._root / name
        if path.is_dir():
            if (identity := _identity(path)) in around:
                self._skip(name, "a link to a folder that holds it")
                return
            for child in self._children(name):
                yield from self._walk(child, (*around, identity))
        elif path.is_file() or not path.exists():
            yield name
        else:
            self._skip(name, "not a regular file")

    def _children(self, folder: str, *, raising: bool = False) -> list[str]:
        """List a folder by name, without what is hidden."""
        path = self._root / folder
        try:
            names = sorted(child.name for child in path.iterdir() if not child.name.startswith("."))
        except OSError as error:
            if raising:
                raise UserError(f"data.root: {path}: cannot be read: {error.strerror}") from None
            self._skip(folder, f"cannot be read: {error.strerror}")
            return []
        return [f"{folder}/{name}" if folder else name for name in names]

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(name, reason))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
