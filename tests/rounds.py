"""What happens to a match in the middle of a training."""

from collections.abc import Callable

import pytest
import torch

from ganflow.training.match import Match


def before_round(monkeypatch: pytest.MonkeyPatch, images: int, happens: Callable[[Match], None]) -> None:
    """Have something happen when a match comes to a round."""
    original = Match.play_round

    def play_round(match: Match) -> None:
        if match.images == images:
            happens(match)
        original(match)

    monkeypatch.setattr(Match, "play_round", play_round)


def poison(match: Match) -> None:
    with torch.no_grad():
        next(match.game.generator.parameters()).fill_(float("inf"))
