import math

import pytest
import torch
from torch import Tensor

from ganflow.models.inputs import Control, InputSpec, Noise, draw_noise

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


LABEL = Control(name="label", least=0, most=4)
TRUNCATION = Control(name="truncation", least=0.0, most=1.0, default=1.0)


def test_latents_come_first_and_then_a_column_for_each_control() -> None:
    spec = InputSpec("normal", 16, (LABEL, TRUNCATION))
    inputs = spec.draw(5000, CPU, torch.Generator().manual_seed(0))
    assert inputs.shape == (5000, spec.width) == (5000, 18)
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs[:4000, :16], drawn("normal", 5000)[:4000])
    assert torch.equal(inputs[:, 17], torch.ones(5000))
    counts = torch.bincount(inputs[:, 16].long())
    assert torch.equal(inputs[:, 16], inputs[:, 16].round())
    torch.testing.assert_close(counts / 5000, torch.full((5,), 0.2), atol=4 * math.sqrt(0.16 / 5000), rtol=0)


def test_without_controls_there_are_latents_alone() -> None:
    assert torch.equal(InputSpec("uniform", 16).draw(4000, CPU, torch.Generator().manual_seed(0)), drawn("uniform"))


def test_choosing_sets_columns_of_a_copy() -> None:
    spec = InputSpec("normal", 2, (LABEL, TRUNCATION))
    inputs = spec.draw(3, CPU)
    before = inputs.clone()
    chosen = spec.choose(inputs, {"truncation": 0.5, "label": 4})
    assert torch.equal(inputs, before)
    assert chosen[:, 2:].tolist() == [[4, 0.5]] * 3
    assert torch.equal(chosen[:, :2], before[:, :2])
    assert torch.equal(spec.column(chosen, "truncation"), torch.full((3,), 0.5))
    labels = spec.labels(chosen)
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.tolist() == [4, 4, 4]
    assert InputSpec("normal", 2, (TRUNCATION,)).labels(inputs[:, 1:]) is None


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"label": 5}, "label: must be a whole number from 0 to 4, not 5"),
        ({"label": -1}, "label: must be a whole number from 0 to 4, not -1"),
        ({"label": 1.5}, "label: must be a whole number from 0 to 4, not 1.5"),
        ({"label": math.nan}, "label: must be a whole number from 0 to 4, not nan"),
        ({"truncation": 1.1}, "truncation: must be a number from 0 to 1, not 1.1"),
        ({"colour": 1}, "colour: this generator has no such input beside its latents; it has label, truncation"),
    ],
)
def test_what_cannot_be_chosen(chosen: dict[str, float], message: str) -> None:
    spec = InputSpec("normal", 2, (LABEL, TRUNCATION))
    with pytest.raises(ValueError, match=message):
        spec.choose(spec.draw(2, CPU), chosen)


def test_a_generator_of_latents_alone_says_so() -> None:
    spec = InputSpec("normal", 2)
    with pytest.raises(ValueError, match="label: this generator has no such input beside its latents; it has nothing"):
        spec.choose(spec.draw(2, CPU), {"label": 1})
