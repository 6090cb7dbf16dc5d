"""The journal of a training: what happened, appended to a local file before anybody is told.

One JSON object a line, in the order of the images: `{"images", "time", and one of "values" | "samples" | "warning" |
"status"}`, with the time in milliseconds since 1970. A line without its newline was torn by a kill and does not count.
"""

import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from ganflow.training.disk import writing

Status = Literal["FINISHED", "FAILED", "KILLED"]

FILE = "journal.jsonl"


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Give the lines of the journal in a folder, in order, up to the first that is not whole."""
    path = folder / FILE
    if path.exists():
        with path.open("rb") as file:
            yield from map(json.loads, takewhile(_is_whole, file))


class Journal:
    """Append-only record of ticks, sample pictures and endings.

    A training that goes on from a checkpoint plays ticks again that the journal already has. They keep their first
    line, and with it their time stamp, so that a tracker that is sent them twice sees the same points. A line is on the
    disk before anybody sees it. Whatever adds one raises FullDiskError where there is no room for it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        lines = list(self.lines())
        self._last = {
            kind: max((x["images"] for x in lines if kind in x), default=-1) for kind in ("values", "samples")
        }
        self._warned = {x["warning"]["kind"] for x in lines if "warning" in x}

    def add_values(self, images: int, values: dict[str, float]) -> None:
        """Record the values of a tick."""
        self._append_new("values", images, values)

    def add_samples(self, images: int, picture: str) -> None:
        """Record a grid of samples by its path relative to the journal's folder."""
        self._append_new("samples", images, picture)

    def add_warning(self, images: int, kind: str, text: str) -> bool:
        """Record a warning, and say whether it is the first of its kind; any other is left out."""
        if kind in self._warned:
            return False
        self._append({"images": images, "time": _now(), "warning": {"kind": kind, "text": text}})
        self._warned.add(kind)
        return True

    def add_status(self, images: int, status: Status) -> None:
        """Record how the training ended, or that it was interrupted."""
        self._append({"images": images, "time": _now(), "status": status})

    def lines(self) -> Iterator[dict[str, Any]]:
        """Give the recorded lines in order."""
        yield from read_lines(self.path.parent)

    def write_history(self, path: Path, wanted: Callable[[str], bool] = lambda _: True) -> None:
        """Write values as CSV: the column `images`, then one per wanted value, without the group's prefix.

        Where none of them has a value there is no row.
        """
        rows = []
        for line in self.lines():
            values = {name.rpartition("/")[2]: value for name, value in line.get("values", {}).items()}
            rows.append((line["images"], {name: value for name, value in values.items() if wanted(name)}))
        names = list(dict.fromkeys(name for _, values in rows for name in values))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["images", *names])
            writer.writerows([images, *(values.get(name) for name in names)] for images, values in rows if values)

    def write_warnings(self, path: Path) -> None:
        """Write the warnings as a JSON list of `{"images", "kind", "text"}`, empty where all went well."""
        warnings = [{"images": line["images"], **line["warning"]} for line in self.lines() if "warning" in line]
        path.write_text(json.dumps(warnings, indent=2) + "\n", encoding="utf-8")

    def _append_new(self, kind: str, images: int, content: Any) -> None:
        if images > self._last[kind]:
            self._append({"images": images, "time": _now(), kind: content})
            self._last[kind] = images

    def _append(self, line: dict[str, Any]) -> None:
        raw = f"{json.dumps(line)}\n".encode()
        end = self.path.stat().st_size if self.path.exists() else 0
        with writing(self.path, len(raw), undo=lambda: self._cut(end)), self.path.open("ab") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())

    def _drop_torn_line(self) -> None:
        """Keep the lines before the first that is not whole: a power cut may leave anything after them."""
        if self.path.exists():
            with self.path.open("rb") as file:
                self._cut(sum(len(line) for line in takewhile(_is_whole, file)))

    def _cut(self, end: int) -> None:
        if self.path.exists() and self.path.stat().st_size > end:
            os.truncate(self.path, end)


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _now() -> int:
    return time.time_ns() // 1_000_000
