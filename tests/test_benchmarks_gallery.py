"""The page shows the results and pictures that are kept, of the experiments as they are; and a gallery fills one."""

import csv
import json
import re
import shutil
import sys
from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from noise_folder import fill_with_noise
from safetensors import safe_open

from ganflow.params import read_tree

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OVERLAYS = sorted((ROOT / "experiments").glob("digits-*.yaml"))


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gallery

    return gallery


def test_the_page_shows_the_results_that_are_kept(gallery: ModuleType) -> None:
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "benchmarks" / "results" / "gallery.json").read_text(encoding="utf-8"))

    assert gallery.with_table(page, gallery.table(results)) == page


def test_the_results_are_of_the_experiments_as_they_are() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "gallery.json").read_text(encoding="utf-8"))

    assert sorted(results) == [path.stem for path in OVERLAYS]
    for path in OVERLAYS:
        found, now = results[path.stem]["overlay"], read_tree(path)
        assert {**found, "register": None} == {**now, "register": None}, f"make gallery: {path.stem} has changed"
        assert results[path.stem]["set"] == []


def test_every_picture_is_shown_and_small() -> None:
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    shown = [DOCS / path for path in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)]

    assert sorted(shown) == sorted((DOCS / "pictures" / "gallery").iterdir())
    assert {path.stem for path in OVERLAYS} <= {path.stem for path in shown}
    assert all(path.stat().st_size < 100_000 for path in shown)


def test_the_order_is_that_of_the_pages_headings(gallery: ModuleType) -> None:
    page = "# All: `c`\n\n## One: `b-x`\n\nbeside `a`\n\n## Two: `b`\n"

    assert gallery.ordered(["a", "b", "b-x", "aa", "c"], page) == ["c", "b-x", "b", "a", "aa"]


def test_a_table_takes_the_place_of_the_one_before(gallery: ModuleType) -> None:
    page = f"above\n{gallery.BEGINNING}\n{gallery.END}\nbelow\n"
    once = gallery.with_table(page, "| one |")

    assert once == f"above\n{gallery.BEGINNING}\n\n| one |\n\n{gallery.END}\nbelow\n"
    assert gallery.with_table(gallery.with_table(page, "| other |"), "| one |") == once
    with pytest.raises(ValueError, match="substring"):
        gallery.with_table("a page without marks", "| one |")


@pytest.mark.slow
def test_a_gallery_fills_its_page(
    gallery: ModuleType,
    tmp_path: Path,
    mlflow_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page, results, pictures = tmp_path / "page.md", tmp_path / "gallery.json", tmp_path / "pictures"
    above = f"# Two\n\n{gallery.BEGINNING}\n{gallery.END}\n\n## No game: `digits-vae`\n\n## Told: `digits-cgan`\n"
    page.write_text(above, encoding="utf-8")
    for name, path in {"PAGE": page, "RESULTS": results, "PICTURES": pictures}.items():
        monkeypatch.setattr(gallery, name, path)
    for name in ("digits-vae", "digits-cgan"):
        (tmp_path / "work" / name).mkdir(parents=True)
        shutil.copyfile(mlflow_database, tmp_path / "work" / name / "mlflow.db")
    overrides = [*fill_with_noise(tmp_path / "raw"), "model.width=4"]
    arguments = ["--work", str(tmp_path / "work"), "--set", *overrides, "--only", "digits-cgan", "digits-vae"]
    monkeypatch.setattr(sys, "argv", ["gallery.py", *arguments])

    assert gallery.main() == 0

    said = capsys.readouterr().out
    assert said.count("ganflow prepare") == 1
    assert said.index("digits-vae: ganflow train") < said.index("digits-cgan: ganflow train")
    rows = json.loads(results.read_text(encoding="utf-8"))
    assert list(rows) == ["digits-vae", "digits-cgan"]
    for name, row in rows.items():
        trained, evaluated = (tmp_path / "work" / name / "artifacts" / stage for stage in ("train", "evaluate"))
        assert row["parameters"] == {
            path.stem: _parameters(path) for path in (trained / "best").glob("*[!e].safetensors")
        }
        with (trained / "history.csv").open(encoding="utf-8") as file:
            rates = [float(tick["images_per_second"]) for tick in csv.DictReader(file)]
        assert row["images_per_second"] == pytest.approx(np.median(rates))
        assert row["images"] == 960
        assert row["best_images"] == json.loads((evaluated / "measured.json").read_text(encoding="utf-8"))["images"]
        assert row["metrics"] == json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))
        assert (pictures / f"{name}.png").read_bytes() == (evaluated / "samples.png").read_bytes()
    assert sorted(path.name for path in pictures.iterdir()) == [
        "digits-cgan-labels.png",
        "digits-cgan.png",
        "digits-vae.png",
    ]
    shown = page.read_text(encoding="utf-8")
    assert shown == gallery.with_table(above, gallery.table(rows))
    assert "| none | none |" in shown
    assert "vae has neither accuracy nor AUC: a variational autoencoder has no discriminator." in shown
    agreement = rows["digits-cgan"]["metrics"]["label_agreement"]
    assert f"sees the label asked for in {100 * agreement:.1f} % of its pictures." in shown


def _parameters(path: Path) -> int:
    """Count the numbers in a file of weights, without what batch norm keeps beside its parameters."""
    with safe_open(path, framework="np") as file:
        names = [name for name in file.keys() if "running_" not in name and "num_batches" not in name]  # noqa: SIM118
        return sum(prod(file.get_slice(name).get_shape()) for name in names)
