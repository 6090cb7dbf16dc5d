"""What the machine does in a tick: how fast it is, how long it waits for data, and how much memory it holds."""

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

VALUES = ("images_per_second", "data_wait", "host_memory_gib", "device_memory_gib")
"""Names of the values that are the machine's and not the game's: they differ where all others repeat."""

_STATM = Path("/proc/self/statm")
_GIB = 2**30


class Clock:
    """Measures the machine from one reading to the next."""

    def __init__(self, images: int, waited: float, device: torch.device) -> None:
        """Start at `images`, when the batches have `waited` that many seconds for pictures."""
        self._images, self._waited, self._device = images, waited, device
        self._time = time.perf_counter()

    def read(self, images: int, waited: float) -> dict[str, float]:
        """Give the values since the last reading, and begin the next.

        `data_wait` is the share of the time, between 0 and 1, in which training stood still for want of pictures.
        """
        now = time.perf_counter()
        seconds = max(now - self._time, 1e-9)
        rate, share = (images - self._images) / seconds, (waited - self._waited) / seconds
        self._images, self._waited, self._time = images, waited, now
        return {"images_per_second": rate, "data_wait": share, **memory(self._device)}

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave out the time that something else takes."""
        before = time.perf_counter()
        yield
        self._time += time.perf_counter() - before


def memory(device: torch.device) -> dict[str, float]:
    """Give the memory in use, in GiB: resident memory of this process, and what tensors take on an accelerator.

    On the host as of now on Linux, and the most so far elsewhere. On CUDA the most since this was last called, and on
    MPS as of now; nothing on a CPU, whose memory is the host's.
    """
    found = {"host_memory_gib": _resident() / _GIB}
    if device.type == "cuda":
        found["device_memory_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "mps":
        found["device_memory_gib"] = torch.mps.current_allocated_memory() / _GIB
    return found


def _resident() -> int:
    """Count the bytes of this process that are in memory."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, others KiB
