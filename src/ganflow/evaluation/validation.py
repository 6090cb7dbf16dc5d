"""The cheap FID of a training that goes on: the averaged generator against the validation split.

It chooses between checkpoints of one training. The validation split is small, and what was chosen by it looks better
by it than it is: the reported numbers come from the test split.
"""

from collections.abc import Callable

from torch import nn

from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation.extractor import Extractor
from ganflow.evaluation.fid import distance, feature_moments
from ganflow.evaluation.sampling import generate, real_batches
from ganflow.models.game import Game

_SEED = 2  # other latents than those of the evaluation
_MOST_REALS = 10_000
_LEAST_FAKES = 1_000  # a small validation split is no reason for noise on the other side too
_BATCH_SIZE = 250


def validation_fid(packed: PackedData, extractor: Extractor) -> Callable[[Game, nn.Module], float]:
    """Make what gives the FID of a generator of `game`, from the same latents every time.

    Raises UserError where the validation split has fewer than two pictures; what it gives raises BrokenGeneratorError.
    """
    images = packed.images("validation")[:_MOST_REALS]
    if len(images) < 2:
        raise UserError(
            f"train.fid_every_images: FID needs two validation pictures at least, not {len(images)}; raise "
            "data.validation_fraction, or set train.fid_every_images: 0"
        )
    reals = feature_moments(real_batches(images, _BATCH_SIZE), extractor)
    fakes = max(len(images), _LEAST_FAKES)

    def score(game: Game, generator: nn.Module) -> float:
        generated = generate(game, fakes, _BATCH_SIZE, _SEED, generator)
        return distance(feature_moments(generated, extractor), reals)

    return score
