"""The second stage: play the game on packed data, and leave finished weights, history and samples."""

import logging
import math
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock, Timeout

from ganflow.data.batches import Batches
from ganflow.data.card import DataCard
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation.extractor import load_extractor
from ganflow.evaluation.sampling import BrokenGeneratorError
from ganflow.evaluation.validation import ValidationFid
from ganflow.params import Params
from ganflow.stages.game import build_game
from ganflow.tracking.delivery import Sender
from ganflow.tracking.runs import RUN_FILE, TAG_PRECISION, TAG_RESUMED_AT, TAG_RESUMED_FROM, read_run, resume_run
from ganflow.training import checkpoint, loop
from ganflow.training import resume as resumption
from ganflow.training.best import VALUES, Best
from ganflow.training.checkpoint import Checkpoint
from ganflow.training.device import pick_device
from ganflow.training.disk import FullDiskError, writing
from ganflow.training.health import Health
from ganflow.training.journal import Journal
from ganflow.training.match import Match
from ganflow.training.state import recipe, state_digest
from ganflow.training.team import Team, joined_team
from ganflow.training.weights import BEST, GENERATORS, Origin, others, save_weights

_log = logging.getLogger("ganflow")


def train(
    params: Params, prepared: Path, out: Path, states: Path, *, parent_run: str = "", resume: Path | None = None
) -> None:
    """Train on the packed data in `prepared`, and leave weights, history.csv, samples/ and so on in `out`.

    `states` holds the resume state, in `train/<digest>`: a training that was interrupted goes on from there. With
    `resume`, the folder of another training's state, it begins with the last checkpoint there; keys that make that
    unusable are refused. Its run in MLflow is opened below `parent_run`, where one is given.
    Raises UserError, loop.DivergedError and loop.InterruptedTraining.
    """
    packed = PackedData(prepared)
    device = pick_device(params.train.device)
    origin = partial(Origin, params, packed.card.channels, packed.card.resolution, packed.card.class_count)
    contents = recipe(params, packed.card)
    state, beginning = _place(params, packed.card, states / "train", resume)
    with joined_team(device, params.train.batch_size) as team:
        match = _new_match(params, packed, device, team)
        if not team.leads:
            _assist(match, state, params.seed)
            return
        with _explained(state), _alone(state):
            if beginning is not None and checkpoint.last(state, put_aside=True) is None:
                resumption.begin(beginning, state)
            elif not checkpoint.exists(state):
                _mention_another(state, contents)
            best = _best(params, packed, device, state, origin)
            run = resume_run(params, packed.card, state, parent_run=parent_run, tags=_tags(match, beginning))
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
                        recipe=contents,
                    )
                    _fill(out, match, origin(match.images), best, journal)
                except BaseException as error:
                    stopped = isinstance(error, loop.InterruptedTraining | KeyboardInterrupt)
                    with suppress(FullDiskError):
                        journal.add_status(match.images, "KILLED" if stopped else "FAILED")
                    raise
                journal.add_status(match.images, "FINISHED")
                unsent = sender.close()
            shutil.copyfile(state / RUN_FILE, out / RUN_FILE)
            _retire(state, states, run.run_id, unsent)


def _place(params: Params, card: DataCard, states: Path, resume: Path | None) -> tuple[Path, Checkpoint | None]:
    """Choose the folder of the state, and the checkpoint of another training that it begins with, if it does."""
    if resume is None:
        return states / state_digest(params, card), None
    found = resumption.source(resume, contents := recipe(params, card))
    if found.recipe == contents and resume.resolve().parent == states.resolve():  # nothing was changed
        return states / resume.resolve().name, None
    return states / state_digest(params, card, found.digest), found


def _tags(match: Match, beginning: Checkpoint | None) -> dict[str, str]:
    """Say which precision was picked on this machine, and which run the training was resumed from."""
    tags: dict[str, str] = {TAG_PRECISION: match.precision}
    if beginning is None:
        return tags
    folder = beginning.path.parent
    run = read_run(folder)
    return {**tags, TAG_RESUMED_FROM: run.run_id if run else folder.name, TAG_RESUMED_AT: str(beginning.images)}


def _mention_another(state: Path, contents: Mapping[str, Any]) -> None:
    """Name the newest interrupted training that this one, which starts anew, could have gone on from."""
    for folder, changes in resumption.usable(state.parent, contents):
        lock = _lock(folder)
        with suppress(Timeout), lock.acquire(blocking=False):
            texts = [f"{change.key} {change.then} instead of {change.now}" for change in changes]
            _log.info(
                "an interrupted training with %s lies in %s; --resume goes on from it",
                ", ".join(texts) or "another version of the code",
                folder,
            )
            return


@contextmanager
def _explained(state: Path) -> Iterator[None]:
    """Say how a training that could not go on would."""
    try:
        with writing(state, undo=lambda: None):
            yield
    except (loop.DivergedError, loop.InterruptedTraining) as error:
        error.state = state if checkpoint.exists(state) else None
        raise
    except FullDiskError as error:
        found = checkpoint.last(state)
        where = (
            "starts from the beginning" if found is None else f"goes on from the checkpoint at {found.images} images"
        )
        raise UserError(f"{error}. Make room there, and the same command {where}") from None


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
    game = build_game(params.model, packed.card)
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


def _fill(out: Path, match: Match, origin: Origin, best: Best | None, journal: Journal) -> None:
    """Write all but the run's reference into `out`, made anew so that nothing of another training stays in it."""
    shutil.rmtree(out, ignore_errors=True)
    with writing(out):
        out.mkdir(parents=True)
        _save_networks(match, origin, out)
        if best is not None:
            shutil.copytree(best.folder, out / BEST)
        # Two files: plots take a value that is missing in a row for zero.
        journal.write_history(out / "history.csv", lambda name: name not in VALUES)
        if best is not None:
            journal.write_history(out / "fid.csv", lambda name: name in VALUES)
        journal.write_warnings(out / "warnings.json")
        shutil.copytree(journal.path.parent / "samples", out / "samples")


def _save_networks(match: Match, origin: Origin, folder: Path) -> None:
    save_weights(match.average.network, folder / GENERATORS["ema"], origin)
    save_weights(match.game.generator, folder / GENERATORS["live"], origin)
    for name, network in others(match.game).items():
        save_weights(network, folder / name, origin)


def _retire(state: Path, states: Path, run_id: str, unsent: int) -> None:
    """Delete the state of a finished training, except for a journal that MLflow has not had in full."""
    # Renamed first: a kill in the middle must leave no state that a training would go on from in this run.
    if unsent:
        kept = states / "unsent" / run_id
        kept.parent.mkdir(parents=True, exist_ok=True)
        state.rename(kept)
        for path in kept.glob("checkpoint*"):
            path.unlink()
        shutil.rmtree(kept / BEST, ignore_errors=True)
        _log.warning("%d journal lines did not reach MLflow; `ganflow sync` sends them when it answers again", unsent)
    else:
        shutil.rmtree(state.rename(_finished(state)))


def _finished(state: Path) -> Path:
    return state.with_suffix(".finished")


def _lock(state: Path) -> FileLock:
    return FileLock(state.with_suffix(".lock"))


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Wait while another process trains exactly this; it may be another experiment that DVC runs beside."""
    state.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(state)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _log.warning("another process is training exactly this (%s): waiting for it to end", state.name)
        lock.acquire()
    try:
        shutil.rmtree(_finished(state), ignore_errors=True)
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
