from math import isnan

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics.pairwise import polynomial_kernel
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from ganflow.errors import UserError
from ganflow.evaluation import kernel_distance as module
from ganflow.evaluation.kernel_distance import kernel_distance


def features(seed: int, n: int, d: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).relu() + shift


def pair_terms(real: torch.Tensor, fake: torch.Tensor) -> NDArray[np.float64]:
    """h (n, n), with the kernel of scikit-learn, which has gamma 1/d and coef0 1 by default."""
    x, y = real.numpy(), fake.numpy()
    across: NDArray[np.float64] = polynomial_kernel(x, y)
    h: NDArray[np.float64] = polynomial_kernel(x) + polynomial_kernel(y) - across - across.T
    return h


def test_by_hand() -> None:
    # d = 2: k(x1, x2) = (0 + 1)^3, k(y1, y2) = (4/2 + 1)^3; across 2^3, 1, 1 and 2^3.
    real, fake = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [2.0, 2.0]])
    # x1.y1 = 2, x1.y2 = 2, x2.y1 = 0, x2.y2 = 2
    expected = 1 + 3**3 - 2 * (2**3 + 2**3 + 1 + 2**3) / 4

    assert kernel_distance(real, fake).value == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("block", [1, 70, 1 << 20])
def test_value_equals_torch_fidelity(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)  # 1, 3 and all rows at once
    real, fake = features(1, 23, 6), features(2, 23, 6, shift=0.3)
    expected = kid_features_to_metric(fake, real, kid_subsets=1, kid_subset_size=23, verbose=False)

    assert kernel_distance(real, fake).value == pytest.approx(expected[KEY_METRIC_KID_MEAN], rel=1e-12)


def test_value_equals_scikit_learn() -> None:
    real, fake = features(3, 40, 5), features(4, 40, 5)
    own = sum(polynomial_kernel(x)[~np.eye(40, dtype=bool)].mean() for x in (real.numpy(), fake.numpy()))

    expected = own - 2 * polynomial_kernel(real.numpy(), fake.numpy()).mean()

    assert kernel_distance(real, fake).value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_standard_error_is_of_a_two_way_layout(monkeypatch: pytest.MonkeyPatch, block: int, shift: float) -> None:
    # h_ij = mean + g_i + g_j + e_ij over pairs, fitted by least squares.
    monkeypatch.setattr(module, "_BLOCK", block)
    n = 14
    real, fake = features(5, n, 3), features(6, n, 3, shift)
    first, second = np.triu_indices(n, 1)
    pairs = np.arange(len(first))
    design = np.zeros((len(first), n + 1))
    design[:, n] = design[pairs, first] = design[pairs, second] = 1
    h = pair_terms(real, fake)[first, second]
    fitted = np.linalg.lstsq(design, h)[0]
    residual = ((h - design @ fitted) ** 2).sum() / (len(h) - n)
    # The effects' own variance is what theirs is above that of the fit's errors, residual / (n - 2).
    own = max(0, np.var(fitted[:n], ddof=1) - residual / (n - 2))
    zeta1, zeta2 = own, 2 * own + residual
    expected = np.sqrt((4 * (n - 2) * zeta1 + 2 * zeta2) / (n * (n - 1)))

    assert kernel_distance(real, fake).standard_error == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("d", "shift", "accuracy"), [(32, 0, 0.15), (32, 0.05, 0.15), (32, 0.5, 0.15), (4, 0, 0.25)])
def test_standard_error_is_the_spread_over_draws(d: int, shift: float, accuracy: float) -> None:
    draws = [kernel_distance(features(2 * i, 60, d), features(2 * i + 1, 60, d, shift)) for i in range(600)]
    values, errors = torch.tensor(draws, dtype=torch.float64).T

    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=accuracy)
    if shift == 0:
        assert abs(float(values.mean())) < 3 * float(values.std()) / 600**0.5  # unbiased


def test_single_precision_features_are_measured_in_double() -> None:
    real, fake = features(1, 30, 4).float() * 100, features(2, 30, 4).float() * 100

    assert kernel_distance(real, fake) == kernel_distance(real.double(), fake.double())


def test_a_few_pictures_have_no_standard_error() -> None:
    assert isnan(kernel_distance(features(1, 3, 4), features(2, 3, 4)).standard_error)
    assert kernel_distance(features(1, 4, 4), features(2, 4, 4)).standard_error > 0


def test_pictures_that_are_all_alike_have_no_spread() -> None:
    distance = kernel_distance(torch.zeros(5, 2), torch.ones(5, 2))

    assert distance == (1 + 2**3 - 2, 0)


def test_rejects_what_does_not_fit() -> None:
    for real, fake in (((3, 2), (4, 2)), ((3, 2), (3, 1)), ((1, 2), (1, 2)), ((3,), (3,))):
        with pytest.raises(ValueError, match="as many real as fake"):
            kernel_distance(torch.zeros(real), torch.zeros(fake))
    with pytest.raises(UserError, match="not finite"):
        kernel_distance(torch.zeros(3, 1), torch.full((3, 1), torch.inf))
