"""What tracking costs: the same training without it, with MLflow on sqlite, and with a real MLflow server over HTTP.

    python benchmarks/tracking.py [--rounds 6] [--images 60000] [--work build/tracking]

Writes benchmarks/results/tracking.json. Each turn is a process of its own that runs the train stage on the default
params.yaml; without tracking, it opens no run and starts no sender. The ways take turns, forth and back, so that what
else the machine does falls on all of them.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, get_args
from unittest.mock import patch

from machine import describe

Way = Literal["off", "sqlite", "server"]
WAYS: tuple[Way, ...] = get_args(Way)

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results" / "tracking.json"
_WARM_UP = 8_000  # images of each training before its time is taken


def main() -> int:
    """Take all turns and write the results."""
    options = _options()
    if options.turn:
        print(json.dumps(_measured(options.turn, options.images)))
        return 0
    load = os.getloadavg()[0]
    work = options.work.resolve()
    _prepare(work)
    taken: list[dict[Way, dict[str, float]]] = []
    with _server(work / "server") as server:
        stores = {"off": "", "sqlite": f"sqlite:///{work}/mlflow.db", "server": server}
        for number in range(options.rounds):
            order = WAYS if number % 2 == 0 else WAYS[::-1]
            taken.append({way: _turn(work, way, stores[way], options.images) for way in order})
            print(f"round {number + 1}:", *(f"{way} {taken[-1][way]['rate']:.0f}" for way in WAYS), flush=True)
    results = {
        "machine": describe(),
        "load_before": round(load, 2),
        "images": options.images,
        "images_per_second": {way: _spread([turns[way]["rate"] for turns in taken]) for way in WAYS},
        "overhead_percent": {way: _overhead(taken, way, "seconds") for way in WAYS[1:]},
        "processor_overhead_percent": {way: _overhead(taken, way, "processor_seconds") for way in WAYS[1:]},
        "seconds_after_training": {way: _spread([turns[way]["seconds_after"] for turns in taken]) for way in WAYS},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    return 0


def table(results: Mapping[str, Any]) -> str:
    """Show the results in Markdown."""
    lines = ["| tracking | images/s | overhead | of processor time |", "|---|---:|---:|---:|"]
    for way in WAYS:
        rate = results["images_per_second"][way]
        costs = [
            f"{cost['mean']:.1f} ± {cost['standard_error']:.1f} %" if (cost := results[name].get(way)) else ""
            for name in ("overhead_percent", "processor_overhead_percent")
        ]
        lines.append(f"| {way} | {rate['mean']:.0f} ± {rate['deviation']:.0f} | {' | '.join(costs)} |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what tracking costs a training.")
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="turns of each way; 2 or more (6)")
    parser.add_argument("--images", type=int, default=60_000, metavar="N", help="images whose time is taken (60000)")
    parser.add_argument("--work", type=Path, default=Path("build/tracking"), metavar="FOLDER", help="build/tracking")
    parser.add_argument("--turn", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _prepare(work: Path) -> None:
    """Lay out a repository with the default parameters, and prepare its data once."""
    work.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(REPOSITORY / "params.yaml", work / "params.yaml")
    if not (work / "artifacts" / "prepare" / "card.json").exists():
        subprocess.run([Path(sys.executable).with_name("ganflow"), "prepare"], cwd=work, check=True)


def _turn(work: Path, way: Way, store: str, images: int) -> dict[str, float]:
    """Train once, in a process of its own with a state of its own."""
    shutil.rmtree(work / ".ganflow", ignore_errors=True)
    command = [sys.executable, __file__, "--turn", way, "--images", str(images)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    with (work / "turns.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=log, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _measured(way: Way, images: int) -> dict[str, float]:
    """Run the stage as `ganflow train` does, and take the time of the images after the first ones."""
    from ganflow import params
    from ganflow.stages import train as stage
    from ganflow.training import loop
    from ganflow.training.match import Match

    if way == "off":
        _switch_off(stage)
    began: list[tuple[float, float]] = []
    ended: list[tuple[float, float]] = []
    play_round, play = Match.play_round, loop.train

    def play_round_and_look(match: Match) -> None:
        if not began and match.images >= _WARM_UP:
            began.append((time.perf_counter(), time.process_time()))
        play_round(match)

    def play_and_look(*arguments: Any, **options: Any) -> None:
        play(*arguments, **options)
        ended.append((time.perf_counter(), time.process_time()))

    patch.object(Match, "play_round", play_round_and_look).start()
    patch.object(loop, "train", play_and_look).start()
    parsed = params.load(Path("params.yaml"), [f"train.images={_WARM_UP + images}"])
    stage.train(parsed, Path("artifacts/prepare"), Path("artifacts/train"), Path(".ganflow"))
    after = time.perf_counter() - ended[0][0]
    seconds, processor = (end - start for start, end in zip(began[0], ended[0], strict=True))
    return {"rate": images / seconds, "seconds": seconds, "processor_seconds": processor, "seconds_after": after}


def _switch_off(stage: Any) -> None:
    """Have the stage open no run, and send nothing."""
    from ganflow.tracking.runs import RunRef, write_run

    class Nobody:
        def __init__(self, _: Path) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

        def close(self) -> int:
            return 0

    def no_run(_params: object, _card: object, state: Path, **_options: str) -> RunRef:
        write_run(state, ref := RunRef("none", "", ""))
        return ref

    stage.Sender, stage.resume_run = Nobody, no_run


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """Run `mlflow server` on a database in a file, on this machine, and give its address."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not _answers(uri):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the MLflow server does not start; see {folder / 'server.log'}")
            time.sleep(0.2)
        yield uri
    finally:
        process.terminate()
        process.wait()


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=1):
            return True
    except OSError:
        return False


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": fmean(values), "deviation": stdev(values), "values": values}


def _overhead(taken: Sequence[Mapping[Way, Mapping[str, float]]], way: Way, what: str) -> dict[str, Any]:
    """Compare turns of the same round, whose times lie close together: per cent more than without tracking."""
    values = [100 * (turns[way][what] / turns["off"][what] - 1) for turns in taken]
    return {"mean": fmean(values), "standard_error": stdev(values) / sqrt(len(values)), "values": values}


if __name__ == "__main__":
    sys.exit(main())
