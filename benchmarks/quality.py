"""How good the families are on small real data: several seeds of each experiment, trained and evaluated alike.

    python benchmarks/quality.py --mnist FOLDER [--work build/quality] [--seeds 0 1 2] [--only digits-mlp ...]
    python benchmarks/quality.py --tables

Each training is a run of its own below --work and is not repeated: a killed benchmark goes on where it was. Writes
benchmarks/results/quality.json; --tables prints it as Markdown, as docs/evaluation.md shows it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from machine import describe

from ganflow.tracking.summary import round_together

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results" / "quality.json"
_LOW_IS_GOOD = ("fid", "kid", "modes_kl")
_ENDS = ("_floor", "_ceiling", "_low", "_high")
EXPERIMENTS = ("digits-mlp", "digits-dcgan", "mnist-mlp", "mnist-dcgan")


def main() -> int:
    """Train what is missing, evaluate everything, and write the results; or print those that there are."""
    options = _options()
    if options.tables:
        print(tables(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return 0
    results = {}
    for experiment in options.only:
        folders = [_trained(options.work, experiment, seed, options.mnist) for seed in options.seeds]
        results[experiment] = _summary([_evaluated(folder) for folder in folders], options.seeds)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": describe(), "experiments": results}, indent=2) + "\n", encoding="utf-8")
    print(tables(json.loads(RESULTS.read_text(encoding="utf-8"))))
    return 0


def tables(results: Mapping[str, Any]) -> str:
    """Show the results in Markdown, a table a data set: each family, and between which ends it lies."""
    texts = []
    for data in dict.fromkeys(name.partition("-")[0] for name in results["experiments"]):
        columns = {name: of for name, of in results["experiments"].items() if name.startswith(f"{data}-")}
        families = [name.partition("-")[2] for name in columns]
        first = next(iter(columns.values()))["metrics"]
        names = [name for name in first if not name.endswith(_ENDS)]
        lines = [
            f"| {data} | training pictures | {' | '.join(f'{name} | untrained' for name in families)} |",
            f"|---|{'---:|' * (1 + 2 * len(families))}",
        ]
        for name in names:
            best, worst = ("floor", "ceiling") if name in _LOW_IS_GOOD else ("ceiling", "floor")
            cells = [_plain(first.get(f"{name}_{best}"))]
            for of in columns.values():
                found = of["metrics"].get(name)
                cells += [_shown(found) if found else "", _plain(of["metrics"].get(f"{name}_{worst}"))]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        texts.append("\n".join(lines))
    return "\n\n".join(texts)


def _shown(of: Mapping[str, Any]) -> str:
    mean, deviation = round_together(of["mean"], of["deviation"])
    return f"{mean} ± {deviation}" if of["deviation"] else mean


def _plain(of: Mapping[str, Any] | None) -> str:
    return "" if of is None else f"{of['mean']:.3g}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and evaluate several seeds of each experiment.")
    parser.add_argument("--mnist", type=Path, default=Path("data/raw"), metavar="FOLDER", help="data.root of MNIST")
    parser.add_argument("--work", type=Path, default=Path("build/quality"), metavar="FOLDER", help="build/quality")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="0 1 2")
    parser.add_argument(
        "--only", nargs="+", default=EXPERIMENTS, choices=EXPERIMENTS, metavar="NAME", help="experiments"
    )
    parser.add_argument("--tables", action="store_true", help="print the results that there are")
    return parser.parse_args()


def _trained(work: Path, experiment: str, seed: int, mnist: Path) -> Path:
    """Prepare and train in a folder of its own, unless that was done."""
    folder = (work / f"{experiment}-{seed}").resolve()
    if (folder / "artifacts" / "train" / "run.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(REPOSITORY / "experiments", folder / "experiments", dirs_exist_ok=True)
    settings = [f"seed={seed}", *([f"data.root={mnist.resolve()}"] if experiment.startswith("mnist") else [])]
    _ganflow(folder, "experiment", experiment, *(f"-S{setting}" for setting in settings))
    _ganflow(folder, "prepare")
    _ganflow(folder, "train")
    return folder


def _evaluated(folder: Path) -> dict[str, Any]:
    _ganflow(folder, "evaluate")
    metrics: dict[str, Any] = json.loads((folder / "artifacts" / "evaluate" / "metrics.json").read_text("utf-8"))
    return metrics


def _ganflow(folder: Path, *arguments: str) -> None:
    print(f"{folder.name}: ganflow {' '.join(arguments)}", flush=True)
    command = [str(Path(sys.executable).with_name("ganflow")), *arguments]
    subprocess.run(command, cwd=folder, env={**os.environ, "MLFLOW_TRACKING_URI": ""}, check=True)


def _summary(scores: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Mean, sample deviation and the values of each metric, over the seeds that have one."""
    numbers: dict[str, list[float]] = {}
    for score in scores:
        for name, value in score.items():
            if isinstance(value, int | float):
                numbers.setdefault(name, []).append(float(value))
    return {
        "seeds": list(seeds),
        "metrics": {
            name: {
                "mean": fmean(values),
                "deviation": stdev(values) if len(values) > 1 else None,
                "values": values,
            }
            for name, values in numbers.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
