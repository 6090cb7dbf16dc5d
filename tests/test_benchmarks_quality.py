"""The tables in the docs are those of the results that are kept."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def test_the_docs_show_the_results_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import quality

    results = json.loads((ROOT / "benchmarks" / "results" / "quality.json").read_text(encoding="utf-8"))

    assert quality.tables(results) in (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for of in results["experiments"].values():
        assert len(of["seeds"]) >= 3
        for statistic in of["metrics"].values():
            assert statistic["mean"] == pytest.approx(np.mean(statistic["values"]))
            assert statistic["deviation"] == pytest.approx(np.std(statistic["values"], ddof=1), abs=1e-9)
