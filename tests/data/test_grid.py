from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ganflow.data import grid
from ganflow.data.grid import save_grid


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture)


def tiles(n: int, channels: int = 1, side: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(n).integers(1, 256, (n, channels, side, side), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "columns"), [(64, 8), (5, 3), (1, 1), (3, 8), (7, 1)])
def test_every_picture_lies_in_its_place(
    n: int, columns: int, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "_SHORTEST_SIDE", 1)  # not enlarged
    images = tiles(n, channels, 8)
    save_grid(images, tmp_path / "grid.png", columns)
    sheet = pixels(tmp_path / "grid.png")
    across = min(n, columns)
    down = -(-n // across)
    pitch = 8 + grid._GAP
    assert sheet.shape[:2] == (down * pitch - grid._GAP, across * pitch - grid._GAP)
    assert sheet.ndim == (2 if channels == 1 else 3)
    for place in range(down * across):
        top, left = place // across * pitch, place % across * pitch
        found = sheet[top : top + 8, left : left + 8].reshape(8, 8, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(found, images[place] if place < n else np.zeros_like(images[0]))


def test_gaps_keep_neighbours_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "_SHORTEST_SIDE", 1)
    save_grid(np.full((4, 1, 4, 4), 255, np.uint8), tmp_path / "grid.png", 2)
    sheet = pixels(tmp_path / "grid.png")
    assert set(sheet[4]) == set(sheet[:, 4]) == {grid._GAP_LEVEL}
    assert (sheet == 255).sum() == 64


def test_a_small_grid_is_enlarged_by_whole_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiles(6, 3, 8)
    save_grid(images, tmp_path / "large.png", 3)
    monkeypatch.setattr(grid, "_SHORTEST_SIDE", 1)
    save_grid(images, tmp_path / "small.png", 3)
    large, small = pixels(tmp_path / "large.png"), pixels(tmp_path / "small.png")
    factor = large.shape[0] // small.shape[0]
    assert min(large.shape[:2]) >= 300
    assert factor > 1
    np.testing.assert_array_equal(large, np.kron(small, np.ones((factor, factor, 1), np.uint8)))


def test_a_large_grid_stays_as_it_is(tmp_path: Path) -> None:
    save_grid(tiles(4, 1, 250), tmp_path / "grid.png", 2)
    assert pixels(tmp_path / "grid.png").shape == (500 + grid._GAP, 500 + grid._GAP)
