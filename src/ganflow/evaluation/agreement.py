"""Whether a conditional generator makes what it is asked for."""

from ganflow.evaluation.extractor import Labeller
from ganflow.evaluation.sampling import drawn_inputs, pictures_of
from ganflow.models.game import Game


def label_agreement(game: Game, labeller: Labeller, n: int, batch_size: int, seed: int) -> float | None:
    """Give the share in [0, 1] of `n` generated pictures that are of the class they were asked to be.

    The classifier of real pictures decides (Odena et al. 2017, section 4.3), whose own errors count too. To be read
    beside what it reaches on real test pictures; a generator whose pictures are all typical of their class can have
    more. None for a generator that takes no labels.
    Raises BrokenGeneratorError.
    """
    right = 0
    for inputs in drawn_inputs(game, n, batch_size, seed):
        asked = game.inputs.labels(inputs)
        if asked is None:
            return None
        seen = labeller(pictures_of(game.generator, inputs)).argmax(dim=1)
        right += int((seen == asked.to(seen.device)).sum())
    return right / n
