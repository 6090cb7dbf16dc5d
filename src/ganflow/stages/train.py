"""The second stage: play the game on packed data, and leave finished weights, history and samples."""

import logging
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock, Timeout

from ganflow.data.batches import Batches
from ganflow.data.packed import PackedData
from ganflow.evaluation.extractor import load_extractor
from ganflow.evaluation.sampling import BrokenGeneratorError
from ganflow.evaluation.validation import ValidationFid
from ganflow.params import Params
from ganflow.tracking.delivery import Sender
from ganflow.tracking.runs import resume_run
from ganflow.training import checkpoint, loop
from ganflow.training.best import VALUES, Best
from ganflow.training.device import pick_device
from ganflow.training.health import Health
from ganflow.training.journal import Journal
from ganflow.training.match import Match
from ganflow.training.state import state_digest
from ganflow.training.team import Team, joined_team
from ganflow.training.weights import BEST, DISCRIMINATOR, GENERATORS, Origin, save_weights

_log = logging.getLogger("ganflow")


def train(params: Params, prepared: Path, out: Path, states: Path, *, parent_run: str = "") -> None:
    """Train on the packed data in `prepared`, and leave weights, history.csv, samples/ and so on in `out`.

    `states` holds the resume state, in `train/<digest>`: a training that was interrupted goes on from there.
    Its run in MLflow is opened below `parent_run`, where one is given.
    Raises UserError, loop.DivergedError and loop.InterruptedTraining.
    """
    packed = PackedData(prepared)
    device = pick_device(params.train.device)
    origin = partial(Origin, params, packed.card.channels, packed.card.resolution)
    state = states / "train" / state_digest(params, packed.card)
    with joined_team(device, params.train.batch_size) as team:
        match = _new_match(params, packed, device, team)
        if not team.leads:
            _assist(match, state, params.seed)
            return
        with _alone(state):
            best = _best(params, packed, device, state, origin)
            run = resume_run(params, packed.card, state, parent_run=parent_run)
            journal = Journal(state)
            sender = Sender(state)
            with sender, _stop_signals() as asked_to_stop:
                try:
                    loop.train(
                        match,
                        _fixed_inputs(match, params),
                        state,
                        journal,
                        lambda: bool(asked_to_stop),
                        best=best,
                        health=Health(params),
                    )
                except BaseException as error:
                    stopped = isinstance(error, loop.InterruptedTraining | KeyboardInterrupt)
                    journal.add_status(match.images, "KILLED" if stopped else "FAILED")
                    raise
                _fill(out, match, origin(match.images), best)
                # Two files: plots take a value that is missing in a row for zero.
                journal.write_history(out / "history.csv", lambda name: name not in VALUES)
                if best is not None:
                    journal.write_history(out / "fid.csv", lambda name: name in VALUES)
                journal.write_warnings(out / "warnings.json")
                shutil.copytree(state / "samples", out / "samples")
                journal.add_status(match.images, "FINISHED")
                unsent = sender.close()
            shutil.copyfile(state / "run.json", out / "run.json")
            _retire(state, states, run.run_id, unsent)


def _assist(match: Match, state: Path, seed: int) -> None:
    """Play along as one of the processes that do not lead; when all are told to stop, until the leading one has."""
    with _stop_signals() as asked_to_stop:
        try:
            loop.assist(match, state, seed)
        except RuntimeError:
            if asked_to_stop:
                raise loop.InterruptedTraining(match.images) from None
            raise


def _new_match(params: Params, packed: PackedData, device: torch.device, team: Team) -> Match:
    torch.manual_seed(params.seed)
    game = params.model.build(packed.card.channels, packed.card.resolution)
    size, seed = params.train.batch_size, params.seed
    batches = Batches(packed.images("train"), packed.labels("train"), size, seed, device, team.share)
    return Match(game, batches, params.train, device, team)


def _fixed_inputs(match: Match, params: Params) -> torch.Tensor:
    rng = torch.Generator().manual_seed(params.seed)
    return match.game.draw_inputs(loop.SAMPLES, rng)


def _best(
    params: Params, packed: PackedData, device: torch.device, state: Path, origin: Callable[[int], Origin]
) -> Best | None:
    """Make what measures on the way, if it is asked for; its extractor is loaded before anything is trained."""
    every = params.train.fid_every_images
    if not every:
        return None
    extractor = load_extractor(params.train.fid_extractor, params.evaluate.inception_weights, packed.folder, device)
    fid = ValidationFid(packed, extractor)
    if (few := min(fid.reals, fid.fakes)) <= extractor.dim:
        _log.warning(
            "caution: %d validation pictures are too few for %d features: train/validation_fid is biased, and compares "
            "checkpoints of this training alone",
            few,
            extractor.dim,
        )

    def score(match: Match) -> float:
        try:
            return fid.of(match.game, match.average.network)
        except BrokenGeneratorError:
            return math.nan

    def save(match: Match, folder: Path) -> None:
        _save_networks(match, origin(match.images), folder)

    return Best(state, score, save, every=every, protocol=fid.protocol)


def _fill(out: Path, match: Match, origin: Origin, best: Best | None) -> None:
    """Write the weights into `out`, made anew so that nothing of another training stays in it."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    _save_networks(match, origin, out)
    if best is not None:
        shutil.copytree(best.folder, out / BEST)


def _save_networks(match: Match, origin: Origin, folder: Path) -> None:
    save_weights(match.average.network, folder / GENERATORS["ema"], origin)
    save_weights(match.game.generator, folder / GENERATORS["live"], origin)
    save_weights(match.game.discriminator, folder / DISCRIMINATOR, origin)


def _retire(state: Path, states: Path, run_id: str, unsent: int) -> None:
    """Delete the state of a finished training, except for a journal that MLflow has not had in full."""
    if unsent:
        kept = states / "unsent" / run_id
        kept.parent.mkdir(parents=True, exist_ok=True)
        (state / checkpoint.FILE).unlink(missing_ok=True)
        shutil.rmtree(state / BEST, ignore_errors=True)
        state.rename(kept)
        _log.warning("%d journal lines did not reach MLflow; `ganflow sync` sends them when it answers again", unsent)
    else:
        shutil.rmtree(state)


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Wait while another process trains exactly this; it may be another experiment that DVC runs beside."""
    state.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _log.warning("another process is training exactly this (%s): waiting for it to end", state.name)
        lock.acquire()
    try:
        state.mkdir(exist_ok=True)
        yield
    finally:
        lock.release()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C instead of dying of them; a second one is not waited for."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
