"""The machine that a measurement was made on, in words that name neither it nor its user."""

import os
import platform
import re
from pathlib import Path

import torch


def describe() -> dict[str, str]:
    """Give what a speed depends on: processor, threads, memory, system, Python, torch and the GPU, if any."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = {
        "cpu": f"{_processor()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "memory": f"{memory / 2**30:.0f} GiB",
        "os": f"{platform.system()} {platform.release().partition('-')[0]}, {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _processor() -> str:
    """Linux tells the model in a file alone."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return model[1] if model else platform.processor() or platform.machine()
