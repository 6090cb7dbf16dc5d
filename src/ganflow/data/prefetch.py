"""Make the next thing in the background while the last one is in use."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Gives `make(position)` for any position, and begins with the one `step` further on.

    `make` runs in one thread of its own, for one position at a time. That thread ends with this object, or with the
    interpreter.
    """

    def __init__(self, make: Callable[[int], T], step: int) -> None:
        self._make = make
        self._step = step
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._ahead: tuple[int, Future[T]] | None = None
        self.waited = 0.0
        """Seconds for which callers waited."""

    def get(self, position: int) -> T:
        """Give `make(position)`, or raise what it raised: at once if it was expected and is done."""
        start = time.monotonic()
        try:
            expected, future = self._ahead or (None, None)
            if future is None or expected != position:
                future = self._thread.submit(self._make, position)
            result = future.result()
        finally:
            self._ahead = None  # whatever went wrong is tried again when it is asked for again
            self.waited += time.monotonic() - start
        following = position + self._step
        self._ahead = following, self._thread.submit(self._make, following)
        return result
