import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from ganflow.training import machine
from ganflow.training.machine import Clock, memory

CPU = torch.device("cpu")


class Seconds:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 50.0
        monkeypatch.setattr(machine.time, "perf_counter", lambda: self.now)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    return Seconds(monkeypatch)


def test_speed_and_waiting_since_the_last_reading(seconds: Seconds) -> None:
    clock = Clock(100, 3.0, CPU)
    seconds.now += 2
    first = clock.read(140, 3.5)
    seconds.now += 4
    second = clock.read(160, 7.5)
    assert (first["images_per_second"], first["data_wait"]) == (20.0, 0.25)
    assert (second["images_per_second"], second["data_wait"]) == (5.0, 1.0)


def test_what_something_else_takes_is_left_out(seconds: Seconds) -> None:
    clock = Clock(0, 0.0, CPU)
    seconds.now += 1
    with clock.stopped():
        seconds.now += 100
    seconds.now += 1
    values = clock.read(40, 1.0)
    assert (values["images_per_second"], values["data_wait"]) == (20.0, 0.5)


def test_two_readings_at_once_are_no_division_by_zero(seconds: Seconds) -> None:
    clock = Clock(0, 0.0, CPU)
    assert clock.read(0, 0.0)["images_per_second"] == 0.0


def test_all_that_is_the_machines_is_named() -> None:
    assert set(Clock(0, 0.0, CPU).read(1, 0.0)) == set(machine.VALUES) - {"device_memory_gib"}


def test_memory_of_the_process_grows_with_what_it_holds() -> None:
    before = memory(CPU)["host_memory_gib"]
    held = np.ones(2**27, np.uint8)  # 1/8 GiB, every page of it touched
    grown = memory(CPU)["host_memory_gib"] - before
    assert grown == pytest.approx(held.nbytes / 2**30, rel=0.1)


def test_memory_lies_below_the_most_that_the_system_has_counted() -> None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert 0.5 * most < memory(CPU)["host_memory_gib"] < 1.01 * most


@pytest.mark.parametrize(("system", "unit"), [("darwin", 1), ("freebsd14", 1024)])
def test_elsewhere_it_is_the_most_so_far(system: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_STATM", Path("/nowhere"))
    monkeypatch.setattr(machine.sys, "platform", system)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    assert memory(CPU)["host_memory_gib"] == pytest.approx(most, rel=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_most_on_the_device_since_the_last_reading() -> None:
    device = torch.device("cuda")
    memory(device)
    held = torch.ones(2**28, dtype=torch.uint8, device=device)
    del held
    most = memory(device)["device_memory_gib"]
    assert most >= 0.25
    assert most - memory(device)["device_memory_gib"] == pytest.approx(0.25, rel=0.01)
