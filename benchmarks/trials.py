"""Experiments trained and evaluated by `ganflow`, each in a folder of its own, and nothing of it twice.

Data is prepared once for all experiments with the same section `data`. A finished training is kept as long as all
that decides its result stays the same, by ganflow's own rule: parameters, data, the code of `data/`, `models/` and
`training/`, and torch. Otherwise it is done anew. One that was interrupted, in whatever way, goes on from its
checkpoint. Evaluations take seconds, and are made each time.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from machine import describe

from ganflow.cli import EVALUATED, PREPARED, TRAINED
from ganflow.code import code_version
from ganflow.data.card import CARD_FILE
from ganflow.data.packed import PackedData
from ganflow.experiments import render, resolve
from ganflow.params import Params
from ganflow.tracking.evaluations import METRICS_FILE
from ganflow.tracking.runs import RUN_FILE
from ganflow.training.device import pick_device
from ganflow.training.disk import write_whole
from ganflow.training.precision import pick_precision
from ganflow.training.state import state_digest

REPOSITORY = Path(__file__).resolve().parent.parent
OVERLAYS = REPOSITORY / "experiments"
RESULTS = REPOSITORY / "benchmarks" / "results"
_RECORD = "trained.json"
_PARAMS = "params.yaml"


@dataclass(frozen=True)
class Trial:
    """One training: of which parameters, and in which folder."""

    params: Params
    folder: Path

    @property
    def trained(self) -> Path:
        """Where the training leaves its outputs."""
        return self.folder / TRAINED

    @property
    def evaluated(self) -> Path:
        """Where the evaluation leaves its outputs."""
        return self.folder / EVALUATED

    @property
    def metrics(self) -> dict[str, Any]:
        """What the evaluation found."""
        found: dict[str, Any] = read_json(self.evaluated / METRICS_FILE)
        return found

    @property
    def machine(self) -> dict[str, str]:
        """What the training's speed depends on: the machine, with the precision."""
        machine: dict[str, str] = read_json(self.folder / _RECORD)["machine"]
        return machine


def plan(experiment: str, folder: Path, overrides: Sequence[str] = ()) -> Trial:
    """Lay an experiment and then overrides over the defaults; nothing is run yet. Raises UserError."""
    return Trial(resolve(experiment, overrides, OVERLAYS), folder.resolve())


def run(trial: Trial) -> None:
    """Prepare, train and evaluate; whatever of it is there already is kept.

    Raises SystemExit where a command fails, and after SIGINT or SIGTERM, when the command has ended of it.
    """
    prepared = prepared_folder(trial)
    with _alone(trial.folder) as lock:
        params = trial.folder / _PARAMS
        write_whole(params, render(trial.params).encode())
        _prepare(prepared, params)
        if not is_trained(trial):
            _train(trial, lock)
        _ganflow(trial.folder, lock, "evaluate", "--prepared", str(prepared))


def prepared_folder(trial: Trial) -> Path:
    """Say where its data is prepared: beside it, for all trials with the same section `data` and by the same code."""
    data = trial.params.data
    decides = json.dumps([asdict(data), code_version("prepare")])
    name = f"{data.registered_model}-{hashlib.sha256(decides.encode()).hexdigest()[:8]}"
    return trial.folder.parent / "data" / name / PREPARED


def is_trained(trial: Trial) -> bool:
    """Say whether a finished training lies there that all is the same for that decides its result."""
    record = trial.folder / _RECORD
    finished = record.exists() and (trial.trained / RUN_FILE).exists()  # the last file that a training writes
    return finished and read_json(record)["decides"] == _decides(trial)


def experiments(pattern: str = "*") -> list[str]:
    """Name the overlays in experiments/ whose names match a pattern."""
    return sorted(path.stem for path in OVERLAYS.glob(f"{pattern}.yaml"))


def options(description: str, known: Sequence[str], chosen: Sequence[str]) -> argparse.ArgumentParser:
    """Make the options that all benchmarks of trials have; `chosen` are run where `--only` names no others."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", nargs="+", default=chosen, choices=known, metavar="NAME", help=", ".join(known))
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY.PATH=VALUE", help="override parameters of all experiments"
    )
    parser.add_argument("--tables", action="store_true", help="print the results that there are")
    return parser


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as a whole, so that a kill leaves the old one or the new one."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def _prepare(prepared: Path, params: Path) -> None:
    folder = prepared.parents[len(PREPARED.parts) - 1]
    with _alone(folder) as lock:
        if not (prepared / CARD_FILE).exists():
            _ganflow(folder, lock, "prepare", "--params", str(params))


def _train(trial: Trial, lock: int) -> None:
    if trial.trained.exists():
        shutil.rmtree(trial.trained)
    train = trial.params.train
    precision = pick_precision(train.precision, pick_device(train.device))
    record = {"decides": _decides(trial), "machine": {**describe(), "precision": precision}}
    write_json(trial.folder / _RECORD, record)
    _ganflow(trial.folder, lock, "train", "--prepared", str(prepared_folder(trial)))


def _decides(trial: Trial) -> str:
    return state_digest(trial.params, PackedData(prepared_folder(trial)).card)


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Keep others out of a folder, after waiting for whoever works there; gives the file descriptor of its lock.

    Commands inherit the lock: one that goes on after the benchmark was killed is waited for, and not doubled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder.name}: another process works there; waiting for its end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _ganflow(folder: Path, lock: int, *arguments: str) -> None:
    """Run a command in a folder. A signal to stop is passed on once, and waited for: a training leaves a checkpoint."""
    print(f"{folder.name}: ganflow {' '.join(arguments)}", flush=True)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ganflow")), *arguments],
        cwd=folder,
        env=inherited,
        stdin=subprocess.DEVNULL,
        pass_fds=[lock],
        process_group=0,  # a terminal's Ctrl-C would reach it beside the signal that is passed on
    )
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        print("stopped; the same command goes on from there", file=sys.stderr)
        raise SystemExit(128 + received[0])
    if status:
        raise SystemExit(f"{folder}: `ganflow {arguments[0]}` ended with status {status}")
