"""The cheap FID of a training that goes on: the averaged generator against the validation split.

It chooses between checkpoints of one training. The validation split is small, and what was chosen by it looks better
by it than it is: the reported numbers come from the test split.
"""

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
_BATCH_SIZE = 100


class ValidationFid:
    """Gives the FID of generators, from the same latents every time."""

    def __init__(self, packed: PackedData, extractor: Extractor) -> None:
        """Raises UserError where the validation split has fewer than two pictures."""
        images = packed.images("validation")
        self.reals = min(len(images), _MOST_REALS)
        self.fakes = max(self.reals, _LEAST_FAKES)
        if self.reals < 2:
            raise UserError(
                f"train.fid_every_images: FID needs two validation pictures at least, not {self.reals}; raise "
                "data.validation_fraction, or set train.fid_every_images: 0"
            )
        self._extractor = extractor
        self._moments = feature_moments(real_batches(images, _BATCH_SIZE, self.reals), extractor)

    @property
    def protocol(self) -> dict[str, str | int]:
        """Say how it is measured; FIDs under different ones are not compared."""
        return {
            "extractor": self._extractor.name,
            "extractor_digest": self._extractor.digest,
            "split": "validation",
            "reals": self.reals,
            "fakes": self.fakes,
        }

    def of(self, game: Game, generator: nn.Module) -> float:
        """Give the FID of a generator of `game`, such as the average of its own. Raises BrokenGeneratorError."""
        generated = generate(game, self.fakes, _BATCH_SIZE, _SEED, generator)
        return distance(feature_moments(generated, self._extractor), self._moments)
