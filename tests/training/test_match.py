import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ganflow.data.batches import Batches
from ganflow.models.game import Batch, Game, Outcome, Pace, Player
from ganflow.params import TrainParams
from ganflow.training.match import Match
from ganflow.training.team import Team

CPU = torch.device("cpu")


class Numbered(Batches):
    """Batches that hold the position they were asked for."""

    def __init__(self, size: int) -> None:
        self._size = size

    def batch(self, position: int) -> Batch:
        return Batch(torch.full((self._size, 1, 1, 1), float(position)), None)


class Net(nn.Module):
    """One weight, which does nothing to the pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return images


class Toy(Game):
    """Each player loses its own weight: gradient 1, so that Adam moves it by its learning rate every step."""

    def __init__(self, discriminator_steps: int = 1) -> None:
        super().__init__()
        self.generator, self.discriminator = Net(), Net()
        self.steps = discriminator_steps
        self.turns: list[tuple[str, float]] = []

    @property
    def players(self) -> tuple[Player, ...]:
        return (
            Player("discriminator", self.discriminator, self._turn("discriminator"), self.steps),
            Player("generator", self.generator, self._turn("generator")),
        )

    def _turn(self, name: str) -> Any:
        def play(batch: Batch) -> Outcome:
            self.turns.append((name, batch.images[0].item()))
            weight = self.get_submodule(name).weight
            return Outcome(weight * 1.0, {f"{name}_saw": batch.images.mean()})

        return play

    def draw_inputs(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        return torch.zeros(n, 1)


def make(steps: int = 1, **train: Any) -> tuple[Toy, Match]:
    toy = Toy(steps)
    settings = TrainParams(batch_size=8, **train)
    return toy, Match(toy, Numbered(8), settings, CPU)


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("steps", [1, 3])
def test_images_are_those_shown_to_the_discriminator(steps: int) -> None:
    _, match = make(steps)
    assert (match.images, match.images_a_round) == (0, 8 * steps)
    for _ in range(5):
        match.play_round()
    assert match.images == 5 * 8 * steps


def test_players_alternate_and_take_the_batches_in_order() -> None:
    toy, match = make(3)
    match.play_round()
    match.play_round()
    names, positions = zip(*toy.turns, strict=True)
    assert names == ("discriminator", "discriminator", "discriminator", "generator") * 2
    assert positions == tuple(range(0, 64, 8))


def test_a_turn_computes_gradients_of_its_own_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    toy, match = make()
    together = Outcome(3 * toy.discriminator.weight + 5 * toy.generator.weight, {})
    monkeypatch.setattr(Toy, "_turn", lambda self, name: lambda batch: together)
    match.players = toy.players
    seen = []
    for player in match.players:
        before = match.optimizers[player.name].step
        others = [other.network for other in match.players if other is not player]
        monkeypatch.setattr(
            match.optimizers[player.name],
            "step",
            lambda before=before, own=player.network, others=others: (
                seen.append((own.weight.grad.item(), [other.weight.grad for other in others])),
                before(),
            ),
        )
    monkeypatch.setattr(torch.autograd, "backward", partial(torch.autograd.backward, retain_graph=True))
    match.play_round()
    (discriminator, [untouched]), (generator, [earlier]) = seen
    assert (discriminator, generator) == (3, 5)
    assert untouched is None
    assert earlier.item() == 3


def test_a_round_after_a_restore_takes_the_batches_that_follow() -> None:
    toy, match = make(2)
    match.rounds = 5
    match.play_round()
    assert [position for _, position in toy.turns] == [120, 128, 136]


def test_each_player_moves_with_its_own_learning_rate() -> None:
    toy, match = make(3, generator_lr=0.001, discriminator_lr=0.01)
    for _ in range(4):
        match.play_round()
    # A gradient of 1 at every step: Adam's two averages are equal, and the step is the rate.
    assert toy.discriminator.weight.item() == pytest.approx(-12 * 0.01, rel=1e-5)
    assert toy.generator.weight.item() == pytest.approx(-4 * 0.001, rel=1e-5)


def test_adam_has_the_betas_asked_for() -> None:
    _, match = make(beta1=0.1, beta2=0.2)
    match.play_round()
    for optimizer in match.optimizers.values():
        (state,) = optimizer.state.values()
        assert state["exp_avg"].item() == pytest.approx(0.9)  # (1 - beta1) * 1
        assert state["exp_avg_sq"].item() == pytest.approx(0.8)


def test_the_average_follows_by_the_images_of_a_round() -> None:
    toy, match = make(2, generator_lr=0.5, ema_half_life=64, ema_ramp_up=0.5)
    average, weight = 0.0, 0.0
    for played in range(1, 15):
        match.play_round()
        weight -= 0.5
        life = min(64, 0.5 * 16 * played)
        average += (weight - average) * (1 - 0.5 ** (16 / life))
    assert match.average.network.weight.item() == pytest.approx(average, rel=1e-4)
    assert toy.generator.weight.item() == pytest.approx(weight, rel=1e-5)


def test_the_meter_has_every_turn() -> None:
    _, match = make(2, discriminator_lr=0.5)
    match.play_round()
    match.play_round()
    means, diverged_at = match.meter.read()
    assert diverged_at is None
    assert means["discriminator_loss"] == pytest.approx((0 - 0.5 - 1.0 - 1.5) / 4, rel=1e-4)
    assert means["discriminator_saw"] == pytest.approx((0 + 8 + 24 + 32) / 4)
    assert means["generator_saw"] == pytest.approx((16 + 40) / 2)
    assert (means["discriminator_grad_norm"], means["generator_grad_norm"]) == (1.0, 1.0)


def test_gradient_norms_are_those_of_the_whole_batch() -> None:
    class Doubling(Team):
        def average_gradients(self, network: nn.Module) -> None:
            for parameter in network.parameters():
                assert parameter.grad is not None
                parameter.grad *= 2

    match = Match(Toy(), Numbered(8), TrainParams(batch_size=8), CPU, Doubling())
    match.play_round()
    means, _ = match.meter.read()
    assert (means["discriminator_grad_norm"], means["generator_grad_norm"]) == (2.0, 2.0)


def test_a_loss_that_is_not_finite_is_dated_by_the_end_of_its_round() -> None:
    toy, match = make(2)
    match.play_round()
    with torch.no_grad():
        toy.generator.weight.fill_(float("nan"))
    match.play_round()
    match.play_round()
    assert match.meter.read()[1] == 32


# What a player may ask of its optimiser


def asking(match: Match, toy: Toy, **wishes: Any) -> None:
    """Let both players of a fresh match have an optimiser, a constraint or a pace of their own."""
    match.players = tuple(replace(player, **wishes) for player in toy.players)
    match.optimizers = {player.name: match._optimizer(player) for player in match.players}


def test_a_player_by_rmsprop_moves_as_by_hand() -> None:
    toy, match = make(2, generator_lr=0.01, discriminator_lr=0.1, beta1=0.9, beta2=0.1)
    # The gradients are the positions of the batches: 0, 8 for the discriminator, 16 for the generator, 24, 32, ...
    toy._turn = lambda name: lambda batch: Outcome(toy.get_submodule(name).weight * batch.images.mean(), {})  # type: ignore[method-assign]
    asking(match, toy, optimizer="rmsprop")
    expected = {"discriminator": 0.0, "generator": 0.0}
    squares = dict.fromkeys(expected, 0.0)
    for played in range(10):
        match.play_round()
        for turn, name in enumerate(("discriminator", "discriminator", "generator")):
            gradient = 8.0 * (3 * played + turn)
            squares[name] = 0.99 * squares[name] + 0.01 * gradient**2
            rate = {"discriminator": 0.1, "generator": 0.01}[name]
            expected[name] -= rate * gradient / (math.sqrt(squares[name]) + 1e-8)
    for name, weight in expected.items():
        assert toy.get_submodule(name).weight.item() == pytest.approx(weight, rel=1e-5)
    assert all(type(optimizer) is torch.optim.RMSprop for optimizer in match.optimizers.values())


def test_the_optimizer_is_the_one_that_the_player_names() -> None:
    class Mixed(Toy):
        @property
        def players(self) -> tuple[Player, ...]:
            critic, generator = super().players
            return replace(critic, optimizer="rmsprop"), generator

    match = Match(Mixed(), Numbered(8), TrainParams(batch_size=8), CPU)
    kinds = {name: type(optimizer) for name, optimizer in match.optimizers.items()}
    assert kinds == {"discriminator": torch.optim.RMSprop, "generator": torch.optim.Adam}


def test_parameters_are_put_back_after_every_step_of_their_own_player() -> None:
    toy, match = make(3, generator_lr=0.25, discriminator_lr=0.1)
    came: list[float] = []

    def constrain() -> None:
        came.append(toy.discriminator.weight.item())
        with torch.no_grad():
            toy.discriminator.weight.clamp_(min=-0.15)

    critic, generator = toy.players
    match.players = (replace(critic, constrain=constrain), generator)
    match.play_round()
    assert came == pytest.approx([-0.1, -0.2, -0.25], rel=1e-5)
    assert toy.discriminator.weight.item() == pytest.approx(-0.15)
    match.play_round()
    assert came[3:] == pytest.approx([-0.25] * 3, rel=1e-5)
    assert toy.generator.weight.item() == pytest.approx(-0.5, rel=1e-5), "which nobody holds"


def test_the_average_follows_what_was_put_back() -> None:
    toy, match = make(generator_lr=0.5, ema_half_life=1)

    def constrain() -> None:
        with torch.no_grad():
            toy.generator.weight.fill_(7.0)

    asking(match, toy, constrain=constrain)
    match.play_round()
    assert match.average.network.weight.item() == pytest.approx(7.0)


def test_the_pace_follows_from_the_images() -> None:
    toy, match = make(2, generator_lr=0.1, discriminator_lr=0.2, beta1=0.3, beta2=0.9)
    asked: list[tuple[int, float]] = []
    taken: list[tuple[str, float, tuple[float, float]]] = []

    def pace(images: int, beta2: float) -> Pace:
        asked.append((images, beta2))
        return Pace(0.5 ** (images / 16), beta2 - images / 160)

    asking(match, toy, pace=pace)
    for name, optimizer in match.optimizers.items():

        def noted(optimizer: torch.optim.Optimizer, _: Any, __: Any, name: str = name) -> None:
            (group,) = optimizer.param_groups
            taken.append((name, group["lr"], group["betas"]))

        optimizer.register_step_pre_hook(noted)
    for _ in range(3):
        match.play_round()
    assert asked == [(images, 0.9) for images in (0, 0, 0, 16, 16, 16, 32, 32, 32)]
    assert taken == [
        (name, pytest.approx(rate * 0.5**played), (0.3, pytest.approx(0.9 - played / 10)))
        for played in range(3)
        for name, rate in (("discriminator", 0.2), ("discriminator", 0.2), ("generator", 0.1))
    ]


def test_a_slower_pace_is_a_smaller_step() -> None:
    toy, match = make(generator_lr=0.1, discriminator_lr=0.2)
    asking(match, toy, pace=lambda images, beta2: Pace(1 / (1 + images / 8), beta2))
    for _ in range(4):
        match.play_round()
    # A gradient of 1 at every step: each is the rate of its moment.
    assert toy.generator.weight.item() == pytest.approx(-0.1 * (1 + 1 / 2 + 1 / 3 + 1 / 4), rel=1e-5)
    assert toy.discriminator.weight.item() == pytest.approx(-0.2 * (1 + 1 / 2 + 1 / 3 + 1 / 4), rel=1e-5)


def test_the_game_is_told_how_far_it_has_come() -> None:
    toy, match = make(2)
    told: list[tuple[int, int]] = []
    toy._turn = lambda name: (
        lambda batch: (  # type: ignore[method-assign]
            told.append((toy.rounds, toy.images)) or Outcome(toy.get_submodule(name).weight * 1.0, {})
        )
    )
    match.players = toy.players
    match.play_round()
    match.rounds = 5  # as after a restore
    match.play_round()
    assert told == [(0, 0)] * 3 + [(5, 80)] * 3


# A game without discriminator


class Alone(Game):
    """One player, which moves all of the game: a weight beside the generator's, and the generator's own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.encoder, self.discriminator = Net(), Net(), None
        self.no_discriminator = "it plays alone"
        self.positions: list[float] = []

    @property
    def players(self) -> tuple[Player, ...]:
        return (Player("generator", self, self._turn),)

    def _turn(self, batch: Batch) -> Outcome:
        self.positions.append(batch.images[0].item())
        return Outcome(self.encoder.weight + 2 * self.generator.weight, {"found": self.encoder.weight * 2})

    def draw_inputs(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        return torch.zeros(n, 1)


def test_a_game_without_discriminator_is_played() -> None:
    game = Alone()
    match = Match(game, Numbered(8), TrainParams(batch_size=8, generator_lr=0.5, translation=1, ema_half_life=1), CPU)
    for _ in range(3):
        match.play_round()
    assert (match.images, match.images_a_round) == (24, 8)
    assert game.positions == [0, 8, 16]
    assert game.encoder.weight.item() == pytest.approx(-1.5, rel=1e-5)
    assert game.generator.weight.item() == pytest.approx(-1.5, rel=1e-5)
    assert match.average.network.weight.item() == pytest.approx(-1.5, rel=0.01)
    means, _ = match.meter.read()
    assert means == pytest.approx(
        {"generator_loss": (0 - 1.5 - 3) / 3, "found": (0 - 1 - 2) / 3, "generator_grad_norm": math.sqrt(5)}, rel=1e-4
    )


# What the discriminator sees


@pytest.mark.parametrize("train", [{"translation": 2}, {"flip": True}, {"color": True}, {"cutout": 0.5}])
def test_only_a_discriminator_in_training_sees_moved_pictures(train: dict[str, Any]) -> None:
    toy, _ = make(**train)
    images = torch.rand(16, 1, 8, 8)
    assert not torch.equal(toy.discriminator(images), images)
    assert torch.equal(toy.discriminator.eval()(images), images)
    assert torch.equal(toy.generator(images), images)


def test_a_discriminator_that_is_told_the_classes_is_told_them_as_they_are() -> None:
    class Listening(Net):
        def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            self.told = labels
            return images

    toy = Toy()
    toy.discriminator = Listening()
    Match(toy, Numbered(8), TrainParams(batch_size=8, translation=2, flip=True, color=True, cutout=0.5), CPU)
    images, labels = torch.rand(16, 1, 8, 8), torch.arange(16)
    for network in (toy.discriminator, toy.discriminator.eval()):
        seen = network(images, labels)
        assert seen.shape == images.shape
        assert torch.equal(seen, images) != network.training
        assert network.told is labels


def test_without_augmentation_pictures_and_randomness_stay_as_they_are() -> None:
    toy, _ = make()
    images = torch.rand(4, 1, 8, 8)
    before = torch.get_rng_state()
    assert torch.equal(toy.discriminator(images), images)
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_are_laid_out_with_the_channels_last_and_in_training() -> None:
    toy = Toy()
    toy.generator = nn.Conv2d(4, 4, 3).eval()
    Match(toy, Numbered(8), TrainParams(batch_size=8), CPU)
    assert toy.generator.weight.is_contiguous(memory_format=torch.channels_last)
    assert toy.generator.training


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_networks_compute_in_the_precision_and_answer_in_float32(precision: Any, dtype: torch.dtype) -> None:
    toy = Toy()
    toy.generator = nn.Sequential(nn.Linear(4, 4), nn.Identity())
    computed: list[torch.dtype] = []
    toy.generator[1].register_forward_hook(lambda _, __, output: computed.append(output.dtype))
    weight = toy.generator[0].weight

    def play(batch: Batch) -> Outcome:
        answer = toy.generator(torch.ones(2, 4))
        computed.append(answer.dtype)
        return Outcome(answer.sum(), {})

    toy._turn = lambda name: play  # type: ignore[method-assign]
    match = Match(toy, Numbered(8), TrainParams(batch_size=8, precision=precision), CPU)
    match.players = match.players[1:]
    match.play_round()
    assert computed == [dtype, torch.float32]
    assert weight.dtype == weight.grad.dtype == torch.float32
    assert match.average.network(torch.ones(2, 4)).dtype == torch.float32
    assert computed[2:] == [torch.float32]  # what looks at the average is not in a hurry
