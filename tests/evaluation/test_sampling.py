import numpy as np
import pytest
import torch

from ganflow.data.quantise import to_uint8
from ganflow.errors import UserError
from ganflow.evaluation.sampling import generate, real_batches
from ganflow.models.game import Game
from ganflow.params import parse


@pytest.fixture
def game() -> Game:
    return parse({"model": {"family": "dcgan", "width": 4, "latent_dim": 16}}).model.build(1, 8)


def test_batches_of_bytes(game: Game) -> None:
    batches = list(generate(game, 7, 3, seed=0))

    assert [tuple(batch.shape) for batch in batches] == [(3, 1, 8, 8), (3, 1, 8, 8), (1, 1, 8, 8)]
    assert all(batch.dtype == torch.uint8 for batch in batches)


def test_follow_from_the_seed_alone(game: Game) -> None:
    first = torch.cat(list(generate(game, 6, 3, seed=1)))
    torch.manual_seed(5)
    again = torch.cat(list(generate(game, 6, 4, seed=1)))

    assert torch.equal(first, again)
    assert not torch.equal(first, torch.cat(list(generate(game, 6, 3, seed=2))))
    assert len(first.flatten(1).unique(dim=0)) == 6


def test_the_generator_is_in_eval_mode_and_its_pictures_are_rounded(game: Game) -> None:
    game.train()
    statistics = game.generator.state_dict()
    before = {name: tensor.clone() for name, tensor in statistics.items()}

    pictures = next(generate(game, 4, 4, seed=0))

    assert all(torch.equal(tensor, before[name]) for name, tensor in statistics.items())
    latents = game.draw_inputs(4, torch.Generator().manual_seed(0))
    assert torch.equal(pictures, to_uint8(game.eval().generator(latents)))


def test_a_broken_generator_is_named(game: Game) -> None:
    with torch.no_grad():
        next(game.generator.parameters()).fill_(torch.nan)

    with pytest.raises(UserError, match="not finite"):
        next(generate(game, 2, 2, seed=0))


def test_real_batches_read_a_map_in_order() -> None:
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    images.flags.writeable = False

    assert [batch.flatten().tolist() for batch in real_batches(images, 2)] == [[0, 1], [2, 3], [4]]
