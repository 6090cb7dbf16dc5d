import math

import pytest
import torch

from ganflow.models.game import Outcome
from ganflow.training.meter import Meter

CPU = torch.device("cpu")


def outcome(loss: float, **values: float) -> Outcome:
    return Outcome(torch.tensor(loss, requires_grad=True), {name: torch.tensor(v) for name, v in values.items()})


def test_means_since_the_last_reading() -> None:
    meter = Meter(CPU)
    for turn, (loss, d_real) in enumerate([(1.0, 0.5), (2.0, 0.25), (6.0, 0.75)]):
        meter.add("discriminator", outcome(loss, d_real=d_real), 10 * turn)
        if turn != 1:
            meter.add("generator", outcome(-loss), 10 * turn)
    means, diverged_at = meter.read()
    assert means == {"discriminator_loss": 3.0, "d_real": 0.5, "generator_loss": -3.5}
    assert list(means) == ["discriminator_loss", "d_real", "generator_loss"]
    assert diverged_at is None
    meter.add("discriminator", outcome(5.0), 40)
    assert meter.read() == ({"discriminator_loss": 5.0}, None)


def test_the_norm_of_all_gradients_taken_as_one_vector() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2), torch.nn.Linear(2, 1))
    network[2].requires_grad_(False)  # has none
    meter, norms = Meter(CPU), []
    for scale in (1.0, 30.0):
        network.zero_grad()
        (scale * network(torch.randn(7, 3)).square().sum()).backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        norms.append(sum(float((gradient.double() ** 2).sum()) for gradient in gradients) ** 0.5)
        meter.add_gradient("generator", network)
    assert len(gradients) == 4
    assert meter.read()[0] == {"generator_grad_norm": pytest.approx(sum(norms) / 2, rel=1e-6)}


def test_a_player_without_gradients() -> None:
    meter = Meter(CPU)
    meter.add_gradient("generator", torch.nn.Linear(1, 1))
    assert meter.read()[0] == {"generator_grad_norm": 0.0}


def test_nothing_to_read() -> None:
    assert Meter(CPU).read() == ({}, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_loss_that_is_not_finite(bad: float) -> None:
    meter = Meter(CPU)
    for images in (64, 128, 192, 256, 320):
        meter.add("discriminator", outcome(bad if images in {192, 320} else 1.0), images)
        meter.add("generator", outcome(bad if images == 256 else 1.0), images)
    _, diverged_at = meter.read()
    assert diverged_at == 192
    meter.add("discriminator", outcome(1.0), 384)
    assert meter.read()[1] == 192, "it is not forgotten"


def test_image_counts_beyond_32_bits() -> None:
    meter = Meter(CPU)
    meter.add("generator", outcome(math.nan), 2**40 + 1)
    assert meter.read()[1] == 2**40 + 1


def test_it_keeps_no_graph_and_does_not_touch_what_it_is_given() -> None:
    meter = Meter(CPU)
    first = outcome(1.0, d_real=0.5)
    meter.add("discriminator", first, 1)
    meter.add("discriminator", outcome(2.0, d_real=0.5), 2)
    assert first.loss.item() == 1.0
    assert first.values["d_real"].item() == 0.5
    sums, counts = meter.state()
    assert not any(total.requires_grad for total in sums.values())
    assert counts == {"discriminator_loss": 2, "d_real": 2}
    meter.read()
    assert first.loss.item() == 1.0


def test_half_precision_is_summed_in_single() -> None:
    meter = Meter(CPU)
    for _ in range(1000):
        meter.add("generator", Outcome(torch.tensor(1.0, dtype=torch.bfloat16), {}), 1)
    assert meter.read()[0] == {"generator_loss": 1.0}


def test_state_and_restore_go_on_in_the_middle_of_a_tick() -> None:
    turns = [outcome(0.1 * n, d_real=0.01 * n) for n in range(10)]
    whole, before, after = Meter(CPU), Meter(CPU), Meter(CPU)
    for n, turn in enumerate(turns):
        whole.add("discriminator", turn, n)
        if n < 6:
            before.add("discriminator", turn, n)
    sums, counts = before.state()
    before.read()  # what goes on here must not reach the state
    after.restore(sums, counts)
    for n, turn in enumerate(turns[6:], 6):
        after.add("discriminator", turn, n)
    assert after.read() == whole.read()
    assert counts == {"discriminator_loss": 6, "d_real": 6}
