import csv
import json
import time
from pathlib import Path

import pytest

from ganflow.training.journal import Journal


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
