import gc
import subprocess
import sys
import threading

import pytest

from ganflow.data.prefetch import Prefetch


class Counted:
    """Makes squares, and notes for which numbers it was asked and in which thread."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, position: int) -> int:
        self.asked.append(position)
        self.threads.add(threading.get_ident())
        return position**2


def test_any_order_gives_the_same() -> None:
    prefetch = Prefetch(Counted(), 2)
    assert [prefetch.get(position) for position in (0, 2, 4, 4, 0, 9, 11, 1)] == [0, 4, 16, 16, 0, 81, 121, 1]


def test_the_next_is_made_before_it_is_asked_for_and_once() -> None:
    made = Counted()
    prefetch = Prefetch(made, 5)
    for position in range(0, 50, 5):
        prefetch.get(position)
    prefetch._thread.shutdown()
    assert made.asked == [*range(0, 50, 5), 50]
    assert made.threads.isdisjoint({threading.get_ident()})
    assert len(made.threads) == 1


def test_only_what_was_not_hidden_counts_as_waiting() -> None:
    begin, done = threading.Event(), threading.Event()

    def make(position: int) -> int:
        if position:
            begin.wait(10)
        done.set()
        return position

    prefetch = Prefetch(make, 1)
    prefetch.get(0)
    before = prefetch.waited
    done.clear()
    begin.set()
    assert done.wait(10)
    prefetch.get(1)
    assert 0 <= prefetch.waited - before < 5

    begin.clear()
    before = prefetch.waited
    threading.Timer(0.2, begin.set).start()
    prefetch.get(7)  # asked for out of turn, behind what was begun
    assert prefetch.waited - before >= 0.15


def test_an_error_is_told_and_the_next_try_is_a_new_one() -> None:
    broken = [True]

    def make(position: int) -> int:
        if broken[0] and position == 1:
            raise OSError("cannot be read")
        return position

    prefetch = Prefetch(make, 1)
    assert prefetch.get(0) == 0
    for _ in range(2):
        with pytest.raises(OSError, match="cannot be read"):
            prefetch.get(1)
    broken[0] = False
    assert prefetch.get(1) == 1
    assert prefetch.get(2) == 2


def test_the_thread_ends_with_the_object() -> None:
    prefetch = Prefetch(Counted(), 1)
    prefetch.get(0)
    (thread,) = prefetch._thread._threads
    assert thread.is_alive()
    del prefetch
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "import signal, os; os.kill(os.getpid(), signal.SIGTERM)"])
def test_no_thread_keeps_the_interpreter(end: str) -> None:
    code = f"from ganflow.data.prefetch import Prefetch; kept = Prefetch(abs, 1); kept.get(3); {end}"
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == (-15 if "SIGTERM" in end else 0)
    assert done.stderr == ""
