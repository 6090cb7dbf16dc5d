from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ganflow.data.batches import Batches
from ganflow.models.game import Batch, Game, Outcome, Player
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


@pytest.mark.parametrize("train", [{"translation": 2}, {"flip": True}, {"color": True}, {"cutout": 0.5}])
def test_only_a_discriminator_in_training_sees_moved_pictures(train: dict[str, Any]) -> None:
    toy, _ = make(**train)
    images = torch.rand(16, 1, 8, 8)
    assert not torch.equal(toy.discriminator(images), images)
    assert torch.equal(toy.discriminator.eval()(images), images)
    assert torch.equal(toy.generator(images), images)


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
