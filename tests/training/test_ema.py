import pytest
import torch
from torch import Tensor, nn

from ganflow.training.ema import MovingAverage, half_life


class Net(nn.Module):
    """A parameter, a floating statistic and a count, as batch norm has them."""

    statistic: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("statistic", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))

    def become(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.statistic.fill_(-value)
            self.count.fill_(int(value))


def test_half_of_the_past_is_left_after_a_half_life() -> None:
    net = Net()
    average = MovingAverage(net)
    net.become(1)
    average.update(100, 100.0)
    torch.testing.assert_close(average.network.weight, torch.full((3,), 0.5))
    average.update(200, 100.0)
    torch.testing.assert_close(average.network.weight, torch.full((3,), 0.875))


def test_closed_form_after_many_steps() -> None:
    """After k steps of a net that moves, the average is the weighted sum of all its positions."""
    net, images, life = Net(), 64, 500.0
    average = MovingAverage(net)
    keep = 0.5 ** (images / life)
    path = [float(step**2 % 7) for step in range(1, 21)]
    for value in path:
        net.become(value)
        average.update(images, life)
    expected = sum((1 - keep) * keep ** (len(path) - step) * value for step, value in enumerate(path, 1))
    torch.testing.assert_close(average.network.weight, torch.full((3,), expected))
    torch.testing.assert_close(average.network.statistic, torch.full((2,), -expected))


def test_steps_weigh_by_their_images_however_they_are_cut() -> None:
    nets = Net(), Net()
    once, often = (MovingAverage(net) for net in nets)
    for net in nets:
        net.become(3)
    once.update(600, 1000.0)
    for _ in range(6):
        often.update(100, 1000.0)
    torch.testing.assert_close(once.network.weight, often.network.weight)


def test_the_live_network_is_left_alone() -> None:
    net = Net().train()
    average = MovingAverage(net)
    net.become(2)
    average.update(10, 5.0)
    assert torch.equal(net.weight, torch.full((3,), 2.0))
    assert net.training
    assert net.weight.requires_grad
    assert not average.network.training
    assert not average.network.weight.requires_grad
    assert average.network.count == 0, "a count is not averaged"


def test_it_starts_as_the_network_is() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = MovingAverage(net)
    for name, value in net.state_dict().items():
        assert torch.equal(average.network.state_dict()[name], value)
        assert average.network.state_dict()[name].data_ptr() != value.data_ptr()


def test_weights_loaded_later_are_followed() -> None:
    """A restored checkpoint is copied into the tensors; the average must go on from there."""
    net = Net()
    average = MovingAverage(net)
    net.load_state_dict({"weight": torch.ones(3), "statistic": torch.ones(2), "count": torch.tensor(1)})
    average.network.load_state_dict({"weight": torch.zeros(3), "statistic": torch.zeros(2), "count": torch.tensor(1)})
    average.update(10, 10.0)
    torch.testing.assert_close(average.network.weight, torch.full((3,), 0.5))


@pytest.mark.parametrize(
    ("images", "expected"), [(0, 1e-8), (100, 5.0), (1000, 50.0), (4000, 200.0), (4001, 200.0), (10**9, 200.0)]
)
def test_ramp_up(images: int, expected: float) -> None:
    assert half_life(images, 200, 0.05) == pytest.approx(expected, rel=1e-12)


def test_at_the_start_the_average_is_the_network() -> None:
    net = Net()
    average = MovingAverage(net)
    net.become(4)
    average.update(64, half_life(0, 20_000, 0.05))
    torch.testing.assert_close(average.network.weight, torch.full((3,), 4.0))
