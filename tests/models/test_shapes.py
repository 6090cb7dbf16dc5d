import pytest

from ganflow.models.shapes import halvings


@pytest.mark.parametrize(
    ("side", "expected"),
    [(4, (4, 0)), (7, (7, 0)), (8, (4, 1)), (10, (5, 1)), (16, (4, 2)), (28, (7, 2)), (96, (6, 4)), (128, (4, 5))],
)
def test_by_hand(side: int, expected: tuple[int, int]) -> None:
    assert halvings(side) == expected


def test_every_side() -> None:
    allowed = {base * 2**doublings: (base, doublings) for base in (4, 5, 6, 7) for doublings in range(9)}
    for side in range(-4, 1100):
        if side in allowed:
            assert halvings(side) == allowed[side]
        else:
            with pytest.raises(ValueError, match=f"side of {side} pixels is not 4, 5, 6 or 7 times a power of two"):
                halvings(side)
