import csv
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from ganflow.training.disk import FullDiskError
from ganflow.training.journal import Journal, read_lines


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_what_happens_is_appended(tmp_path: Path) -> None:
    before = time.time() * 1000 - 1
    journal = Journal(tmp_path / "state")
    journal.add_samples(0, "samples/000000000.png")
    journal.add_values(100, {"train/generator_loss": 0.5})
    journal.add_status(100, "KILLED")
    recorded = lines(tmp_path / "state")
    times = [line.pop("time") for line in recorded]
    assert recorded == [
        {"images": 0, "samples": "samples/000000000.png"},
        {"images": 100, "values": {"train/generator_loss": 0.5}},
        {"images": 100, "status": "KILLED"},
    ]
    assert times == sorted(times)  # type: ignore[type-var]
    assert all(isinstance(stamp, int) and before <= stamp <= time.time() * 1000 for stamp in times)
    assert [line["images"] for line in journal.lines()] == [0, 100, 100]


def test_each_line_is_there_for_a_reader_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for images in (1, 2, 3):
        journal.add_values(images, {"x": 1.0})
        assert [line["images"] for line in lines(tmp_path)] == list(range(1, images + 1))


def test_what_is_played_again_keeps_its_first_line(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.add_samples(0, "first.png")
    for images in (100, 200, 300):
        first.add_values(images, {"x": float(images)})
    first.add_samples(300, "first.png")
    content = (tmp_path / "journal.jsonl").read_text()

    again = Journal(tmp_path)  # from a checkpoint at 150 images
    again.add_samples(0, "again.png")
    again.add_values(200, {"x": -1.0})
    again.add_values(300, {"x": -1.0})
    again.add_samples(300, "again.png")
    assert (tmp_path / "journal.jsonl").read_text() == content
    again.add_values(400, {"x": 400.0})
    again.add_values(400, {"x": -1.0})
    again.add_samples(600, "again.png")
    assert [(line["images"], line.get("values")) for line in lines(tmp_path)[-2:]] == [(400, {"x": 400.0}), (600, None)]


def test_values_and_samples_are_counted_apart_and_every_ending_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_values(500, {"x": 1.0})
    journal.add_samples(400, "late.png")
    journal.add_status(300, "FAILED")
    Journal(tmp_path).add_status(300, "FAILED")
    kinds = [next(kind for kind in ("values", "samples", "status") if kind in line) for line in lines(tmp_path)]
    assert kinds == ["values", "samples", "status", "status"]


@pytest.mark.parametrize("torn", ['{"images": 300, "ti', "{", '{"images": 300, "time": 1, "values": {"x": 3.0}}'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    journal = Journal(tmp_path)
    journal.add_values(100, {"x": 1.0})
    journal.add_values(200, {"x": 2.0})
    whole = (tmp_path / "journal.jsonl").read_text()
    (tmp_path / "journal.jsonl").write_text(whole + torn)
    again = Journal(tmp_path)
    assert (tmp_path / "journal.jsonl").read_text() == whole
    again.add_values(300, {"x": 3.5})
    assert lines(tmp_path)[-1]["values"] == {"x": 3.5}


def test_a_journal_of_nothing_but_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"images": 1')
    journal = Journal(tmp_path)
    assert list(journal.lines()) == []
    assert (tmp_path / "journal.jsonl").read_bytes() == b""


def test_each_kind_of_warning_is_recorded_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_values(100, {"train/x": 1.0})
    assert journal.add_warning(100, "saturated", "so")
    assert not journal.add_warning(200, "saturated", "again")
    again = Journal(tmp_path)
    assert not again.add_warning(100, "saturated", "again")
    assert again.add_warning(50, "collapsed", "too")
    again.write_warnings(tmp_path / "warnings.json")
    assert json.loads((tmp_path / "warnings.json").read_text()) == [
        {"images": 100, "kind": "saturated", "text": "so"},
        {"images": 50, "kind": "collapsed", "text": "too"},
    ]
    journal.write_history(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text().split() == ["images,x", "100,1.0"]


def test_no_warnings(tmp_path: Path) -> None:
    Journal(tmp_path).write_warnings(tmp_path / "warnings.json")
    assert json.loads((tmp_path / "warnings.json").read_text()) == []


def test_history_has_the_ticks_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_samples(0, "first.png")
    journal.add_values(100, {"train/generator_loss": 0.1, "train/d_real": 1 / 3})
    journal.add_status(100, "KILLED")
    journal.add_values(200, {"train/generator_loss": 1e-9, "train/new": 5.0})
    journal.write_history(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["images", "generator_loss", "d_real", "new"]
    assert rows[1:] == [["100", "0.1", str(1 / 3), ""], ["200", "1e-09", "", "5.0"]]
    assert float(rows[1][2]) == 1 / 3


def test_history_of_nothing(tmp_path: Path) -> None:
    Journal(tmp_path).write_history(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text().strip() == "images"


def test_whatever_a_power_cut_left_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_values(100, {"x": 1.0})
    whole = journal.path.read_bytes()
    for rest in (bytes(50), bytes(20) + b"\n" + whole, b"7\n", b'"text"\n' + whole, b"\xff\xfe\n"):
        journal.path.write_bytes(whole + rest)
        assert [line["images"] for line in read_lines(tmp_path)] == [100]
        assert journal.path.read_bytes() == whole + rest, "reading changes nothing"
        again = Journal(tmp_path)
        assert journal.path.read_bytes() == whole
        again.add_values(100, {"x": 2.0})
        assert journal.path.read_bytes() == whole
    assert list(read_lines(tmp_path / "other")) == []


def test_a_line_is_on_the_disk_when_it_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    journal = Journal(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: written.append(journal.path.read_bytes()))
    journal.add_values(100, {"x": 1.0})
    assert written == [journal.path.read_bytes()]


def test_no_room_for_a_line(small_disk: Path) -> None:
    journal = Journal(small_disk)
    journal.add_values(100, {"x": 1.0})
    whole = journal.path.read_bytes()
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    values = {f"name{n}": float(n) for n in range(1000)}
    with pytest.raises(
        FullDiskError, match=r"journal.jsonl: No space left on device: it needs 1\d,\d\d\d bytes, and 0 "
    ):
        journal.add_values(200, values)
    assert journal.path.read_bytes() == whole
    filler.unlink()
    journal.add_values(200, values)
    assert [line["images"] for line in journal.lines()] == [100, 200]


def test_no_room_for_the_journal_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal(tmp_path)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(FullDiskError):
        journal.add_status(0, "FAILED")
    assert not journal.path.exists()
