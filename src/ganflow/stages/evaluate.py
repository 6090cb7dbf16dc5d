"""The third stage: trained weights to metrics with their protocol, and pictures to look at."""

import csv
import json
from math import isqrt
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ganflow.data.grid import save_grid
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation.discriminator import DiscriminatorScores, logits, score_discriminator
from ganflow.evaluation.extractor import load_extractor
from ganflow.evaluation.fid import REALS, FidScores, count_images, score_fid
from ganflow.evaluation.sampling import generate, real_batches
from ganflow.models.game import Game
from ganflow.params import Params
from ganflow.tracking.evaluations import log_evaluation
from ganflow.tracking.runs import write_run
from ganflow.tracking.store import connect
from ganflow.training.device import pick_device
from ganflow.training.weights import load_game

METRICS_FILE = "metrics.json"
PROTOCOL_FILE = "protocol.json"
SAMPLES_FILE = "samples.png"
COMPARISON_FILE = "real_and_generated.png"

# Not params.seed: runs that differ in their seed alone are to be measured alike.
_FID_SEED = 0
_DISCRIMINATOR_SEED = 1  # fresh fakes, not those of the FID
_SIDE = 10  # pictures in a row of a grid
_RECENT_TICKS = 10


def evaluate(params: Params, prepared: Path, trained: Path, out: Path) -> dict[str, Any]:
    """Measure the model in `trained`, log what came out to its run in MLflow, and return the metrics.

    Raises UserError.
    """
    card = PackedData(prepared).card
    connect()  # better known before the measuring than after it
    metrics = measure(params, prepared, trained, out)
    write_run(out, log_evaluation(params, card, trained, out))
    return metrics


def measure(params: Params, prepared: Path, trained: Path, out: Path) -> dict[str, Any]:
    """Measure the weights in `trained` on the data in `prepared`; write into the folder `out` and return the metrics.

    FID, its floor and its ceiling are of the averaged generator, the discriminator's accuracy and AUC are against the
    live one. Writes metrics.json (flat), protocol.json, samples.png and real_and_generated.png; a failure leaves what
    was there before. Raises UserError.
    """
    device = pick_device(params.train.device)
    packed = PackedData(prepared)
    n = count_images(packed, params.evaluate.images)
    extractor = load_extractor(params.evaluate, prepared, device)
    averaged, live = load_game(trained, "ema", device), load_game(trained, "live", device)
    samples = next(generate(averaged, _SIDE**2, _SIDE**2, _FID_SEED)).cpu()
    _require_like(samples, packed, trained)

    batch_size = params.evaluate.batch_size
    fid = score_fid(
        packed,
        extractor,
        averaged,
        _untrained(params, packed, device),
        n=n,
        batch_size=batch_size,
        seed=_FID_SEED,
    )
    discriminator = score_discriminator(
        logits(live.discriminator, real_batches(packed.images(REALS)[:n], batch_size), device),
        logits(live.discriminator, generate(live, n, batch_size, _DISCRIMINATOR_SEED), device),
    )
    metrics = {**_fid_metrics(fid), **_discriminator_metrics(discriminator), **_recent(trained), "images": n}

    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".new-") as folder:
        staging = Path(folder)
        save_grid(samples, staging / SAMPLES_FILE, columns=_SIDE)
        _save_comparison(torch.from_numpy(packed.images(REALS)[: _SIDE**2].copy()), samples, staging / COMPARISON_FILE)
        protocol = {**fid.protocol.to_dict(), "digest": fid.protocol.digest}
        _write_json(protocol, staging / PROTOCOL_FILE)
        _write_json(metrics, staging / METRICS_FILE)
        for name in (SAMPLES_FILE, COMPARISON_FILE, PROTOCOL_FILE, METRICS_FILE):
            (staging / name).replace(out / name)
    return metrics


def _untrained(params: Params, packed: PackedData, device: torch.device) -> Game:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_FID_SEED)
        return params.model.build(packed.card.channels, packed.card.resolution).to(device)


def _require_like(samples: Tensor, packed: PackedData, trained: Path) -> None:
    made, prepared = tuple(samples.shape[1:]), tuple(packed.images(REALS).shape[1:])
    if made != prepared:
        raise UserError(
            f"{trained}: the generator makes pictures of (channels, height, width) {made}, but the prepared data set "
            f"has {prepared}; train again"
        )


def _fid_metrics(scores: FidScores) -> dict[str, float]:
    return {"fid": scores.fid, "fid_floor": scores.floor, "fid_ceiling": scores.ceiling}


def _discriminator_metrics(scores: DiscriminatorScores) -> dict[str, float]:
    return {
        "discriminator_accuracy": scores.accuracy,
        "discriminator_accuracy_real": scores.accuracy_real,
        "discriminator_accuracy_fake": scores.accuracy_fake,
        "discriminator_accuracy_low": scores.accuracy_interval.low,
        "discriminator_accuracy_high": scores.accuracy_interval.high,
        "discriminator_auc": scores.auc,
        "discriminator_auc_low": scores.auc_interval.low,
        "discriminator_auc_high": scores.auc_interval.high,
    }


def _recent(trained: Path) -> dict[str, float]:
    """Average the accuracy on training batches over the last ticks: it swings, and the end may be one extreme."""
    try:
        with (trained / "history.csv").open(newline="", encoding="utf-8") as file:
            values = [row["batch_accuracy"] for row in csv.DictReader(file) if row.get("batch_accuracy")]
        recent = [float(value) for value in values[-_RECENT_TICKS:]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{trained / 'history.csv'}: is not a history of ganflow ({error}); train again") from None
    return {"discriminator_batch_accuracy_recent": fmean(recent)} if recent else {}


def _save_comparison(real: Tensor, generated: Tensor, path: Path) -> None:
    """Write real pictures left and generated ones right of a white gap, in a square each."""
    side = isqrt(len(real))
    shape = (side, side, *real.shape[1:])
    rows = [pictures[: side**2].reshape(shape) for pictures in (real, generated)]
    gap = torch.full_like(rows[0][:, :1], 255)
    save_grid(torch.cat([rows[0], gap, rows[1]], dim=1).flatten(0, 1), path, columns=2 * side + 1)


def _write_json(tree: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(tree, indent=2, allow_nan=False) + "\n", encoding="utf-8")
