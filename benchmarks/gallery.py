"""What each family makes of the handwritten digits: a sheet of samples and a row of a table, for docs/gallery.md.

    python benchmarks/gallery.py [--only digits-mlp ...] [--set train.images=5000 ...] [--work build/gallery]
    python benchmarks/gallery.py --tables

Trains every experiments/digits-*.yaml, in the order of the page's headings, and keeps what is done: an interrupted
gallery goes on where it was (trials.py). After each training its row goes to benchmarks/results/gallery.json and into
the page, and its pictures to docs/pictures/gallery/; other rows stay as they are. --tables prints those that there are.
"""

import csv
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import trials
from trials import Trial

from ganflow.errors import UserError
from ganflow.params import read_tree
from ganflow.stages.evaluate import NO_DISCRIMINATOR, SAMPLES_FILE, SHEETS
from ganflow.tracking.evaluations import MEASURED_FILE
from ganflow.training.disk import write_whole
from ganflow.training.weights import folder_of, load_game

RESULTS = trials.RESULTS / "gallery.json"
PAGE = trials.REPOSITORY / "docs" / "gallery.md"
PICTURES = PAGE.parent / "pictures" / PAGE.stem
BEGINNING, END = "<!-- benchmarks/gallery.py writes this table -->", "<!-- until here -->"
EXPERIMENTS = trials.experiments("digits-*")


def main() -> int:
    """Train what is missing, evaluate, and put it all on the page; or print the table that there is."""
    parser = trials.options("Train each family on the digits, and show what it makes.", EXPERIMENTS, EXPERIMENTS)
    parser.add_argument("--work", type=Path, default=Path("build/gallery"), metavar="FOLDER", help="build/gallery")
    options = parser.parse_args()
    if not options.tables:
        try:
            names = ordered(options.only, PAGE.read_text(encoding="utf-8"))
            planned = {name: trials.plan(name, options.work / name, options.set) for name in names}
        except UserError as error:
            parser.error(str(error))
        for name, trial in planned.items():
            trials.run(trial)
            _hang(name, trial, options.set)
    print(table(trials.read_json(RESULTS)))
    return 0


def ordered(experiments: Sequence[str], page: str) -> list[str]:
    """Put experiments into the order in which the page's headings name them; those that none names come last."""
    headings = re.findall(r"^#+ .*`([\w-]+)`", page, re.MULTILINE)
    return sorted(experiments, key=lambda name: (headings.index(name) if name in headings else len(headings), name))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Show the results in Markdown, a row for each experiment, with notes on what the numbers do not say."""
    lines = [
        "| family | parameters, G + other | images seen | FID | floor | ceiling | accuracy | AUC | images/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_line(name, row) for name, row in results.items()]
    return "\n".join([*lines, "", *_notes(results)])


def with_table(page: str, shown: str) -> str:
    """Put a table in the place of the one between the page's marks. Raises ValueError where they are not there."""
    beginning, end = page.index(BEGINNING) + len(BEGINNING), page.index(END)
    return f"{page[:beginning]}\n\n{shown}\n\n{page[end:]}"


def _line(name: str, row: Mapping[str, Any]) -> str:
    metrics, parameters = row["metrics"], row["parameters"]
    others = sum(count for network, count in parameters.items() if network != "generator")
    seen = f"{row['images']:,}"
    if row["best_images"] != row["images"]:
        seen = f"{row['best_images']:,} of {seen}"
    cells = [
        f"{row['family']} ([{name}](../experiments/{name}.yaml))",
        f"{parameters['generator']:,} + {others:,}",
        seen,
        *(f"{metrics[metric]:.3g}" for metric in ("fid", "fid_floor", "fid_ceiling")),
        _share(metrics["discriminator_accuracy"]) + ("†" if metrics["discriminator_threshold"] else ""),
        _share(metrics["discriminator_auc"]),
        f"{row['images_per_second']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _notes(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = []
    if any(row["metrics"]["discriminator_threshold"] for row in results.values()):
        notes.append(
            "† at a threshold fitted on training pictures: the scores compare pictures, and no value divides them"
        )
    for row in results.values():
        if reason := row["metrics"].get(NO_DISCRIMINATOR):
            notes.append(f"{row['family']} has neither accuracy nor AUC: {reason}")
        if (agreement := row["metrics"].get("label_agreement")) is not None:
            share = f"{100 * agreement:.1f} % of its pictures"
            notes.append(f"{row['family']}: a classifier of real digits sees the label asked for in {share}")
    machines = dict.fromkeys(_machine(row["machine"]) for row in results.values())
    notes.append(f"images/s: the median over the ticks of the training; {' and '.join(machines)}")
    return [f"- {note}." for note in notes]


def _machine(machine: Mapping[str, str]) -> str:
    parts = [machine["cpu"], f"threads: {machine['threads']}", machine["precision"], f"torch {machine['torch']}"]
    return ", ".join([machine["gpu"], *parts] if "gpu" in machine else parts)


def _hang(name: str, trial: Trial, overrides: Sequence[str]) -> None:
    """Copy a trial's pictures, and add its row to the results and to the page."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(trial.evaluated / SAMPLES_FILE, PICTURES / f"{name}.png")
    for sheet in (trial.evaluated / SHEETS).glob("*.png"):
        shutil.copyfile(sheet, PICTURES / f"{name}-{sheet.name}")
    page = PAGE.read_text(encoding="utf-8")
    rows = trials.read_json(RESULTS) if RESULTS.exists() else {}
    rows[name] = {**_row(trial), "overlay": read_tree(trials.OVERLAYS / f"{name}.yaml"), "set": overrides}
    rows = {known: rows[known] for known in ordered(EXPERIMENTS, page) if known in rows}
    trials.write_json(RESULTS, rows)
    write_whole(PAGE, with_table(page, table(rows)).encode())


def _row(trial: Trial) -> dict[str, Any]:
    """Gather what is known of a trial.

    Parameters are counted in the networks and not in their files, which hold averages and fixed noise beside them.
    """
    weights = folder_of(trial.trained, trial.params.evaluate.checkpoint)
    game = load_game(weights, "ema", torch.device("cpu"))
    with (trial.trained / "history.csv").open(newline="", encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    return {
        "family": trial.params.model.family,
        "parameters": {
            network: sum(parameter.numel() for parameter in of.parameters()) for network, of in game.named_children()
        },
        "images": int(history[-1]["images"]),
        "best_images": trials.read_json(trial.evaluated / MEASURED_FILE)["images"],
        "images_per_second": median(float(row["images_per_second"]) for row in history if row["images_per_second"]),
        "machine": trial.machine,
        "metrics": trial.metrics,
    }


if __name__ == "__main__":
    sys.exit(main())
