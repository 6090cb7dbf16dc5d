import numpy as np
import pytest
import torch

from ganflow.training.variety import nearest_distance


def by_hand(pictures: torch.Tensor) -> float:
    """Go through all pairs."""
    flat = pictures.numpy().reshape(len(pictures), -1).astype(np.float64)
    nearest = [min(np.linalg.norm(one - two) for j, two in enumerate(flat) if i != j) for i, one in enumerate(flat)]
    return float(np.mean(nearest))


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (9, 3, 8, 8), (64, 1, 16, 16)])
def test_the_mean_distance_to_the_nearest_other_picture(shape: tuple[int, ...]) -> None:
    pictures = torch.randn(shape)
    assert nearest_distance(pictures) == pytest.approx(by_hand(pictures), rel=1e-9)
    assert nearest_distance(3 * pictures[torch.randperm(len(pictures))]) == pytest.approx(3 * by_hand(pictures))


def test_pictures_that_repeat_are_not_varied_though_they_differ_much() -> None:
    """Four pictures, sixteen times each: their deviation is that of different ones."""
    rng = torch.Generator().manual_seed(0)
    few = torch.randn(4, 1, 8, 8, generator=rng).repeat(16, 1, 1, 1)
    many = torch.randn(64, 1, 8, 8, generator=rng)
    assert few.std(0).mean() > 0.7 * many.std(0).mean()
    assert nearest_distance(few) < 1e-5 * nearest_distance(many)


def test_nobody_is_near_to_one_alone() -> None:
    assert nearest_distance(torch.zeros(1, 1, 4, 4)) == np.inf


def test_the_pictures_stay_as_they_are() -> None:
    pictures = torch.randn(5, 1, 4, 4)
    before = pictures.clone()
    nearest_distance(pictures)
    assert torch.equal(pictures, before)
