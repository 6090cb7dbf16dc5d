import dataclasses
from pathlib import Path

import pytest
from packed_noise import pack_noise
from tiny_families import tiny_models

from ganflow import params
from ganflow.errors import UserError
from ganflow.stages.game import build_game

CGAN = tiny_models()["cgan"]


def test_a_game_for_the_pictures_and_classes_of_a_data_set(tmp_path: Path) -> None:
    card = pack_noise(tmp_path, 40)
    game = build_game(params.parse({"model": CGAN}).model, card)
    (label,) = game.inputs.controls
    assert label.most == len(card.classes or ()) - 1
    assert game.generator(game.draw_inputs(2)).shape[1:] == (card.channels, card.resolution, card.resolution)


def test_a_family_that_needs_labels_says_so(tmp_path: Path) -> None:
    card = dataclasses.replace(pack_noise(tmp_path, 40), classes=None)
    with pytest.raises(UserError, match=r"model\.family: cgan needs pictures with labels, and this data set has none"):
        build_game(params.parse({"model": CGAN}).model, card)
