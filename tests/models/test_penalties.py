"""Penalties against hand calculations, and their gradients by the weights against finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ganflow.models.penalties import gradient_penalty, path_lengths, squared_gradient_norm

IMAGES = (3, 2, 4, 4)


def images(seed: int) -> Tensor:
    return torch.randn(IMAGES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def discriminator() -> nn.Module:
    """A small smooth network of double precision: convolution, tanh, dense layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0)).double()


def check(value: Callable[[], Tensor], network: nn.Module) -> None:
    """Compare the gradient by every weight with central differences."""
    weights = list(network.parameters())
    found = torch.autograd.grad(value(), weights, materialize_grads=True)  # the last bias moves nothing
    step = 1e-6
    for weight, gradient in zip(weights, found, strict=True):
        flat = weight.detach().view(-1)
        for place in range(0, flat.numel(), 3):
            before = flat[place].item()
            ends = []
            for move in (step, -step):
                flat[place] = before + move
                ends.append(value().item())
            flat[place] = before
            expected = (ends[0] - ends[1]) / (2 * step)
            assert gradient.reshape(-1)[place].item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_squared_gradient_norm_by_hand() -> None:
    # D(x) = sum of a * x^2 has the gradient 2 a x.
    x = images(0).requires_grad_()
    a = images(1)
    expected = (2 * a * x.detach()).square().sum(dim=(1, 2, 3)).mean()
    found = squared_gradient_norm((a * x.square()).sum(dim=(1, 2, 3)), x)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_squared_gradient_norm_sums_over_a_picture_and_averages_over_the_batch() -> None:
    x = torch.zeros(5, 1, 2, 2, requires_grad=True)
    assert squared_gradient_norm(3 * x.sum(dim=(1, 2, 3)), x).item() == 4 * 9


def test_squared_gradient_norm_against_finite_differences() -> None:
    network, x = discriminator(), images(2)

    def penalty() -> Tensor:
        own = x.clone().requires_grad_()
        return squared_gradient_norm(network(own), own)

    check(penalty, network)


def test_gradient_penalty_by_hand() -> None:
    # A linear critic has the norm of its weights everywhere.
    weights = images(0)[0]
    found = gradient_penalty(lambda x: (x * weights).sum(dim=(1, 2, 3)), images(1), images(2))
    assert found.item() == pytest.approx((weights.norm().item() - 1) ** 2, rel=1e-12)


def test_each_picture_has_its_own_place_on_its_own_line() -> None:
    seen = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.sum(dim=(1, 2, 3))

    real, fake = images(1), images(2)
    torch.manual_seed(0)
    gradient_penalty(critic, real, fake)
    places = (seen[0] - fake) / (real - fake)
    own = places.flatten(1)
    torch.testing.assert_close(own, own[:, :1].expand_as(own))
    assert len(own[:, 0].unique()) == len(real)
    assert ((own >= 0) & (own <= 1)).all()


def test_places_are_uniform() -> None:
    seen = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach().flatten())
        return x.sum(dim=(1, 2, 3))

    gradient_penalty(critic, torch.ones(4000, 1, 1, 1), torch.zeros(4000, 1, 1, 1))
    quarters = torch.histc(seen[0], 4, 0, 1) / 4000
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=4 * 0.433 / math.sqrt(4000), rtol=0)


def test_gradient_penalty_against_finite_differences() -> None:
    network, real, fake = discriminator(), images(3), images(4)

    def penalty() -> Tensor:
        torch.manual_seed(5)
        return gradient_penalty(network, real, fake)

    check(penalty, network)


def test_gradient_penalty_does_not_reach_the_generator() -> None:
    fake = images(4).requires_grad_()
    torch.autograd.backward(gradient_penalty(discriminator(), images(3), fake))
    assert fake.grad is None


def test_a_flat_critic_has_a_finite_penalty() -> None:
    # Its ReLU is off everywhere: the gradient is exactly 0, where a root has no derivative.
    critic = nn.Sequential(nn.Flatten(), nn.Linear(32, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        critic[1].bias.fill_(-1000)
    found = gradient_penalty(lambda x: critic(x).flatten(), images(1), images(2))
    assert found.item() == 1
    gradients = torch.autograd.grad(found, list(critic.parameters()), materialize_grads=True)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_path_lengths_by_hand() -> None:
    # G(w) = A w, the same A for every layer: J^T y is A^T y for each layer.
    matrix = torch.randn(16, 5, dtype=torch.float64)
    styles = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    made = (styles.sum(dim=1) @ matrix.T).view(3, 1, 4, 4)
    torch.manual_seed(7)
    found = path_lengths(made, styles)
    torch.manual_seed(7)
    noise = torch.randn_like(made).flatten(1) / 4
    torch.testing.assert_close(found, (noise @ matrix).norm(dim=1))


def test_path_lengths_do_not_depend_on_the_resolution() -> None:
    # A generator that gives every pixel the same value c w: the expectation of |J^T y|^2 is c^2, whatever the side.
    means = []
    for side in (2, 16):
        styles = torch.randn(4000, 1, 1, requires_grad=True)
        made = (3 * styles[:, :, :, None]).expand(-1, 1, side, side)
        means.append(path_lengths(made, styles).square().mean().item())
    assert means == pytest.approx([9, 9], rel=0.1)


def test_path_lengths_against_finite_differences() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 16)).double()
    styles = torch.randn(3, 2, 4, dtype=torch.float64)

    def penalty() -> Tensor:
        own = styles.clone().requires_grad_()
        torch.manual_seed(5)
        lengths = path_lengths(network(own.flatten(1)).view(3, 1, 4, 4), own)
        return (lengths - 0.1).square().mean()

    check(penalty, network)


def test_path_lengths_of_a_generator_that_does_not_move_are_finite() -> None:
    scale = torch.zeros(1, requires_grad=True)
    styles = torch.randn(3, 2, 4, requires_grad=True)
    lengths = path_lengths((scale * styles).sum(dim=(1, 2)).view(3, 1, 1, 1).expand(3, 1, 4, 4), styles)
    assert lengths.tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad((lengths - 1).square().mean(), scale)
    assert gradient.isfinite().all()
