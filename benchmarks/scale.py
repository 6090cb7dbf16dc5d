"""How much memory a million pictures take: generated, prepared and trained on, with all processes watched.

    python benchmarks/scale.py [--pictures 1000000] [--channels 1] [--folder build/scale]

The pictures are files of 64x64 pixels in ten classes, and are kept in --folder for the next time. Memory is read from
/proc every 50 ms, over the process of `ganflow` and all that it starts. Writes benchmarks/results/scale.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from ganflow.data.format import Format
from ganflow.data.image_folder import ImageFolder
from ganflow.data.packing import pack
from ganflow.data.workers import available_workers

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results" / "scale.json"
_SIDE = 64
_COARSE = 8  # pixels of noise on a side, enlarged: as easy to compress as photographs
_CLASSES = 10
_A_FOLDER = 1000
_FEW = 20_000  # pictures by which the speed with one and with all processes is measured
_TRAINED = 8_192  # images
_TARGET = 2 * 2**30
_EVERY = 0.05  # seconds
_RARELY = 20  # readings of all maps take longer: one in so many


@dataclass
class Peak:
    """The most that all processes of one command held at once, in bytes; a page that two share counts twice.

    `libraries` are mapped files other than shards: programs and their libraries.
    """

    anonymous: int = 0
    shared: int = 0
    libraries: int = 0
    shards: int = 0
    processes: int = 0
    seconds: float = 0.0

    @property
    def beyond_the_shards(self) -> int:
        """All that is not a mapped shard; the peaks of the kinds together, whenever each was."""
        return self.anonymous + self.shared + self.libraries


def main() -> int:
    """Make the pictures that are missing, run both stages, and write down what they took."""
    from machine import describe  # it imports torch, and every worker imports this file

    options = _options()
    folder = options.folder.resolve()
    pictures = folder / f"pictures-{options.channels}"
    _make_all(pictures, options.pictures, options.channels)
    rates = _rates(pictures, options.channels)
    with TemporaryDirectory(dir=folder, prefix="repository-") as repository:
        home = Path(repository)
        (home / "params.yaml").write_text(json.dumps(_params(pictures, options.channels)), encoding="utf-8")
        prepare = _watch(home, "prepare")
        card = json.loads((home / "artifacts" / "prepare" / "card.json").read_text(encoding="utf-8"))
        shards = sum(path.stat().st_size for path in (home / "artifacts" / "prepare").glob("*_images-*.npy"))
        train = _watch(home, "train")
    result = {
        "machine": describe(),
        "pictures": sum(split["count"] for split in card["splits"].values()),
        "shape": [options.channels, _SIDE, _SIDE],
        "shards_mib": _mib(shards),
        "target_mib": _mib(_TARGET),
        "trained_images": _TRAINED,
        "prepare": _figures(prepare),
        "train": _figures(train),
        "packed_pictures_per_second": {"pictures": min(_FEW, options.pictures), "by_workers": rates},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))
    met = max(prepare.beyond_the_shards, train.beyond_the_shards) < _TARGET
    print(f"both stages within 2 GiB beyond the shards: {'yes' if met else 'no'}")
    return 0 if met else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prepare and train on many pictures, and watch the memory.")
    parser.add_argument("--pictures", type=int, default=1_000_000, metavar="N", help="how many (1000000)")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3), help="1 for gray, which needs less disk (1)")
    parser.add_argument("--folder", type=Path, default=Path("build/scale"), metavar="FOLDER", help="build/scale")
    return parser.parse_args()


def _params(pictures: Path, channels: int) -> dict[str, object]:
    return {
        "data": {
            "source": "image_folder",
            "name": "noise",
            "root": str(pictures),
            "resolution": _SIDE,
            "channels": channels,
        },
        "model": {"family": "dcgan", "width": 8},
        "train": {"images": _TRAINED, "tick_every_images": 1024, "fid_every_images": _TRAINED},
    }


def _make_all(pictures: Path, n: int, channels: int) -> None:
    """Make the folders that are missing; more than are wanted are removed."""
    wanted = {_folder(pictures, number): min(_A_FOLDER, n - number) for number in range(0, n, _A_FOLDER)}
    for class_folder in pictures.glob("*"):
        for found in class_folder.glob("*"):
            if len(list(found.iterdir())) != wanted.get(found):
                rmtree(found)
    pictures.parent.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(0, n, _A_FOLDER) if not _folder(pictures, number).exists()]
    print(f"{n} pictures, {len(missing)} folders of which are yet to be made", flush=True)
    with ProcessPoolExecutor() as executor:
        list(executor.map(partial(_make, pictures, n, channels), missing))


def _folder(pictures: Path, number: int) -> Path:
    block = number // _A_FOLDER
    return pictures / f"class-{block % _CLASSES}" / f"{block:05}"


def _make(pictures: Path, n: int, channels: int, first: int) -> None:
    """Make the files of one folder, whole or not at all; each class has a brightness of its own."""
    target = _folder(pictures, first)
    with TemporaryDirectory(dir=pictures.parent, prefix="new-") as temporary:
        staging = Path(temporary) / "files"
        staging.mkdir()
        rng = np.random.default_rng(first)
        level = first // _A_FOLDER % _CLASSES * 12
        for number in range(first, min(first + _A_FOLDER, n)):
            noise = rng.integers(level, level + 140, (_COARSE, _COARSE, channels), dtype=np.uint8)
            image = Image.fromarray(noise[:, :, 0] if channels == 1 else noise)
            image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(staging / f"{number:08}.jpg", quality=90)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(target)


def _rates(pictures: Path, channels: int) -> dict[str, float]:
    """Measure pictures a second with one and with all processes, for the first pictures; the second time each."""
    blocks = sorted(pictures.glob("*/*"), key=lambda path: path.name)[: _FEW // _A_FOLDER]
    rates = {}
    with TemporaryDirectory(dir=pictures.parent, prefix="few-") as temporary:
        root = Path(temporary) / "raw"
        root.mkdir()
        for block in blocks:
            (root / block.name).symlink_to(block)
        for workers in sorted({1, available_workers()}):
            for time_ in range(2):
                out = Path(temporary) / f"out-{workers}-{time_}"
                out.mkdir()
                start = time.perf_counter()
                card = pack(
                    ImageFolder(root),
                    out,
                    name="few",
                    source_name="image_folder",
                    packed_format=Format(channels, _SIDE),
                    validation_fraction=0.1,
                    test_fraction=0.2,
                    seed=0,
                    workers=workers,
                )
                seconds = time.perf_counter() - start
                rates[str(workers)] = round(sum(split.count for split in card.splits.values()) / seconds, 1)
    return rates


def _watch(home: Path, *arguments: str) -> Peak:
    """Run a command of ganflow, and read the memory of its processes until it ends."""
    print(f"ganflow {' '.join(arguments)}", flush=True)
    command = [str(Path(sys.executable).with_name("ganflow")), *arguments]
    peak, readings, start = Peak(), 0, time.perf_counter()
    process = subprocess.Popen(command, cwd=home, env={**os.environ, "MLFLOW_TRACKING_URI": ""})
    while process.poll() is None:
        processes = [process.pid, *_below(process.pid)]
        anonymous, shared, _ = (sum(kind) for kind in zip(*map(_status, processes), strict=True))
        peak.anonymous, peak.shared = max(peak.anonymous, anonymous), max(peak.shared, shared)
        peak.processes = max(peak.processes, len(processes))
        if readings % _RARELY == 0:
            shards, libraries = (sum(kind) for kind in zip(*map(_files, processes), strict=True))
            peak.shards, peak.libraries = max(peak.shards, shards), max(peak.libraries, libraries)
        readings += 1
        time.sleep(_EVERY)
    peak.seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"ganflow {' '.join(arguments)} failed with status {process.returncode}")
    return peak


def _below(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started, and those that they have."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return
    for child in children:
        yield child
        yield from _below(child)


def _status(pid: int) -> tuple[int, int, int]:
    """Give the anonymous, shared and file-backed bytes that a process holds."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0, 0
    kinds = {name: int(kib) * 1024 for name, kib in re.findall(r"^Rss(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return kinds.get("Anon", 0), kinds.get("Shmem", 0), kinds.get("File", 0)


def _files(pid: int) -> tuple[int, int]:
    """Give the bytes of mapped shards, and of all other mapped files, that a process holds."""
    try:
        text = Path(f"/proc/{pid}/smaps").read_text()
    except OSError:
        return 0, 0
    maps = re.findall(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)\n(?:.*\n)*?Rss: +(\d+) kB", text, re.MULTILINE)
    shards = sum(int(kib) for path, kib in maps if re.search(r"_images-\d+\.npy", path))
    return shards * 1024, _status(pid)[2] - shards * 1024


def _figures(peak: Peak) -> dict[str, float]:
    """Show a peak in MiB and seconds."""
    kinds = {f"{name}_mib": _mib(size) for name, size in asdict(peak).items() if name not in {"processes", "seconds"}}
    return {
        "peak_beyond_the_shards_mib": _mib(peak.beyond_the_shards),
        **kinds,
        "processes": peak.processes,
        "seconds": round(peak.seconds, 1),
    }


def _mib(size: int) -> int:
    return round(size / 2**20)


if __name__ == "__main__":
    sys.exit(main())
