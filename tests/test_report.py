"""Pages and summaries as a browser and a Markdown reader take them, without anything beside them."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ganflow import report
from ganflow.data.card import DataCard, Skipped, SplitCard
from ganflow.tracking.sweeps import Trial

NASTY = """<script>alert("1")</script> & '<img src=x>'"""
HISTORY = (
    "images,generator_loss,discriminator_loss,d_real,d_fake,generator_grad_norm,discriminator_grad_norm,sample_variety,"
    "validation_fid,best_fid\n"
    "100,0.7,1.4,0.5,0.5,2,3,0.2,9,9\n"
    "200,0.9,1.1,0.6,0.4,1,4,0.8,10,9\n"
)
OPEN = {"meta", "img"}  # elements that have no end


class Page(HTMLParser):
    """What a browser would show of a page, and everything that it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.shown = ""
        self.title = ""
        self.rows: list[list[str]] = []
        self._inside: list[str] = []
        self.feed(text)
        self.close()
        assert self._inside == [], "every element is closed"
        assert "://" not in text
        assert "url(" not in text
        assert set(self.tags).isdisjoint({"script", "link", "iframe", "a", "object", "embed", "base"})

    @property
    def pictures(self) -> list[bytes]:
        """Contents of the images, all of which must lie in the page."""
        assert all(re.match(r"data:image/png;base64,", source) for source in self.loads)
        return [base64.b64decode(source.partition(",")[2], validate=True) for source in self.loads]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "background"}]
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag not in OPEN:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag

    def handle_data(self, data: str) -> None:
        if "title" in self._inside:
            self.title += data
        elif "style" not in self._inside:
            self.shown += data
        if self._inside and self._inside[-1] in {"td", "th"}:
            self.rows[-1][-1] += data


def png(level: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (16, 8), level).save(content, "png")
    return content.getvalue()


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    (tmp_path / "samples").mkdir()
    (tmp_path / "history.csv").write_text(HISTORY)
    return tmp_path


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    (tmp_path / "real_and_generated.png").write_bytes(png(9))
    (tmp_path / "nearest_pairs.png").write_bytes(png(7))
    metrics = {
        "fid": 12.345678,
        "fid_floor": 1.5,
        "fid_ceiling": 400.0,
        "kid": None,
        "discriminator_accuracy": 0.5,
        "discriminator_accuracy_low": 0.45,
        "discriminator_accuracy_high": 0.55,
        "images": 200,
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "protocol.json").write_text(json.dumps({"extractor": NASTY, "reals": 500}))
    return tmp_path


# A training


def test_a_training_shows_its_last_samples_and_its_curves(trained: Path) -> None:
    for thousands in (16, 3, 20, 0, 1, 19):
        (trained / "samples" / f"{thousands * 1000:09d}.png").write_bytes(png(thousands))
    page = Page(report.training_page(trained, "digits-8px, vanilla"))
    samples, curves = page.pictures
    assert samples == png(20)
    assert "Samples after 20,000 images" in page.shown
    assert page.title == "digits-8px, vanilla"
    with Image.open(io.BytesIO(curves)) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > picture.height > 100


def test_the_last_samples_are_those_of_the_highest_count(trained: Path) -> None:
    for level, images in enumerate((999_000_000, 1_000_000_000)):
        (trained / "samples" / f"{images:09d}.png").write_bytes(png(level))
    assert Page(report.training_page(trained, "long")).pictures[0] == png(1)


def test_the_curves_show_the_history(trained: Path) -> None:
    """Another history gives another picture, and each column counts."""
    first = Page(report.training_page(trained, "one")).pictures
    assert first == Page(report.training_page(trained, "one")).pictures
    seen = set(first)
    for column in range(1, 10):
        rows = [line.split(",") for line in HISTORY.splitlines()]
        rows[2][column] = "0.05"
        (trained / "history.csv").write_text("\n".join(",".join(row) for row in rows))
        seen.update(Page(report.training_page(trained, "other")).pictures)
    assert len(seen) == 10


@pytest.mark.parametrize(
    "history",
    [
        "images,generator_loss\n100,0.7\n",
        "images,generator_loss,d_real\n100,,\n200,0.5,\n",
        "images,something_else\n100,1\n",
        "images,generator_loss\n100,nan\n200,inf\n",
        "images\n100\n",
    ],
)
def test_a_history_without_some_of_its_values(trained: Path, history: str) -> None:
    (trained / "history.csv").write_text(history)
    (curves,) = Page(report.training_page(trained, "a title")).pictures
    Image.open(io.BytesIO(curves)).verify()


@pytest.mark.parametrize("history", ["", "images,generator_loss\n"])
def test_a_training_that_left_neither_values_nor_samples(trained: Path, history: str) -> None:
    (trained / "history.csv").write_text(history)
    page = Page(report.training_page(trained, "a title"))
    assert page.pictures == []
    assert page.shown.strip() == "a title"


def test_a_training_shows_what_went_wrong(trained: Path) -> None:
    warnings = [{"images": 12000, "kind": "saturated", "text": "the discriminator wins"}, {"images": 9, "text": NASTY}]
    (trained / "warnings.json").write_text(json.dumps(warnings))
    page = Page(report.training_page(trained, "a title"))
    assert "At 12,000 images, the discriminator wins." in page.shown
    assert f"At 9 images, {NASTY}." in page.shown
    (trained / "warnings.json").write_text("[]")
    assert "At " not in Page(report.training_page(trained, "a title")).shown


# An evaluation


def test_an_evaluation_shows_its_picture_its_metrics_and_how_they_came_about(evaluated: Path) -> None:
    page = Page(report.evaluation_page(evaluated, "digits-8px, vanilla"))
    assert page.pictures == [png(9), png(7)]
    assert page.rows[:5] == [
        ["metric", "value", "floor to ceiling", "95 % interval"],
        ["fid", "12.35", "1.5 to 400", ""],
        ["kid", "no value", "", ""],
        ["discriminator_accuracy", "0.5", "", "0.45 to 0.55"],
        ["images", "200", "", ""],
    ]
    assert ["reals", "500"] in page.rows
    assert "too few" not in page.shown


def test_a_caution_stands_above_the_metrics(evaluated: Path) -> None:
    (evaluated / "metrics.json").write_text(json.dumps({"fid": 1.0, "caution": f"too few, {NASTY}"}))
    page = Page(report.evaluation_page(evaluated, "a title"))
    assert f"too few, {NASTY}" in page.shown
    assert page.rows[1] == ["fid", "1", "", ""]


def test_the_reason_for_metrics_without_a_value_stands_above_them(evaluated: Path) -> None:
    reason = f"has no discriminator, {NASTY}"
    metrics = {"fid": 1.0, "discriminator_auc": None, "no_discriminator": reason, "caution": "too few"}
    (evaluated / "metrics.json").write_text(json.dumps(metrics))
    page = Page(report.evaluation_page(evaluated, "a title"))
    assert page.shown.index("too few") < page.shown.index(reason) < page.shown.index("discriminator_auc")
    assert page.rows[1:3] == [["fid", "1", "", ""], ["discriminator_auc", "no value", "", ""]]


def test_what_a_family_shows_of_its_own_comes_after_the_samples(evaluated: Path) -> None:
    (evaluated / "sheets").mkdir()
    (evaluated / "sheets" / "truncation.png").write_bytes(png(2))
    (evaluated / "sheets" / "style_mixing.png").write_bytes(png(1))
    page = Page(report.evaluation_page(evaluated, "a title"))
    assert page.pictures == [png(9), png(1), png(2), png(7)]
    assert page.shown.index("Style mixing") < page.shown.index("Truncation") < page.shown.index("Metrics")


def test_a_metric_without_a_value_says_so(evaluated: Path) -> None:
    assert ["kid", "no value", "", ""] in Page(report.evaluation_page(evaluated, "a title")).rows


def test_titles_and_values_are_text_and_nothing_else(evaluated: Path, tmp_path: Path) -> None:
    page = Page(report.evaluation_page(evaluated, NASTY))
    assert page.title == NASTY
    assert NASTY in page.shown
    assert ["extractor", NASTY] in page.rows
    (tmp_path / "history.csv").write_text("")
    assert Page(report.training_page(tmp_path, NASTY)).title == NASTY


# A sweep


def test_a_sweep_lists_its_trials_the_lowest_fid_first() -> None:
    trials = [
        Trial("run-a", ["train.beta1=0.1"], 30.0),
        Trial("run-b", ["train.beta1=0.2", "seed=2"], None),
        Trial("run-c", [], 0.0),
        Trial("run-d", [f"tracking.experiment={NASTY}"], 20.0),
    ]
    page = Page(report.sweep_page(trials, trials[2]))
    head, *rows = page.rows
    assert head == ["changed", "FID", "MLflow run"]
    assert rows == [
        ["as in params.yaml ★", "0", "run-c"],
        [f"tracking.experiment={NASTY}", "20", "run-d"],
        ["train.beta1=0.1", "30", "run-a"],
        ["train.beta1=0.2 seed=2", "no value", "run-b"],
    ]
    assert page.loads == []


# Markdown


def table(markdown: str) -> dict[str, str]:
    """Rows of the only table, as GitHub's Markdown has them: every line has two cells."""
    title, blank, *lines = markdown.removesuffix("\n").split("\n")
    assert title.startswith("# ")
    assert blank == ""
    cells = [re.fullmatch(r"\|([^|]*)\|([^|]*)\|", line) for line in lines]
    assert all(cells), markdown
    assert lines[1] == "|---|---|"
    return {found[1].strip(): found[2].strip() for found in (*cells[:1], *cells[2:]) if found}


@pytest.fixture
def result() -> dict[str, Any]:
    return {
        "model": "digits-8px",
        "version": "3",
        "alias": "champion",
        "reason": "passed the gate with FID 12.3; there was no champion",
        "fid": 12.345678,
        "run_id": "0" * 32,
        "weights_digest": "sha256:1",
        "data_digest": "sha256:2",
    }


def test_a_registration_says_what_was_decided_and_why(result: dict[str, Any]) -> None:
    rows = table(report.registration_summary(result))
    assert rows["version"] == "digits-8px, version 3"
    assert rows["alias"] == "champion"
    assert rows["reason"] == result["reason"]
    assert rows["FID"] == "12.35"
    assert rows["MLflow run"] == f"`{'0' * 32}`"
    assert (rows["weights"], rows["data"]) == ("`sha256:1`", "`sha256:2`")


def test_a_refused_model_has_no_version(result: dict[str, Any]) -> None:
    rows = table(report.registration_summary({**result, "version": None, "alias": None, "fid": None}))
    assert (rows["version"], rows["alias"], rows["FID"]) == ("none", "none", "no value")


@pytest.mark.parametrize(
    "reason",
    [
        "a | b || c",
        "Error(s):\n\tmissing | key\r\nand more\n",
    ],
)
def test_a_reason_does_not_break_the_table(result: dict[str, Any], reason: str) -> None:
    rows = table(report.registration_summary({**result, "reason": reason}))
    assert len(rows) == 9
    assert re.findall(r"\w+", rows["reason"]) == re.findall(r"\w+", reason)


def test_a_data_card_in_markdown() -> None:
    card = DataCard(
        name="shapes",
        source="image_folder",
        resolution=8,
        channels=3,
        classes=["round", "square | flat"],
        splits={"train": SplitCard(6, None), "validation": SplitCard(1, None), "test": SplitCard(2, None)},
        pictures_a_shard=100,
        mean=[0.1],
        std=[0.3],
        digest="sha256:00",
        skipped=[Skipped("a/b.png", "empty file")],
        converted={},
    )
    text = report.data_summary(card)
    rows = table(text)
    assert text.startswith("# Data set shapes\n")
    assert rows["pictures"] == "6 train, 1 validation, 2 test"
    assert rows["size"] == "8 x 8, 3 channel(s)"
    assert (rows["classes"], rows["left out"], rows["digest"]) == ("2", "1", "`sha256:00`")
