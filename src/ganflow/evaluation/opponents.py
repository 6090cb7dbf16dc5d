"""A trained discriminator against its own generator of the same moment, on pictures that neither was trained with."""

from collections.abc import Iterator
from typing import Never

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ganflow.data.card import Split
from ganflow.data.packed import PackedData
from ganflow.evaluation.discriminator import DiscriminatorScores, best_threshold, score_discriminator, scores
from ganflow.evaluation.sampling import drawn_inputs, pictures_of, real_batches
from ganflow.models.game import Game
from ganflow.progress import progress

_SEED = 1  # fresh fakes, not those of the FID
_THRESHOLD_SEED = 3  # nor those that it is judged by

Batches = Iterator[tuple[Tensor, Tensor | None]]


def score_opponents(game: Game, packed: PackedData, split: Split, n: int, batch_size: int) -> DiscriminatorScores:
    """Score a discriminator on the first `n` pictures of a split and as many fresh ones of its generator.

    Its threshold is 0. Where its scores only compare, it is fitted on as many training pictures and other generated
    ones. Raises UserError for scores that are not finite, ValueError for a family without discriminator.
    """
    compares = game.scale == "relative"
    with progress((4 if compares else 2) * n, "discriminator", " pictures") as bar:

        def sides(of: Split, seed: int) -> tuple[Tensor, Tensor]:
            real, fake = _real(packed, of, n, batch_size), _generated(game, n, batch_size, seed)
            return scores(game, _counted(real, bar)), scores(game, _counted(fake, bar))

        threshold = best_threshold(*sides("train", _THRESHOLD_SEED)) if compares else 0.0
        return score_discriminator(*sides(split, _SEED), threshold=threshold, log_odds=game.scale == "log_odds")


def _real(packed: PackedData, split: Split, n: int, batch_size: int) -> Batches:
    labels, seen = packed.labels(split), 0
    for images in real_batches(packed.images(split), batch_size, n):
        yield images, None if labels is None else torch.from_numpy(np.array(labels[seen : seen + len(images)]))
        seen += len(images)


def _generated(game: Game, n: int, batch_size: int, seed: int) -> Batches:
    for inputs in drawn_inputs(game, n, batch_size, seed):
        yield pictures_of(game.generator, inputs), game.inputs.labels(inputs)


def _counted(batches: Batches, bar: "tqdm[Never]") -> Batches:
    for images, labels in batches:
        yield images, labels
        bar.update(len(images))
