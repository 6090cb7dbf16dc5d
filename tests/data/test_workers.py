import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ganflow.data import workers as module
from ganflow.data.workers import available_workers, working
from ganflow.errors import UserError


def square(n: int) -> int:
    time.sleep(0.02 * (n % 3))  # the first to begin are not the first to be done
    return n * n


def process_of(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def modules_of(_: int) -> set[str]:
    return set(sys.modules)


def refuse(n: int) -> int:
    raise UserError(f"{n}: is refused")


def die(n: int) -> int:
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order(count: int) -> None:
    with working(count) as in_order:
        assert list(in_order(square, range(20))) == [n * n for n in range(20)]
        assert list(in_order(square, iter([]))) == []
        assert list(in_order(square, range(3))) == [0, 1, 4], "twice with the same processes"


def test_work_is_done_elsewhere_and_one_does_it_here() -> None:
    with working(1) as in_order:
        assert set(in_order(process_of, range(3))) == {os.getpid()}
    with working(2) as in_order:
        processes = set(in_order(process_of, range(8)))
        assert len(processes) == 2
        assert os.getpid() not in processes
    assert not any(map(is_running, processes))


def test_few_parts_are_out_at_a_time() -> None:
    begun, done = [0], 0

    def parts() -> Iterator[int]:
        for n in range(50):
            begun[0] += 1
            yield n

    with working(2) as in_order:
        for _ in in_order(square, parts()):
            done += 1
            assert begun[0] - done <= 2 * module._WAITING


def test_an_error_of_the_work_is_told_as_it_is() -> None:
    with pytest.raises(UserError, match="0: is refused"), working(2) as in_order:
        list(in_order(refuse, range(5)))


def test_a_process_that_dies_has_a_plain_message() -> None:
    message = r"one of the 2 worker processes died.*`ganflow prepare --workers 1`"
    with pytest.raises(UserError, match=message), working(2) as in_order:
        list(in_order(die, range(9)))


def test_what_is_under_way_is_not_waited_for() -> None:
    start = time.monotonic()
    with suppress(KeyboardInterrupt), working(2) as in_order:
        processes = set(in_order(process_of, range(8)))
        next(in_order(time.sleep, [0, 60, 60]))
        raise KeyboardInterrupt
    assert time.monotonic() - start < 30
    assert not any(map(is_running, processes))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_first_one(number: signal.Signals, tmp_path: Path) -> None:
    code = """
import os, pathlib, time
from ganflow.data.workers import working
with working(2) as in_order:
    list(in_order(time.sleep, [0.1] * 4))
    print(*(child for child in pathlib.Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()))
    print(flush=True)
    list(in_order(time.sleep, [60] * 4))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    children = [int(pid) for pid in process.stdout.readline().split()]
    assert len(children) >= 2
    process.send_signal(number)
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, children))


def test_workers_start_without_torch() -> None:
    code = """
import sys
import ganflow.data.spooling, ganflow.data.image_folder
print(*sorted({"torch", "torchvision", "mlflow", "sklearn", "scipy", "pydantic"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_cpus_in_reach_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(module, "_CPU_LIMIT", limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert available_workers() == 3
    for content, expected in (("max 100000\n", 3), ("200000 100000\n", 2), ("50000 100000\n", 1), ("800000 100000", 3)):
        limit.write_text(content)
        assert available_workers() == expected
    limit.unlink()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert available_workers() == 16
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert available_workers() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_workers() == 1
