"""Whether a training that is killed again and again, or whose MLflow server dies, ends as if nothing had happened.

    python benchmarks/resume.py [--kills 50] [--images 100000] [--seed 0] [--work FOLDER]

Trains the default DCGAN on the embedded digits three times with the same parameters: undisturbed; killed by SIGKILL at
random moments and started again each time; and with an `mlflow server` that is stopped, and killed, and started again
on the way. Then compares weights, history, samples and what MLflow holds. Ends with status 1 where anything differs.
Writes benchmarks/results/resume.json.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from machine import describe
from mlflow import MlflowClient

from ganflow.tracking.runs import RUN_FILE
from ganflow.training import checkpoint, machine
from ganflow.training.journal import read_lines
from ganflow.training.weights import weights_digest

REPOSITORY: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = REPOSITORY / "benchmarks" / "results" / "resume.json"
_EVERY: Final = {"tick": 1_000, "checkpoint": 3_000, "sample": 10_000, "fid": 5_000}
_AIMS: Final = ("start-up", "training", "training", "training", "checkpoint", "checkpoint")
"""Where kills are meant to fall, in turn before they are shuffled."""
_WRITE_SECONDS: Final = 0.006  # about what a checkpoint takes from its first byte to its name
_TRAINED: Final = Path("artifacts", "train")


class Training:
    """`ganflow train` as a process, in a repository of its own."""

    def __init__(self, repository: Path, images: int, store: str = "") -> None:
        self.repository, self.states = repository, repository / ".ganflow" / "train"
        self.images = images
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
        self._environment = {**inherited, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": store}
        self._log = repository / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path | None:
        """The folder of what it resumes from, while there is one."""
        return next((path for path in self.states.glob("*/") if not path.suffix), None)

    @property
    def checkpoint(self) -> checkpoint.Checkpoint | None:
        """The last checkpoint, without its tensors."""
        return checkpoint.glance(self.state) if self.state else None

    @property
    def recorded(self) -> int:
        """Images of the last line in the journal."""
        lines = list(read_lines(self.state)) if self.state else []
        return max((line["images"] for line in lines), default=0)

    @property
    def has_ended(self) -> bool:
        """It left all that it was to leave."""
        return self.state is None and (self.repository / _TRAINED / RUN_FILE).exists()

    @property
    def is_training(self) -> bool:
        """It came to its first round since it was started."""
        return b"train:" in self._log.read_bytes()

    @property
    def is_writing(self) -> bool:
        """There is half a checkpoint, or one without its name."""
        try:
            names = {path.name for path in self.state.iterdir()} if self.state else set()
        except FileNotFoundError:  # it has come to its end meanwhile
            return False
        return any(name.startswith(".tmp") or name.endswith(".part") for name in names)

    def prepare(self) -> None:
        """Pack the data and train its classifier."""
        self.ganflow("prepare")

    def start(self) -> None:
        """Start it, or start it again."""
        with self._log.open("wb") as log:
            self._process = self.ganflow("train", log=log)

    def kill(self) -> None:
        """Kill it at once."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def wait(self, happened: Callable[[], bool] = lambda: False, pause: float = 0.005, within: float = 1e9) -> bool:
        """Wait until something happens, but not longer than the training; False where that ended before."""
        assert self._process is not None
        end = time.monotonic() + within
        while time.monotonic() < end:
            if self._process.poll() is not None:
                if self._process.returncode:
                    raise RuntimeError(f"ganflow train fails:\n{self._log.read_text()}")
                return False
            if happened():
                return True
            time.sleep(pause)
        return True

    def ganflow(self, command: str, log: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start a command, and wait for its end unless it is the training."""
        settings = [f"train.{what}_every_images={images}" for what, images in _EVERY.items()]
        settings += [f"train.images={self.images}", "train.device=cpu"]
        line = [str(Path(sys.executable).with_name("ganflow")), command, *(f"-S{setting}" for setting in settings)]
        process = subprocess.Popen(line, cwd=self.repository, env=self._environment, stdout=log, stderr=log)
        if command != "train" and process.wait():
            raise RuntimeError(f"ganflow {command} fails")
        return process


class Server:
    """`mlflow server` on a free port of this machine, with sqlite and a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        places = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--artifacts-destination", "artifacts"]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), *places]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1"],
                cwd=self._folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"mlflow server fails:\n{(self._folder / 'log.txt').read_text()}")
            time.sleep(0.1)

    def end(self, number: signal.Signals) -> None:
        """Send it and its workers a signal, and wait for its end."""
        if self._process is not None:
            os.killpg(self._process.pid, number)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                return True
        except OSError:
            return False


def main() -> int:
    """Train three times, compare, and write the results."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="ganflow-resume-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        _say(f"seed {options.seed}, {options.images:,} images, {options.kills} kills")
        undisturbed = Training(_repository(work / "undisturbed"), options.images)
        undisturbed.prepare()
        seconds = _undisturbed(undisturbed)
        _, expected = found = _found(undisturbed.repository, _local(undisturbed.repository))
        results: dict[str, Any] = {
            "machine": {**describe(), "threads": "1"},
            "images": options.images,
            "every": _EVERY,
            "undisturbed": {"seconds": round(sum(seconds)), "points": sum(map(len, expected["points"].values()))},
        }
        differences = [f"undisturbed: {text}" for text in found[0]]

        killed = Training(_repository(work / "killed", undisturbed.repository), options.images)
        results["kills"] = {"seed": options.seed, **_killed(killed, options.kills, options.seed, seconds)}
        texts, found_there = _found(killed.repository, _local(killed.repository))
        differences += [f"killed: {text}" for text in [*texts, *_different(expected, found_there)]]
        if (made := results["kills"]["made"]) < options.kills:
            differences.append(f"killed: it ended after {made} kills; give more --images")

        server = Server(work / "server")
        outlived = Training(_repository(work / "outlived", undisturbed.repository), options.images, server.uri)
        try:
            server.start()
            results["server"] = _outlived(outlived, server)
            texts, found_there = _found(outlived.repository, server.uri)
        finally:
            server.end(signal.SIGKILL)
        if len(results["server"]["outages"]) < 2:
            differences.append("server: it ended before the second outage; give more --images")
        differences += [f"server: {text}" for text in [*texts, *_different(expected, found_there)]]
    for text in differences:
        _say(f"DIFFERS: {text}")
    compared = ", ".join(f"{len(values)} {kind}" for kind, values in expected.items())
    results |= {"compared": compared, "differences": differences}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    _say(f"{compared}: " + (f"{len(differences)} differences" if differences else "all equal"))
    return 1 if differences else 0


def _undisturbed(training: Training) -> tuple[float, float]:
    """Train from start to end, and give the seconds until the first round and those after it."""
    begin = time.monotonic()
    training.start()
    training.wait(lambda: training.is_training)
    first = time.monotonic()
    training.wait(pause=0.1)
    seconds = first - begin, time.monotonic() - first
    _say(f"undisturbed: {seconds[0]:.1f} s of start-up, {seconds[1]:.1f} s of training")
    return seconds


def _killed(training: Training, kills: int, seed: int, seconds: tuple[float, float]) -> dict[str, Any]:
    """Kill a training at random moments, start it again each time, and let it end. Counts where the kills fell."""
    rng = random.Random(seed)
    aims = [_AIMS[number % len(_AIMS)] for number in range(kills)]
    rng.shuffle(aims)
    between = seconds[1] * _EVERY["checkpoint"] / training.images
    start_up, fell = seconds[0], Counter[str]()
    for number, aim in enumerate(aims, 1):
        before, begin = training.checkpoint, time.monotonic()
        training.start()
        alive = aim == "start-up" or training.wait(lambda: training.is_training)
        if aim != "start-up":
            start_up = time.monotonic() - begin  # another load of the machine makes it another one
        if aim == "checkpoint" and alive:
            alive = training.wait(lambda: training.is_writing, pause=0.0005)
        # What is ahead of its time is killed before its next checkpoint, so that it does not end before the last kill.
        ahead = before is not None and before.images > 0.9 * training.images * number / kills
        within = {"start-up": start_up, "training": 1.5 * between, "checkpoint": _WRITE_SECONDS}[aim]
        longest = within / 2 if ahead and aim != "start-up" else within
        delay = rng.uniform(0, longest)
        if not alive or not training.wait(within=delay):
            break
        training.kill()
        if training.has_ended:
            break
        where = _where(training, before)
        fell[where] += 1
        after = training.checkpoint
        _say(
            f"kill {number} of {kills}, {delay:.3f} s into {aim}: fell {where}; "
            f"recorded {training.recorded:,} images, checkpoint at {after.images if after else 0:,}"
        )
    else:
        training.start()
        training.wait(pause=0.1)
    _say(f"killed: {sum(fell.values())} kills, then it ended by itself")
    return {"made": sum(fell.values()), "fell": dict(sorted(fell.items()))}


def _where(training: Training, before: checkpoint.Checkpoint | None) -> str:
    """Say what the training was at when it was killed, by what it left."""
    if not training.is_training:
        return "into start-up"
    if training.is_writing:
        return "into the writing of a checkpoint"
    after = training.checkpoint
    if after is None or (before is not None and after.digest == before.digest):
        return "into training, before the first checkpoint of that start"
    return "into training, after a checkpoint of that start"


def _outlived(training: Training, server: Server) -> dict[str, Any]:
    """Train while the server is stopped, and killed, and started again."""
    training.start()
    outages = []
    for share, number in ((0.2, signal.SIGTERM), (0.6, signal.SIGKILL)):
        start = share * training.images
        if not training.wait(lambda start=start: training.recorded >= start, pause=0.05):  # type: ignore[misc]
            break
        gone, since = training.recorded, time.monotonic()
        server.end(number)
        later = gone + 4 * _EVERY["tick"]
        alive = training.wait(lambda later=later: training.recorded >= later, pause=0.05)  # type: ignore[misc]
        back = training.recorded if alive else training.images
        server.start()
        outages.append({"signal": number.name, "from_images": gone, "to_images": back})
        _say(
            f"server: {number.name} at {gone:,} images; training went on to {back:,} before it was started again, and "
            f"it answered {time.monotonic() - since:.1f} s after it went"
        )
    training.wait(pause=0.1)
    _say("server: the training ended by itself, in one process")
    return {"outages": outages}


def _found(repository: Path, store: str) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Collect what a training left, by kind and name; and what is wrong with it by itself."""
    trained = repository / _TRAINED
    files = {str(path.relative_to(trained)): path for path in sorted(trained.rglob("*")) if path.is_file()}
    client = MlflowClient(store)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    wrong = [] if len(runs) == 1 else [f"{len(runs)} runs in MLflow"]
    points: dict[str, list[Any]] = {}
    for run in runs:
        if run.info.status != "FINISHED":
            wrong.append(f"the run is {run.info.status}")
        for name in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, name)
            steps = sorted(point.step for point in history)
            wrong += [f"{name} has {n} points at {step}" for step, n in Counter(steps).items() if n > 1]
            points[name] = [(point.step, None if _is_of_machine(name) else point.value) for point in history]
            points[name].sort()
    pictures = [picture.path for run in runs for picture in client.list_artifacts(run.info.run_id, "images")]
    return wrong, {
        "weights": {name: weights_digest(path) for name, path in files.items() if path.suffix == ".safetensors"},
        "tables": {name: _table(path) for name, path in files.items() if path.suffix == ".csv"},
        "samples": {name: path.read_bytes() for name, path in files.items() if path.suffix == ".png"},
        "records": {name: path.read_bytes() for name, path in files.items() if path.name == "best.json"},
        "points": points,
        "pictures": {"in MLflow": sorted(f"{path.split('+')[2]} {Path(path).suffix}" for path in pictures)},
    }


def _different(expected: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"{kind}: {name}"
        for kind in expected
        for name in sorted({*expected[kind], *found[kind]})
        if expected[kind].get(name) != found[kind].get(name)
    ]


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: row[name] for name in row if not _is_of_machine(name)} for row in csv.DictReader(file)]


def _is_of_machine(name: str) -> bool:
    return name.rpartition("/")[2] in machine.VALUES


def _repository(folder: Path, prepared: Path | None = None) -> Path:
    """Make a user's repository, with the data that another one has prepared."""
    (folder / "artifacts").mkdir(parents=True)
    shutil.copyfile(REPOSITORY / "params.yaml", folder / "params.yaml")
    if prepared is not None:
        shutil.copytree(prepared / "artifacts" / "prepare", folder / "artifacts" / "prepare")
    return folder


def _local(repository: Path) -> str:
    return f"sqlite:///{repository}/mlflow.db"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill a training again and again, and compare what comes of it.")
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="50")
    parser.add_argument("--images", type=int, default=100_000, metavar="N", help="length of the training (100000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the moments (0)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="an empty folder to keep what is made in")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
