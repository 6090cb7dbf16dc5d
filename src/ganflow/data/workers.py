"""Work on the parts of something in several processes, with results in the order of the parts."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Protocol, TypeVar

from ganflow.errors import UserError

_MOST = 16
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # microseconds that may be used in each period of so many
_WAITING = 2  # parts a process that are worked on or wait for it

T = TypeVar("T")
R = TypeVar("R")


class InOrder(Protocol):
    """Gives the result of `work` for each part, in the order of the parts, with few of them in memory at a time."""

    def __call__(self, work: Callable[[T], R], parts: Iterable[T], /) -> Iterator[R]:
        """Both must be such that they can be sent to another process."""


def available_workers() -> int:
    """Count the CPUs that this process may use, up to 16; a container's limit counts, too."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cpus, _container_limit(), _MOST))


def _container_limit() -> int:
    """Give the CPUs that a container may keep busy, which are fewer than it sees; 16 without a limit."""
    try:
        quota, period = _CPU_LIMIT.read_text().split()
        return int(quota) // int(period)
    except (OSError, ValueError):  # no such file, or the quota "max"
        return _MOST


@contextmanager
def working(count: int) -> Iterator[InOrder]:
    """Start `count` processes for the length of a block, or none for one: then the work is done here.

    Each begins as a fresh Python, which imports what the work needs and no more. All end with the block, however it is
    left, and if this process is killed. Raises UserError where one of them dies.
    """
    if count == 1:
        yield map
        return
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(theirs,))
    try:
        yield partial(_in_order, executor, _WAITING * count)
    except BrokenProcessPool:
        raise UserError(
            f"one of the {count} worker processes died, as they do where memory runs out; run "
            f"`ganflow prepare --workers {count // 2}`, which needs less"
        ) from None
    except BaseException:
        ours.close()  # what they are at is not waited for
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


def _in_order(executor: ProcessPoolExecutor, most: int, work: Callable[[T], R], parts: Iterable[T]) -> Iterator[R]:
    rest = iter(parts)
    waiting: deque[Future[R]] = deque(executor.submit(work, part) for part in islice(rest, most))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(executor.submit(work, part) for part in islice(rest, 1))
        yield result


def _begin(lifeline: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all processes of a terminal; the first one decides
    Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    """End this process as soon as the other end of the pipe is closed, be it by the system."""
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)
