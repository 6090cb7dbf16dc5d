"""The third stage: trained weights to metrics with their protocol, and pictures to look at."""

import csv
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isqrt
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ganflow.data.grid import save_grid
from ganflow.data.packed import PackedData
from ganflow.data.quantise import to_uint8
from ganflow.errors import UserError
from ganflow.evaluation.agreement import label_agreement
from ganflow.evaluation.discriminator import DiscriminatorScores
from ganflow.evaluation.extractor import load_extractor, load_labeller
from ganflow.evaluation.folder import FolderPictures
from ganflow.evaluation.opponents import score_opponents
from ganflow.evaluation.sampling import Generated, Pictures
from ganflow.evaluation.scores import REALS, Judge, Metrics, Pair, count_images
from ganflow.models.game import FamilyParams, Game, Sheet
from ganflow.models.inputs import LABEL
from ganflow.params import Params
from ganflow.stages.game import build_game
from ganflow.tracking.evaluations import (
    MEASURED_FILE,
    METRICS_FILE,
    PROTOCOL_FILE,
    log_evaluation,
    log_folder,
)
from ganflow.tracking.runs import RUN_FILE, write_run
from ganflow.tracking.store import connect
from ganflow.training.device import pick_device
from ganflow.training.weights import GENERATORS, folder_of, load_game, read_origin, weights_digest

SAMPLES_FILE = "samples.png"
COMPARISON_FILE = "real_and_generated.png"
PAIRS_FILE = "nearest_pairs.png"
SHEETS = "sheets"
"""Folder of the pictures that a family makes to show what it is for."""
NO_DISCRIMINATOR = "no_discriminator"
"""Key in metrics.json that says why the discriminator's metrics are null, where they are."""
_NO_GAME = "pictures come without a discriminator"

# Not params.seed: runs that differ in their seed alone are to be measured alike.
FAKES_SEED = 0
_QUANTISATION = "uint8: (x * 127.5 + 128) clamped to 0..255, rounded down"
_SIDE = 10  # pictures in a row of a grid
_PAIRS = 20
_PAIRS_IN_A_ROW = 5
_RECENT_TICKS = 10

_log = logging.getLogger("ganflow")


def evaluate(params: Params, prepared: Path, trained: Path, out: Path, states: Path) -> dict[str, Any]:
    """Measure the model in `trained`, log what came out to its run in MLflow, and return the metrics.

    Raises UserError.
    """
    card = PackedData(prepared).card
    connect()  # better known before the measuring than after it
    metrics = measure(params, prepared, trained, out, states)
    write_run(out, log_evaluation(params, card, trained, out))
    return metrics


def measure(params: Params, prepared: Path, trained: Path, out: Path, states: Path) -> dict[str, Any]:
    """Measure the weights in `trained` on the data in `prepared`; write into the folder `out` and return the metrics.

    All scores are of the averaged generator; the discriminator's are against the live one. `evaluate.checkpoint` says
    which weights. `states` keeps the features of real pictures, from one evaluation to the next.
    Writes metrics.json (flat), protocol.json, measured.json and pictures; a failure leaves what was there before.
    Raises UserError.
    """
    device = pick_device(params.train.device)
    packed = PackedData(prepared)
    weights = folder_of(trained, params.evaluate.checkpoint)
    averaged, live = load_game(weights, "ema", device), load_game(weights, "live", device)
    origin = read_origin(weights / GENERATORS["ema"])
    generated = Generated(averaged, FAKES_SEED)
    _require_like(generated.take(range(1)), packed, weights)
    judge = judge_of(params, packed, device, count_images(packed, params.evaluate.images), states)

    sheet = _score(judge, generated, origin.params.model, device)
    opponents = None
    if live.discriminator is not None:
        opponents = score_opponents(live, packed, REALS, judge.n, judge.batch_size)
    metrics = {
        **sheet.metrics,
        **_agreement(judge, averaged),
        **_discriminator_metrics(opponents),
        **_recent(trained, origin.images),
        "images": judge.n,
    }
    measured = {
        "checkpoint": params.evaluate.checkpoint,
        "images": origin.images,
        "weights_digest": weights_digest(weights / GENERATORS["ema"]),
    }
    source = {
        "source": "generator",
        "quantisation": _QUANTISATION,
        "seed": FAKES_SEED,
        "untrained": origin.params.model.family,
    }
    records = {PROTOCOL_FILE: {**judge.protocol.to_dict(), **source}, MEASURED_FILE: measured}
    _write(out, judge, sheet, metrics, records, live.no_discriminator, _special_sheets(averaged))
    return metrics


def evaluate_folder(params: Params, prepared: Path, folder: Path, out: Path, states: Path) -> dict[str, Any]:
    """Measure a folder of pictures made elsewhere as `measure` does a model, log that to MLflow, return the metrics.

    There is no discriminator: its metrics are null. Raises UserError.
    """
    packed = PackedData(prepared)
    pictures = FolderPictures(folder, packed.card.channels, packed.card.resolution)
    connect()
    device = pick_device(params.train.device)
    n = count_images(packed, min(params.evaluate.images, len(pictures)))
    judge = judge_of(params, packed, device, n, states)
    if (possible := count_images(packed, params.evaluate.images)) > n:
        _log.warning(
            "caution: %s has %d pictures; models are measured with %d, and FIDs of other numbers of pictures are not "
            "comparable",
            folder,
            n,
            possible,
        )
    sheet = _score(judge, pictures, params.model, device)
    metrics = {**sheet.metrics, **_discriminator_metrics(None), "images": n}
    source = {
        "source": f"folder {folder.resolve().name}",
        "pictures": len(pictures),
        "digest_of_pictures": pictures.digest,
        "untrained": params.model.family,
    }
    _write(out, judge, sheet, metrics, {PROTOCOL_FILE: {**judge.protocol.to_dict(), **source}}, _NO_GAME, {})
    write_run(out, log_folder(params, packed.card, folder.resolve().name, out))
    return metrics


@dataclass(frozen=True)
class _Sheet:
    """What comes of the judging of some pictures, whoever made them."""

    metrics: Mapping[str, float | None]
    samples: Tensor
    """The first ones, uint8 (at most 100, c, h, w)."""
    pairs: Tensor
    """The nearest pairs, uint8 (2 * pairs, c, h, w): each picture before its nearest training picture."""


def judge_of(params: Params, packed: PackedData, device: torch.device, n: int, states: Path) -> Judge:
    """Make what scores `n` pictures by the parameters of the evaluation. Raises UserError."""
    evaluate = params.evaluate
    judge = Judge(
        packed=packed,
        extractor=load_extractor(evaluate.extractor, evaluate.inception_weights, packed.folder, device),
        labeller=load_labeller(packed.folder, device),
        kept=states / "features",
        most_searched=evaluate.searched_images,
        n=n,
        batch_size=evaluate.batch_size,
    )
    for caution in judge.protocol.cautions:
        _log.warning("caution: %s", caution)
    return judge


def _score(judge: Judge, pictures: Pictures, model: FamilyParams, device: torch.device) -> _Sheet:
    scores = judge.score(pictures, Generated(_untrained(model, judge.packed, device), FAKES_SEED))
    nearest = scores.nearest[:_PAIRS]
    samples = pictures.take(range(min(judge.n, _SIDE**2))).cpu()
    return _Sheet(scores.metrics, samples, _pairs(pictures, nearest, judge.packed))


def _untrained(model: FamilyParams, packed: PackedData, device: torch.device) -> Game:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(FAKES_SEED)
        return build_game(model, packed.card).to(device)


def _require_like(sample: Tensor, packed: PackedData, trained: Path) -> None:
    made, prepared = tuple(sample.shape[1:]), tuple(packed.images(REALS).shape[1:])
    if made != prepared:
        raise UserError(
            f"{trained}: the generator makes pictures of (channels, height, width) {made}, but the prepared data set "
            f"has {prepared}; train again"
        )


def _discriminator_metrics(scores: DiscriminatorScores | None) -> dict[str, float | None]:
    """List what is known of the discriminator, null where there is none; an interval becomes `_low` and `_high`."""
    metrics: dict[str, float | None] = {}
    for field in fields(DiscriminatorScores):
        name, value = f"discriminator_{field.name}", None if scores is None else getattr(scores, field.name)
        if name.endswith("_interval"):
            stem = name.removesuffix("_interval")
            metrics[f"{stem}_low"], metrics[f"{stem}_high"] = value or (None, None)
        else:
            metrics[name] = None if value is None else float(value)
    return metrics


def _recent(trained: Path, images: int) -> dict[str, float]:
    """Average the accuracy on training batches over the ticks up to `images`: it swings, and one may be extreme."""
    try:
        with (trained / "history.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("batch_accuracy") and int(row["images"]) <= images]
        recent = [float(row["batch_accuracy"]) for row in rows[-_RECENT_TICKS:]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{trained / 'history.csv'}: is not a history of ganflow ({error}); train again") from None
    return {"discriminator_batch_accuracy_recent": fmean(recent)} if recent else {}


def _special_sheets(game: Game) -> Mapping[str, Sheet]:
    with torch.inference_mode():
        return game.sheets(torch.Generator().manual_seed(FAKES_SEED))


def _agreement(judge: Judge, game: Game) -> Metrics:
    """Say how often a generator that takes labels obeys them; nothing for others."""
    if judge.labeller is None or game.inputs.find(LABEL) is None:
        return {}
    return {"label_agreement": label_agreement(game, judge.labeller, judge.n, judge.batch_size, FAKES_SEED)}


def _write(  # noqa: PLR0917 (all that an evaluation leaves)
    out: Path,
    judge: Judge,
    sheet: _Sheet,
    metrics: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any]],
    no_discriminator: str,
    special: Mapping[str, Sheet],
) -> None:
    """Write all files into `out`, or none of them; files of an evaluation before are replaced.

    `no_discriminator` says why its metrics are null, if they are; `special` are the sheets of the family's own.
    """
    protocol = judge.protocol
    caution = {"caution": "; ".join(protocol.cautions)} if protocol.cautions else {}
    reason = {NO_DISCRIMINATOR: no_discriminator} if no_discriminator else {}
    records = {
        **records,
        PROTOCOL_FILE: {**records[PROTOCOL_FILE], **caution, "digest": protocol.digest},
        METRICS_FILE: {**metrics, **reason, **caution},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out, prefix=".new-") as folder:
            staging = Path(folder)
            save_grid(sheet.samples, staging / SAMPLES_FILE, columns=_SIDE)
            reals = torch.from_numpy(judge.packed.images(REALS)[: len(sheet.samples)].copy())
            _save_side_by_side(reals, sheet.samples, staging / COMPARISON_FILE)
            save_grid(sheet.pairs, staging / PAIRS_FILE, columns=3 * _PAIRS_IN_A_ROW - 1)
            for name, own in special.items():
                (staging / SHEETS).mkdir(exist_ok=True)
                save_grid(to_uint8(own.images).cpu(), staging / SHEETS / f"{name}.png", columns=own.columns)
            for name, content in records.items():
                (staging / name).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            # It says whose the other numbers are: the first to go, and the last to come.
            for name in (MEASURED_FILE, RUN_FILE):
                (out / name).unlink(missing_ok=True)
            shutil.rmtree(out / SHEETS, ignore_errors=True)
            for path in sorted(staging.iterdir(), key=lambda path: path.name == MEASURED_FILE):
                path.replace(out / path.name)
    except OSError as error:
        raise UserError(f"{out}: the evaluation cannot be written there ({error.strerror or error})") from None


def _pairs(pictures: Pictures, nearest: Sequence[Pair], packed: PackedData) -> Tensor:
    """Put each picture beside its nearest training picture, and a white one after each pair but the last of a row."""
    made = pictures.take([pair.picture for pair in nearest]).cpu()
    train = packed.images("train")
    tiles = []
    for place, (picture, pair) in enumerate(zip(made, nearest, strict=True)):
        tiles += [picture, torch.from_numpy(train[pair.training].copy())]
        if (place + 1) % _PAIRS_IN_A_ROW and place + 1 < len(nearest):
            tiles.append(torch.full_like(picture, 255))
    return torch.stack(tiles)


def _save_side_by_side(real: Tensor, generated: Tensor, path: Path) -> None:
    """Write real pictures left and generated ones right of a white gap, in a square each."""
    side = isqrt(len(real))
    shape = (side, side, *real.shape[1:])
    rows = [pictures[: side**2].reshape(shape) for pictures in (real, generated)]
    gap = torch.full_like(rows[0][:, :1], 255)
    save_grid(torch.cat([rows[0], gap, rows[1]], dim=1).flatten(0, 1), path, columns=2 * side + 1)
