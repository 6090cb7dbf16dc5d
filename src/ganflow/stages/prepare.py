"""The first stage: raw pictures to packed arrays with a data card, and the data set's own feature extractor."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ganflow.data.card import CARD_FILE, SPLITS, DataCard
from ganflow.data.format import Format
from ganflow.data.packed import PackedData
from ganflow.data.packing import pack
from ganflow.data.sources import open_source
from ganflow.errors import UserError
from ganflow.evaluation.classifier import train_classifier
from ganflow.params import Params

_log = logging.getLogger("ganflow")


def prepare(params: Params, out: Path, workers: int | None = None) -> DataCard:
    """Pack the data set into the folder `out`, and train its feature extractor where there are two classes or more.

    `workers` is the number of processes that read and pack the pictures; by default it follows from their number and
    that of the CPUs. `out` is replaced as a whole and at the end: a failure leaves what was there before.
    Raises UserError.
    """
    data = params.data
    source = open_source(data.source, Path(data.root))
    with _replacing(out) as staging:
        card = pack(
            source,
            staging,
            name=data.name or data.source,
            source_name=data.source,
            packed_format=Format(data.channels, data.resolution),
            validation_fraction=data.validation_fraction,
            test_fraction=data.test_fraction,
            seed=data.seed,
            workers=workers,
        )
        del source  # its list of files
        _summarise(card)
        if card.classes is not None and len(card.classes) > 1:
            train_classifier(PackedData(staging), data.seed, staging)
        else:
            _log.warning(
                "%s has fewer than two classes, so no classifier was trained on it: FID needs evaluate.extractor: "
                "inception, and on the way train.fid_extractor: inception, or train.fid_every_images: 0",
                card.name,
            )
    return card


def _summarise(card: DataCard) -> None:
    counts = ", ".join(f"{card.splits[split].count} {split}" for split in SPLITS)
    classes = "no labels" if card.classes is None else f"{len(card.classes)} classes"
    size = f"{card.resolution}x{card.resolution}"
    _log.info("%s: %s pictures of %s, %d channel(s), %s", card.name, counts, size, card.channels, classes)
    if card.skipped:
        first = card.skipped[0]
        _log.warning("%d skipped, such as %s: %s; see %s", len(card.skipped), first.file, first.reason, CARD_FILE)
    if card.converted:
        _log.info("converted: %s", ", ".join(f"{count} {kind}" for kind, count in card.converted.items()))


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to write into, which takes its place if all goes well."""
    if out.exists() and not (out.is_dir() and ((out / CARD_FILE).exists() or not any(out.iterdir()))):
        raise UserError(f"{out}: is in the way: not a folder that `ganflow prepare` wrote; move it or delete it")
    staging, old = (out.with_name(f".{out.name}.{what}") for what in ("new", "old"))
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        staging.mkdir(parents=True)
        yield staging
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        staging.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
