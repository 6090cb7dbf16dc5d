from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ganflow.training.augment import cut_out, flip, recolor, translate


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(
    ("shape", "reach"), [((6, 1, 8, 8), 2), ((5, 3, 7, 9), 3), ((4, 2, 5, 5), 12), ((3, 1, 4, 4), 1)]
)
def test_translate_is_a_shift_with_repeated_edges(shape: tuple[int, ...], reach: int) -> None:
    images = torch.rand(shape)
    state = torch.get_rng_state()
    moved = translate(images, reach).numpy()
    torch.set_rng_state(state)
    shifts = torch.randint(-reach, reach + 1, (2, shape[0], 1))[:, :, 0].tolist()
    n, _, height, width = shape
    for index in range(n):
        down, right = shifts[0][index], shifts[1][index]
        padded = np.pad(images[index].numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="edge")
        expected = padded[:, reach + down : reach + down + height, reach + right : reach + right + width]
        np.testing.assert_array_equal(moved[index], expected)
    assert moved.shape == shape


def test_shifts_are_uniform_and_independent_in_each_direction() -> None:
    # Every pixel tells where it comes from.
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    images = torch.stack([rows, columns]).expand(5000, 2, 9, 9)
    shift = translate(images, 2)[:, :, 4, 4] - 4
    counts = torch.zeros(5, 5)
    for down, right in shift.long().tolist():
        counts[down + 2, right + 2] += 1
    assert counts.sum() == 5000
    expected = 5000 / 25
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 51.2  # 24 degrees of freedom, one in a thousand


def test_no_reach_changes_nothing() -> None:
    images = torch.rand(3, 1, 6, 6)
    assert torch.equal(translate(images, 0), images)


def test_channels_last_comes_out_the_same() -> None:
    images = torch.rand(4, 3, 8, 8)
    state = torch.get_rng_state()
    plain = translate(images, 2)
    torch.set_rng_state(state)
    assert torch.equal(translate(images.to(memory_format=torch.channels_last), 2), plain)


def test_the_gradient_goes_back_to_where_the_pixels_came_from() -> None:
    images = torch.rand(5, 2, 6, 6, requires_grad=True)
    state = torch.get_rng_state()
    weights = torch.rand(5, 2, 6, 6)
    after = torch.get_rng_state()
    (gradient,) = torch.autograd.grad((translate(images, 2) * weights).sum(), images)
    # A shift is linear: f(x) = <gradient, x> for any pictures under the same shifts.
    torch.set_rng_state(after)
    others = torch.ones(5, 2, 6, 6)
    assert (gradient * others).sum().item() == pytest.approx((translate(others, 2) * weights).sum().item(), rel=1e-5)
    torch.set_rng_state(after)
    assert (gradient * images).sum().item() == pytest.approx((translate(images, 2) * weights).sum().item(), rel=1e-5)
    assert not torch.equal(state, after)


def test_flip_mirrors_whole_pictures_half_of_the_time() -> None:
    images = torch.rand(4000, 2, 3, 4)
    flipped = flip(images)
    kept = (flipped == images).flatten(1).all(1)
    mirrored = torch.from_numpy((flipped.numpy() == images.numpy()[..., ::-1]).reshape(4000, -1).all(1))
    assert (kept ^ mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)


def test_the_gradient_is_mirrored_too() -> None:
    images = torch.rand(20, 1, 2, 3, requires_grad=True)
    left = torch.zeros(20, 1, 2, 3)
    left[..., 0] = 1
    flipped = flip(images)
    (gradient,) = torch.autograd.grad((flipped * left).sum(), images)
    columns = gradient.sum((1, 2))
    was_kept = (flipped == images).flatten(1).all(1)
    assert torch.equal(columns[was_kept], torch.tensor([2.0, 0, 0]).expand(int(was_kept.sum()), 3))
    assert torch.equal(columns[~was_kept], torch.tensor([0, 0, 2.0]).expand(int((~was_kept).sum()), 3))
    assert 0 < was_kept.sum() < 20


@pytest.mark.parametrize("channels", [1, 3])
def test_recolor_is_brightness_then_saturation_then_contrast(channels: int) -> None:
    images = torch.rand(5, channels, 6, 4) * 2 - 1
    state = torch.get_rng_state()
    changed = recolor(images).numpy()
    torch.set_rng_state(state)
    draws = torch.rand(3, 5).numpy()
    for picture, result, (brightness, saturation, contrast) in zip(images.numpy(), changed, draws.T, strict=True):
        expected = picture + (brightness - 0.5)
        gray = expected.mean(axis=0)
        expected = gray + 2 * saturation * (expected - gray)
        middle = expected.mean()
        expected = middle + (0.5 + contrast) * (expected - middle)
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_recolor_has_a_gradient() -> None:
    images = torch.rand(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def same_draw(pictures: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return recolor(pictures)

    assert torch.autograd.gradcheck(same_draw, images)


@pytest.mark.parametrize(("size", "share", "side"), [((8, 8), 0.5, 4), ((10, 10), 0.3, 3), ((6, 6), 0.01, 0)])
def test_cut_out_blanks_one_square(size: tuple[int, int], share: float, side: int) -> None:
    cut = cut_out(torch.ones(2000, 2, *size), share)
    blank = cut == 0
    assert torch.equal(blank[:, 0], blank[:, 1])
    rows, columns = blank[:, 0].any(2), blank[:, 0].any(1)
    assert torch.equal(blank[:, 0], rows[:, :, None] & columns[:, None, :])
    lengths = rows.sum(1)
    assert lengths.max() == side
    for mask in (rows, columns):  # in one piece
        edges = (mask[:, 1:] != mask[:, :-1]).sum(1)
        assert (edges <= 2).all()
    assert (cut[~blank] == 1).all()


def test_every_pixel_is_cut_out_about_as_often() -> None:
    # The centre is uniform over the picture: an inner pixel is covered by side of side + length centres.
    share = (cut_out(torch.ones(20_000, 1, 8, 8), 0.5) == 0).float().mean(0)[0]
    assert share[3:5, 3:5].mean() == pytest.approx((4 / 9) ** 2, rel=0.05)
    assert share[0, 0] < share[3, 3]
