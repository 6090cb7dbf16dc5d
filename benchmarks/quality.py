"""How good the families are on small real data: several seeds of each experiment, trained and evaluated alike.

    python benchmarks/quality.py --mnist FOLDER [--seeds 0 1 2] [--only digits-mlp ...] [--set train.images=200000 ...]
                                 [--results quality] [--work build/quality]
    python benchmarks/quality.py --tables [--results quality]

Each training is a run of its own below --work and is not repeated: a killed benchmark goes on where it was (trials.py).
Writes benchmarks/results/quality.json; --tables prints it as Markdown, as docs/evaluation.md shows it. A comparison of
another kind, such as one at equal images by --set, has results of its own name.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import trials
from machine import describe
from trials import Trial

from ganflow.errors import UserError
from ganflow.tracking.summary import round_together

_LOW_IS_GOOD = ("fid", "kid", "modes_kl")
_ENDS = ("_floor", "_ceiling", "_low", "_high")
EXPERIMENTS = ("digits-mlp", "digits-dcgan", "mnist-mlp", "mnist-dcgan")


def main() -> int:
    """Train what is missing, evaluate everything, and write the results; or print those that there are."""
    parser = _parser()
    options = parser.parse_args()
    file = trials.RESULTS / f"{options.results}.json"
    if not options.tables:
        try:
            planned = {name: [_plan(options, name, seed) for seed in options.seeds] for name in options.only}
        except UserError as error:
            parser.error(str(error))
        results = {}
        for name, of in planned.items():
            for trial in of:
                trials.run(trial)
            results[name] = _summary([trial.metrics for trial in of], options.seeds)
        trials.write_json(file, {"machine": describe(), "set": options.set, "experiments": results})
    print(tables(trials.read_json(file)))
    return 0


def tables(results: Mapping[str, Any]) -> str:
    """Show the results in Markdown, a table a data set: each family, and between which ends it lies."""
    texts = []
    for data in dict.fromkeys(name.partition("-")[0] for name in results["experiments"]):
        columns = {name: of for name, of in results["experiments"].items() if name.startswith(f"{data}-")}
        families = [name.partition("-")[2] for name in columns]
        first = next(iter(columns.values()))["metrics"]
        names = dict.fromkeys(name for of in columns.values() for name in of["metrics"] if not name.endswith(_ENDS))
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


def _parser() -> argparse.ArgumentParser:
    what = "Train and evaluate several seeds of each experiment."
    parser = trials.options(what, trials.experiments(), EXPERIMENTS)
    parser.add_argument("--mnist", type=Path, default=Path("data/raw"), metavar="FOLDER", help="data.root of MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="0 1 2")
    parser.add_argument("--results", default="quality", metavar="NAME", help="quality: benchmarks/results/quality.json")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="build/NAME")
    return parser


def _plan(options: argparse.Namespace, experiment: str, seed: int) -> Trial:
    root = [f"data.root={options.mnist.resolve()}"] if experiment.startswith("mnist") else []
    work = options.work or Path("build", options.results)
    return trials.plan(experiment, work / f"{experiment}-{seed}", [*root, *options.set, f"seed={seed}"])


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
