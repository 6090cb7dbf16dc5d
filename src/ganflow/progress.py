"""One progress bar for all that takes time: share done, rate and time left, on a terminal and in a log."""

import sys
from collections.abc import Iterable, Iterator
from typing import Never

from torch import Tensor
from tqdm import tqdm


def progress(total: int, text: str, unit: str, *, initial: int = 0, scale: bool = False) -> "tqdm[Never]":
    """Make a bar of `total` units, `initial` of which are done; `scale` writes thousands as k.

    Nothing is shown where there is nothing to do.
    """
    pause = 0.5 if sys.stderr.isatty() else 30  # seconds; a log file needs fewer lines than a terminal
    return tqdm(
        total=total, initial=initial, desc=text, unit=unit, unit_scale=scale, mininterval=pause, disable=total == 0
    )


def counted(batches: Iterable[Tensor], bar: "tqdm[Never]") -> Iterator[Tensor]:
    """Pass batches on, and move the bar by their lengths."""
    for batch in batches:
        yield batch
        bar.update(len(batch))
