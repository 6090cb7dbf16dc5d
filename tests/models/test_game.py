import math

import pytest
import torch
from torch import Tensor

from ganflow.models.game import Noise, draw_noise, option

CPU = torch.device("cpu")


def drawn(kind: Noise, n: int = 4000, dim: int = 16, seed: int = 0) -> Tensor:
    return draw_noise(kind, n, dim, CPU, torch.Generator().manual_seed(seed))


def test_normal_has_the_moments_of_the_standard_normal() -> None:
    noise = drawn("normal")
    assert noise.shape == (4000, 16)
    assert noise.dtype == torch.float32
    error = 1 / math.sqrt(noise.numel())
    assert abs(noise.mean()) < 4 * error
    assert abs(noise.var() - 1) < 4 * math.sqrt(2) * error
    assert abs((noise.abs() < 1).float().mean() - math.erf(1 / math.sqrt(2))) < 4 * 0.47 * error
    assert noise.abs().max() > 3


def test_uniform_fills_minus_one_to_one() -> None:
    noise = drawn("uniform")
    assert noise.shape == (4000, 16)
    error = 1 / math.sqrt(noise.numel())
    assert abs(noise.mean()) < 4 * math.sqrt(1 / 3) * error
    assert abs(noise.var() - 1 / 3) < 4 * math.sqrt(4 / 45) * error
    assert noise.min() >= -1
    assert noise.max() <= 1
    quarters = torch.histc(noise, 4, -1, 1) / noise.numel()
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=4 * 0.433 * error, rtol=0)


def test_latents_are_independent_of_one_another() -> None:
    correlations = torch.corrcoef(drawn("normal").T) - torch.eye(16)
    assert correlations.abs().max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_generator_decides_the_draw_and_leaves_the_default_one_alone(kind: Noise) -> None:
    before = torch.get_rng_state()
    assert torch.equal(drawn(kind), drawn(kind))
    assert not torch.equal(drawn(kind), drawn(kind, seed=1))
    rng = torch.Generator().manual_seed(0)
    assert not torch.equal(draw_noise(kind, 4, 4, CPU, rng), draw_noise(kind, 4, 4, CPU, rng))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_without_one_the_default_generator_decides(kind: Noise) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        first, second = draw_noise(kind, 4, 4, CPU), draw_noise(kind, 4, 4, CPU)
        torch.manual_seed(5)
        assert torch.equal(draw_noise(kind, 4, 4, CPU), first)
    assert not torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_with_a_generator_cuda_gives_the_same(kind: Noise) -> None:
    there = draw_noise(kind, 8, 4, torch.device("cuda"), torch.Generator().manual_seed(0))
    assert there.device.type == "cuda"
    assert torch.equal(there.cpu(), drawn(kind, 8, 4))


def test_an_option_carries_what_the_parameters_check() -> None:
    declared = option(3, "How many.", ge=1, le=5)
    assert declared.default == 3
    assert dict(declared.metadata) == {"description": "How many.", "ge": 1, "le": 5}
