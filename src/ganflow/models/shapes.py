"""Which picture sides the families can make: 4 to 7 times a power of two."""


def halvings(resolution: int) -> tuple[int, int]:
    """Split a side into a base of 4 to 7 pixels and the number of doublings that lead back to it.

    28 is (7, 2): 7 -> 14 -> 28. Raises ValueError where there is no such split.
    """
    base, doublings = resolution, 0
    while base > 7 and base % 2 == 0:
        base, doublings = base // 2, doublings + 1
    if not 4 <= base <= 7:
        raise ValueError(f"a side of {resolution} pixels is not 4, 5, 6 or 7 times a power of two")
    return base, doublings
