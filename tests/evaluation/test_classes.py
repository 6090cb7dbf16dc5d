import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

from ganflow.errors import UserError
from ganflow.evaluation.classes import ClassTally, class_divergence, modes


def tally(*batches: torch.Tensor) -> ClassTally:
    counted = ClassTally()
    for batch in batches:
        counted.update(batch)
    return counted


def logits(n: int, c: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(n, c, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_inception_score_equals_torch_fidelity(batch_size: int) -> None:
    all_logits = logits(100, 10)
    expected = isc_features_to_metric(all_logits, splits=1)[KEY_METRIC_ISC_MEAN]

    assert tally(*all_logits.split(batch_size)).inception_score == pytest.approx(expected, rel=1e-12)


def test_inception_score_equals_numpy() -> None:
    all_logits = logits(50, 4)
    p = softmax(all_logits.double().numpy(), axis=1)
    divergences = [entropy(row, p.mean(axis=0)) for row in p]

    assert tally(all_logits).inception_score == pytest.approx(math.exp(np.mean(divergences)), rel=1e-12)


def test_inception_score_by_hand() -> None:
    # Certain of four classes equally often; of two of four; of one; undecided.
    assert tally(1000 * torch.eye(4), 1000 * torch.eye(4)).inception_score == pytest.approx(4)
    assert tally(1000 * torch.eye(4)[:2]).inception_score == pytest.approx(2)
    assert tally(1000 * torch.eye(4)[:1], 1000 * torch.eye(4)[:1]).inception_score == 1
    assert tally(torch.zeros(5, 4)).inception_score == pytest.approx(1, abs=1e-15)


def test_counts_are_of_the_most_probable_class() -> None:
    all_logits = logits(40, 5)

    counts = tally(*all_logits.split(9)).counts

    assert counts.tolist() == [int((all_logits.argmax(dim=1) == label).sum()) for label in range(5)]
    assert counts.dtype == torch.int64


def test_memory_does_not_grow_with_the_pictures() -> None:
    counted = tally(*logits(500, 3).split(10))

    assert sum(value.numel() for value in vars(counted).values() if isinstance(value, torch.Tensor)) == 2 * 3


def test_modes() -> None:
    assert modes(torch.tensor([5, 0, 1, 0, 2])) == 3
    assert modes(torch.zeros(4, dtype=torch.int64)) == 0


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1).filter(lambda counts: any(map(max, counts)))
)
def test_divergence_equals_scipy(counts: list[tuple[int, int]]) -> None:
    generated, real = np.array(counts).T
    generated[0] += 1  # not all 0

    divergence = class_divergence(torch.tensor(generated), torch.tensor(real))

    assert divergence == pytest.approx(entropy(generated, real), abs=1e-12)


def test_divergence_by_hand() -> None:
    assert class_divergence(torch.tensor([7, 0]), torch.tensor([3, 3])) == pytest.approx(math.log(2))
    assert class_divergence(torch.tensor([2, 4]), torch.tensor([100, 200])) == 0
    # 3/4 log(3/4 / (1/4)) + 1/4 log(1/4 / (3/4)): of different sizes, and a class that neither has
    expected = 0.75 * math.log(3) - 0.25 * math.log(3)
    assert class_divergence(torch.tensor([6, 2, 0]), torch.tensor([1, 3, 0])) == pytest.approx(expected)


def test_divergence_is_infinite_where_a_generated_class_is_not_real() -> None:
    generated, real = torch.tensor([1, 1, 1]), torch.tensor([1, 0, 1])

    assert class_divergence(generated, real) is None
    assert class_divergence(real, generated) == pytest.approx(math.log(3 / 2))


def test_rejects_what_does_not_fit() -> None:
    counted = ClassTally()
    counted.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(b, 3\)"):
        counted.update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="one picture at least"):
        _ = ClassTally().inception_score
    with pytest.raises(UserError, match="not finite"):
        ClassTally().update(torch.tensor([[0.0, math.nan]]))
    for generated, real in (([1, 2], [1]), ([0, 0], [1, 1]), ([1, 1], [0, 0]), ([[1]], [[1]])):
        with pytest.raises(ValueError, match=r"counts must be \(c,\)"):
            class_divergence(torch.tensor(generated), torch.tensor(real))
