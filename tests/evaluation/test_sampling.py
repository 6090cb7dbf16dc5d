import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ganflow.data.quantise import to_uint8
from ganflow.errors import UserError
from ganflow.evaluation import sampling
from ganflow.evaluation.sampling import BrokenGeneratorError, Generated, generate, real_batches
from ganflow.models.game import Game
from ganflow.params import parse


class Numbered(Game):
    """Its inputs are the numbers 0, 1, 2, ... in the order of the draw, and each is the gray of its picture."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Flatten(0)
        self.generator.forward = lambda numbers: ((numbers - 128) / 127.5).reshape(-1, 1, 1, 1)  # type: ignore[method-assign]
        self.draws: list[int] = []

    @property
    def players(self) -> tuple[()]:
        return ()

    def draw_inputs(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        start = sum(self.draws)
        self.draws.append(n)
        return torch.arange(start, start + n, dtype=torch.float32)[:, None]


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
    latents = game.draw_inputs(1000, torch.Generator().manual_seed(0))[:4]
    assert torch.equal(pictures, to_uint8(game.eval().generator(latents)))


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_inputs_are_drawn_in_pieces_and_each_is_used_once(
    n: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_DRAWN_AT_ONCE", 4)
    game = Numbered()

    batches = list(generate(game, n, batch_size, seed=0))

    assert torch.cat(batches).flatten().tolist() == list(range(n))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert game.draws == [4] * -(-n // 4), "always as many at a time, and no more pieces than it takes"


def test_pieces_are_drawn_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_DRAWN_AT_ONCE", 4)
    game = Numbered()
    batches = generate(game, 1_000_000, 2, seed=0)

    for drawn in ([4], [4], [4, 4]):
        next(batches)
        assert game.draws == drawn


def test_the_first_pictures_are_the_same_whatever_is_asked_for(game: Game, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_DRAWN_AT_ONCE", 8)
    game.double()  # the last bit of a convolution may follow from the batch size
    game.draw_inputs = lambda n, rng: torch.randn(n, 16, generator=rng, dtype=torch.float64)  # type: ignore[method-assign]
    whole = torch.cat(list(generate(game, 21, 21, seed=1)))

    assert len(whole.flatten(1).unique(dim=0)) == 21, "each piece has inputs of its own"
    for n in (1, 7, 8, 9, 17):
        for batch_size in (1, 5, 8, 50):
            assert torch.equal(torch.cat(list(generate(game, n, batch_size, seed=1))), whole[:n])


@pytest.mark.parametrize("indices", [[0], [3, 4], [7, 0, 10], [10, 9, 9], range(11), [11]])
def test_taken_pictures_are_those_of_the_batches(
    indices: list[int], game: Game, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_DRAWN_AT_ONCE", 4)
    whole = torch.cat(list(Generated(game, 5).batches(12, 3)))

    taken = Generated(game, 5).take(indices)

    assert taken.dtype == torch.uint8
    assert (taken.int() - whole[list(indices)].int()).abs().max() <= 1  # of a batch of another size
    assert Generated(Numbered(), 5).take(indices).flatten().tolist() == list(indices)


def test_taking_draws_no_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_DRAWN_AT_ONCE", 4)
    for last, draws in ((3, 1), (4, 2), (7, 2), (8, 3)):
        game = Numbered()
        Generated(game, 0).take([1, last])
        assert game.draws == [4] * draws


def test_pictures_are_the_same_every_time(game: Game) -> None:
    made = Generated(game, 3)
    first = torch.cat(list(made.batches(6, 4)))
    torch.manual_seed(5)
    assert torch.equal(torch.cat(list(made.batches(6, 4))), first)
    assert torch.equal(torch.cat(list(generate(game, 6, 4, seed=3))), first)
    assert not torch.equal(torch.cat(list(Generated(game, 4).batches(6, 4))), first)


def test_another_network_in_the_generators_place(game: Game) -> None:
    other = parse({"model": {"family": "dcgan", "width": 4, "latent_dim": 16}}).model.build(1, 8).train()
    game.train()

    made = torch.cat(list(generate(game, 6, 4, 3, other.generator)))

    assert torch.equal(made, torch.cat(list(generate(other, 6, 4, 3))))
    assert game.generator.training, "the game's own is left alone"
    assert not other.generator.training


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_generator_is_named(game: Game, value: float) -> None:
    game.generator = nn.Sequential(game.generator, nn.Flatten(0), nn.Unflatten(0, (-1, 1, 8, 8)))
    game.generator.register_forward_hook(
        lambda _, inputs, made: made.index_fill(0, torch.tensor([len(made) - 1]), value)
    )

    assert issubclass(BrokenGeneratorError, UserError)
    with pytest.raises(BrokenGeneratorError, match="not finite"):
        next(generate(game, 2, 2, seed=0))
    with pytest.raises(BrokenGeneratorError, match="not finite"):
        Generated(game, 0).take([1])


def test_real_batches_read_a_map_in_order() -> None:
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    images.flags.writeable = False

    assert [batch.flatten().tolist() for batch in real_batches(images, 2)] == [[0, 1], [2, 3], [4]]
