"""How many of Stacked MNIST's 1000 modes each family makes, after equally many images.

    python benchmarks/modes.py --mnist FOLDER [--only dcgan r3gan] [--set train.images=N ...] [--work build/modes]
    python benchmarks/modes.py --table

Trains experiments/stacked_mnist-*.yaml one after the other by the training loop alone, so that it runs wherever torch
does: there is no DVC and no MLflow in it. Killed, it goes on where it was; with other settings it is another training.
A training's results are written to benchmarks/results/modes.json as it ends, each with the machine that it ran on;
--table prints them as Markdown, as docs/evaluation.md shows them.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import describe

from ganflow.data.batches import Batches
from ganflow.data.packed import PackedData
from ganflow.evaluation.classes import ClassTally, class_divergence, modes
from ganflow.evaluation.extractor import load_extractor, load_labeller
from ganflow.evaluation.fid import distance, feature_moments
from ganflow.evaluation.sampling import generate, real_batches
from ganflow.experiments import resolve
from ganflow.params import Params
from ganflow.stages.prepare import prepare
from ganflow.training import loop
from ganflow.training.device import pick_device
from ganflow.training.journal import Journal
from ganflow.training.match import Match
from ganflow.training.state import state_digest

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results" / "modes.json"
_PREFIX = "stacked_mnist-"
FAMILIES = tuple(sorted(path.stem.removeprefix(_PREFIX) for path in REPOSITORY.glob(f"experiments/{_PREFIX}*.yaml")))
_MEASURED = 26_000  # pictures, as in the literature
_BATCH = 500


def main() -> int:
    """Train and measure what is asked for, or print the results that there are."""
    options = _options()
    if not options.table:
        for family in options.only:
            overrides = [f"data.root={options.mnist.resolve()}", f"seed={options.seed}", *options.set]
            params = resolve(_PREFIX + family, overrides, REPOSITORY / "experiments")
            result = {**_run(params, options.work), "set": options.set}
            _keep(f"{family}-{params.train.images}-{params.seed}-{result['decides']}", result)
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))
    return 0


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Show the results in Markdown, a row a training."""
    lines = [
        "| family | images | batch | seed | modes of 1000 | KL | FID | images/s | machine |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for of in sorted(results.values(), key=lambda of: (of["images"], of["family"], of["seed"])):
        machine = of["machine"].get("gpu", f"{of['machine']['cpu']}, threads: {of['machine']['threads']}")
        lines.append(
            f"| {of['family']} | {of['images']:,} | {of['batch_size']} | {of['seed']} | {of['modes']} "
            f"| {of['modes_kl']:.3f} | {of['fid']:.3g} | {of['images_per_second']:,.0f} | {machine} |"
        )
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, default=Path("data/raw"), metavar="FOLDER", help="data.root of MNIST")
    parser.add_argument("--work", type=Path, default=Path("build/modes"), metavar="FOLDER", help="build/modes")
    parser.add_argument("--only", nargs="+", default=FAMILIES, choices=FAMILIES, metavar="FAMILY", help="families")
    parser.add_argument("--seed", type=int, default=0, help="0")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY.PATH=VALUE", help="parameters for all of them")
    parser.add_argument("--table", action="store_true", help="print the results that there are")
    return parser.parse_args()


def _run(params: Params, work: Path) -> dict[str, Any]:
    """Train, from the last checkpoint where there is one, and measure the averaged generator."""
    data = hashlib.sha256(json.dumps(asdict(params.data)).encode()).hexdigest()[:8]
    prepared = work / f"prepared-{data}"
    if not prepared.exists():
        prepare(params, prepared)
    packed, device = PackedData(prepared), pick_device(params.train.device)
    match = _match(params, packed, device)
    decides = state_digest(params, packed.card)[:8]
    state = work / f"{params.model.family}-{decides}"
    state.mkdir(parents=True, exist_ok=True)
    inputs = match.game.draw_inputs(loop.SAMPLES, torch.Generator().manual_seed(params.seed))
    journal = Journal(state)
    loop.train(match, inputs, state, journal, lambda: False)
    rates = [line["values"]["train/images_per_second"] for line in journal.lines() if "values" in line]
    return {
        "family": params.model.family,
        "decides": decides,
        "images": params.train.images,
        "seed": params.seed,
        "batch_size": params.train.batch_size,
        "precision": match.precision,
        "data": packed.card.digest,
        **_scores(match, packed),
        "images_per_second": median(rates),
        "machine": describe(),
    }


def _match(params: Params, packed: PackedData, device: torch.device) -> Match:
    torch.manual_seed(params.seed)
    game = params.model.build(packed.card.channels, packed.card.resolution, packed.card.class_count)
    images, labels = packed.images("train"), packed.labels("train")
    batches = Batches(images, labels, params.train.batch_size, params.seed, device)
    return Match(game, batches, params.train, device)


def _scores(match: Match, packed: PackedData) -> dict[str, float | None]:
    """Count the modes among generated pictures, and compare them with as many of the test split."""
    n, network = min(_MEASURED, packed.card.splits["test"].count), match.average.network
    labeller, labels = load_labeller(packed.folder, match.device), packed.labels("test")
    extractor = load_extractor("classifier", "", packed.folder, match.device)
    assert labeller is not None
    assert labels is not None
    tally = ClassTally()
    for batch in generate(match.game, n, _BATCH, 0, network):
        tally.update(labeller(batch))
    made = feature_moments(generate(match.game, n, _BATCH, 0, network), extractor)
    real = feature_moments(real_batches(packed.images("test"), _BATCH, n), extractor)
    counts = torch.bincount(torch.from_numpy(labels[:n].copy()), minlength=packed.card.class_count)
    return {
        "modes": modes(tally.counts),
        "modes_kl": class_divergence(tally.counts, counts),
        "fid": distance(made, real),
    }


def _keep(name: str, result: Mapping[str, Any]) -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**results, name: result}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
