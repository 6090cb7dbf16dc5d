"""The training loop: rounds of the game, and what is due between them. It never knows which family plays."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganflow.data.grid import save_grid
from ganflow.data.quantise import to_uint8
from ganflow.progress import progress
from ganflow.training import checkpoint
from ganflow.training.best import Best
from ganflow.training.disk import write_whole
from ganflow.training.health import Health
from ganflow.training.journal import Journal
from ganflow.training.machine import Clock
from ganflow.training.match import Match
from ganflow.training.variety import nearest_distance

SAMPLES = 64
SAMPLE_COLUMNS = 8

_log = logging.getLogger(__name__)


class DivergedError(Exception):
    """A loss or a weight was no longer finite."""

    def __init__(self, images: int) -> None:
        super().__init__(
            f"a loss or a weight was not finite at {images} images; the last good checkpoint is kept. "
            "Lower train.generator_lr and train.discriminator_lr, or change seed"
        )
        self.images = images
        self.state: Path | None = None
        """Folder of the checkpoint that another training can go on from."""


class InterruptedTraining(Exception):  # noqa: N818 (a request that was met, not an error)
    """The training was asked to stop, and left a checkpoint at `images`."""

    def __init__(self, images: int) -> None:
        super().__init__(f"stopped at {images} images, with a checkpoint: the same command goes on from there")
        self.images = images
        self.state: Path | None = None
        """Folder of the checkpoint that another training can go on from."""


def train(
    match: Match,
    fixed_inputs: Tensor,
    state: Path,
    journal: Journal,
    stop: Callable[[], bool],
    *,
    best: Best | None = None,
    health: Health | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Play until `params.images`, from the checkpoint in `state` where there is one.

    `fixed_inputs` are the generator's inputs of every sample grid. `stop` is asked once a round. `best` measures the
    averaged generator on the way; `health` judges the ticks. `recipe` is kept in the checkpoints.
    Raises DivergedError, with the last good checkpoint kept, InterruptedTraining, with one just written, and
    FullDiskError, with the last checkpoints kept.
    """
    params = match.params
    if not _restore(match, state):
        _sample(match, fixed_inputs, state, journal)
    if health is not None:
        for line in journal.lines():
            _warn(health, journal, line["images"], line.get("values", {}))
    looked_at = _Variety(match, fixed_inputs)
    clock = Clock(match.images, match.batches.waited, match.device)
    with progress(params.images, "train", "img", initial=match.images, scale=True) as bar:
        while match.images < params.images:
            before = match.images
            match.play_round()
            bar.update(match.images - before)
            due = partial(_due, before, match.images, params.images)
            values: dict[str, float] = {}
            if due(params.tick_every_images):
                values, diverged_at = match.meter.read()
                if diverged_at is not None:
                    raise DivergedError(diverged_at)
                shown = {name: f"{value:.3f}" for name, value in values.items() if not name.endswith("_norm")}
                bar.set_postfix(shown, refresh=False)
                values |= clock.read(match.images, match.batches.waited)
                values |= looked_at.now()
            if best is not None and due(best.every):
                with clock.stopped():
                    values |= _measure(match, best)
            if values:
                values = {f"train/{name}": value for name, value in values.items()}
                journal.add_values(match.images, values)
                if health is not None:
                    _warn(health, journal, match.images, values)
            if due(params.sample_every_images):
                _sample(match, fixed_inputs, state, journal)
            if due(params.checkpoint_every_images) or stop():
                _save(match, state, recipe)
                if stop() and match.images < params.images:
                    raise InterruptedTraining(match.images)


def assist(match: Match, state: Path, seed: int) -> None:
    """Play the same rounds as one of the other processes of a team; the leading one keeps the record in `train`."""
    _restore(match, state)
    # Latents of its own: a fresh network and a checkpoint both come with the random state of the leading process.
    own = np.random.SeedSequence((seed, match.team.rank, match.rounds))
    torch.manual_seed(int(own.generate_state(1)[0]))
    while match.images < match.params.images:
        match.play_round()


def _restore(match: Match, state: Path) -> bool:
    """Let all processes read the same checkpoint: none before the leading one chose it, none after that went on."""
    if match.team.leads:
        restored = checkpoint.restore(match, state)
        match.team.meet()
    else:
        match.team.meet()
        restored = checkpoint.restore(match, state)
    if not match.team.agrees(match.rounds, match.device):
        raise RuntimeError(f"{state}: the processes found different checkpoints; is it the same folder for all?")
    return restored


def _due(before: int, now: int, end: int, every: int) -> bool:
    """Say whether a multiple of `every` images was reached, or the end."""
    return now >= end or now // every > before // every


class _Variety:
    """Compares the averaged generator's pictures of the fixed inputs with as many real ones."""

    def __init__(self, match: Match, inputs: Tensor) -> None:
        self._match, self._inputs = match, inputs
        # The first of the stream, which is shuffled: those of a folder may be all of one kind.
        size = match.params.batch_size
        batches = [match.batches.batch(start).images for start in range(0, SAMPLES * match.team.size, size)]
        # A small data set comes round again, and no picture is to be its own neighbour.
        real = torch.cat(batches)[:SAMPLES].unique(dim=0)  # type: ignore[no-untyped-call]
        self._count, self._real = len(real), nearest_distance(real)

    def now(self) -> dict[str, float]:
        """Give the variety; nothing where the real pictures are all the same."""
        if self._count < 2:
            return {}
        with torch.no_grad(), _own_randomness(self._match.device):
            made = self._match.average.network(self._inputs[: self._count])
        return {"sample_variety": nearest_distance(made) / self._real}


def _warn(health: Health, journal: Journal, images: int, values: Mapping[str, float]) -> None:
    for finding in health.see(images, values):
        if journal.add_warning(*finding):
            _log.warning("caution: at %d images %s", finding.images, finding.text)


def _save(match: Match, state: Path, recipe: Mapping[str, Any] | None) -> None:
    try:
        checkpoint.save(match, state, recipe)
    except checkpoint.NotFiniteError:
        _, diverged_at = match.meter.read()
        raise DivergedError(diverged_at or match.images) from None


def _measure(match: Match, best: Best) -> dict[str, float]:
    with _own_randomness(match.device):
        values = best.measure(match)
    if math.isnan(values["validation_fid"]):
        raise DivergedError(match.images)
    return values


def _sample(match: Match, inputs: Tensor, state: Path, journal: Journal) -> None:
    with torch.no_grad(), _own_randomness(match.device):
        images = to_uint8(match.average.network(inputs))
    picture, content = Path("samples") / f"{match.images:09d}.png", BytesIO()
    (state / picture).parent.mkdir(parents=True, exist_ok=True)
    save_grid(images.cpu().numpy(), content, SAMPLE_COLUMNS)
    write_whole(state / picture, content.getvalue())
    journal.add_samples(match.images, str(picture))


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Give what looks at a generator a random state of its own: one with noise inside must not move the game's."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
