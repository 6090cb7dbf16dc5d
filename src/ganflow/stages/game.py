"""The game of a family on a data set."""

from ganflow.data.card import DataCard
from ganflow.errors import UserError
from ganflow.models.game import FamilyParams, Game


def build_game(model: FamilyParams, card: DataCard) -> Game:
    """Make the networks of a family for the pictures of a data set, freshly initialised.

    Raises UserError where the family needs what the data set has not, such as labels.
    """
    try:
        return model.build(card.channels, card.resolution, card.class_count)
    except ValueError as error:
        raise UserError(str(error)) from None
