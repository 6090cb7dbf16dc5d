import json
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "training_speed.json").read_text(encoding="utf-8"))


def test_the_ratio_is_that_of_the_turns_that_are_recorded() -> None:
    rates = [RESULTS["ways"][way]["rate"]["values"] for way in ("ganflow", "tutorial")]
    assert len(rates[0]) == len(rates[1]) == len(RESULTS["seeds"]) == 3
    assert RESULTS["speed_up"] == pytest.approx(fmean(ours / theirs for ours, theirs in zip(*rates, strict=True)))


def test_the_page_says_what_was_measured() -> None:
    page = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
    for way in ("ganflow", "tutorial"):
        assert f"{RESULTS['ways'][way]['rate']['mean']:.0f}" in page
        assert f"{RESULTS['ways'][way]['fid']['mean']:.1f} ± {RESULTS['ways'][way]['fid']['deviation']:.1f}" in page
    assert f"**{RESULTS['speed_up']:.2f} times**" in page
