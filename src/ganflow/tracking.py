"""Runs in MLflow: one for each trained model, fed from the journal of its training.

Everything goes through MlflowClient: MLflow's fluent functions act on an active run, take it from the environment,
and end it with a status of their own when an exception passes.
"""

import csv
import hashlib
import json
import logging
import math
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from getpass import getuser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import sqlalchemy
from PIL import Image, UnidentifiedImageError

from ganflow import __version__
from ganflow.data.card import DataCard
from ganflow.errors import UserError
from ganflow.evaluation.protocol import Protocol
from ganflow.home import home, locked
from ganflow.params import Params, dump

# MLflow reads these when it is imported. It reports its use to its makers by default, which a pipeline on a closed
# cluster must not try; it prints links and bars of its own into our progress bar; and it retries for minutes, where the
# journal can wait and a person cannot.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

RUN_FILE = "run.json"
JOURNAL_FILE = "journal.jsonl"
CURSOR_FILE = "cursor.json"

TAG_KIND = "ganflow.kind"
TAG_TRAINED_BY = "ganflow.trained_by"
TAG_DATA_DIGEST = "ganflow.data_digest"
TAG_PROTOCOL = "ganflow.protocol"
TAG_COMMIT = "mlflow.source.git.commit"
_TAG_PARENT = "mlflow.parentRunId"
_TAG_NAME = "mlflow.runName"

_BATCH = 1000  # metrics and tags that MLflow takes at once
_BATCH_PARAMS = 100
_DIGEST_LENGTH = 36  # longest digest that MLflow keeps of a data set
_THUMBNAIL = 256  # side, in pixels, of the small copies that MLflow's image grid shows
_PROBE_SECONDS = 10.0
_LONGEST_PAUSE = 15.0
_STORE_PACKAGES = {"mlflow", "sqlalchemy", "sqlite3", "requests", "urllib3", "botocore", "boto3", "google", "azure"}
_REFUSED_ACCESS = {"PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"}
_REFUSED_CONTENT = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}

_Item = TypeVar("_Item")

_log = logging.getLogger(__name__)
for _name, _level in {"alembic": "WARNING", "mlflow.store.db.utils": "CRITICAL", "urllib3": "ERROR"}.items():
    logging.getLogger(_name).setLevel(_level)  # what they report of a failure is in the one message that we give


# The store


def tracking_uri() -> str:
    """Name the MLflow store: MLFLOW_TRACKING_URI, else mlflow.db at home. A relative sqlite path starts at home."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    scheme, _, path = uri.partition(":///")
    if scheme == "sqlite" and path and not path.startswith(("/", ":")):
        # SQLAlchemy decodes the path: a folder whose name holds a percent or question mark would be another folder.
        root = str(home()).replace("%", "%25").replace("?", "%3F")
        return f"sqlite:///{root}/{path}"
    return uri


def public(text: str) -> str:
    """Take the credentials out of every URI in a text."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def connect(uri: str | None = None) -> MlflowClient:
    """Give a client of the store, which is made first where it is a missing local one.

    Raises UserError, within about ten seconds, where it cannot be used.
    """
    uri = uri or tracking_uri()
    with explained(uri):
        if _is_server(uri):
            _knock(uri)
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
        with locked("store"):
            if "://" in uri:
                _open_database(uri)
            return MlflowClient(uri)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn a failure of the store into one UserError that names it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not _is_the_stores(error):
            raise
        raise UserError(_explanation(uri, error)) from error


def experiment_id(client: MlflowClient, name: str) -> str:
    """Find the experiment, or make it. Raises UserError where it was deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(client, name)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # somebody else was faster
    if found is None or found.lifecycle_stage == "deleted":
        number = "ID" if found is None else found.experiment_id
        raise UserError(
            f"tracking.experiment: {name!r} was deleted in MLflow ({public(client.tracking_uri)}); restore it with "
            f"`mlflow experiments restore --experiment-id {number}`, or choose another name"
        )
    return str(found.experiment_id)


def find_run(client: MlflowClient, run_id: str | None) -> Run | None:
    """Find a run in this store; None where it is unknown or was deleted."""
    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in _REFUSED_CONTENT:
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _knock(uri: str) -> None:
    """Ask a server for anything at all, which it may refuse: silence alone is an error."""
    parts = urlsplit(public(uri))
    if not parts.hostname:
        raise UserError(f"MLFLOW_TRACKING_URI: {public(uri)!r} names no host; it would be http://HOST:PORT")
    try:
        with urllib.request.urlopen(f"{parts.geturl().rstrip('/')}/health", timeout=_PROBE_SECONDS):
            pass
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if "CERTIFICATE" in str(reason):
            return  # MLflow has settings of its own for certificates
        raise UserError(
            f"{public(uri)}: the MLflow server does not answer ({reason}); start it or correct MLFLOW_TRACKING_URI "
            "(without it, runs go to mlflow.db in the repository)"
        ) from None


def _open_database(uri: str) -> None:
    """Connect once, as MLflow would: it tries ten times over two minutes before it says that it cannot."""
    path = sqlalchemy.make_url(uri).database
    if uri.startswith("sqlite:") and path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _artifact_location(client: MlflowClient, experiment: str) -> str | None:
    """Keep the artifacts of a local store at home; a server has a place of its own."""
    if _is_server(client.tracking_uri):
        return None
    return (home() / "mlartifacts" / re.sub(r"[^\w.-]+", "-", experiment)).as_uri()


def _is_the_stores(error: Exception) -> bool:
    return isinstance(error, OSError | ImportError) or type(error).__module__.partition(".")[0] in _STORE_PACKAGES


def _explanation(uri: str, error: Exception) -> str:
    message = public(" ".join(str(error).split("\n(Background on this error")[0].split()))[:400]
    if isinstance(error, MlflowException) and error.error_code in _REFUSED_ACCESS:
        advice = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; "
            "a server that refuses the host name is to be started with --allowed-hosts"
        )
        return f"{public(uri)}: the MLflow server refuses access ({message}); {advice}"
    return (
        f"{public(uri)}: MLflow cannot use this store ({message}); correct MLFLOW_TRACKING_URI, or unset it for "
        "mlflow.db in the repository"
    )


# Runs


@dataclass(frozen=True)
class RunRef:
    """Where a run is found again: its id, the store (without credentials), and the experiment."""

    run_id: str
    tracking_uri: str
    experiment_id: str


def write_run(folder: Path, ref: RunRef) -> None:
    """Write the run's reference as run.json into a folder."""
    _write_json(folder / RUN_FILE, asdict(ref))


def read_run(folder: Path) -> RunRef | None:
    """Read run.json of a folder; None where there is none."""
    path = folder / RUN_FILE
    try:
        return RunRef(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is not the reference of an MLflow run ({error}); delete it") from None


def open_run(params: Params, card: DataCard, *, tags: Mapping[str, str] | None = None) -> RunRef:
    """Open the run of one training: its parameters, its data set, where its code comes from, and the tags given.

    Below the run that MLFLOW_RUN_ID names, as Kubeflow's plugin does, where there is such a run: in its experiment,
    because MLflow shows a child only there. Raises UserError where the store cannot be used.
    """
    client = connect()
    with explained(client.tracking_uri):
        parent = find_run(client, os.environ.get("MLFLOW_RUN_ID"))
        experiment = parent.info.experiment_id if parent else experiment_id(client, params.tracking.experiment)
        links = {_TAG_PARENT: parent.info.run_id} if parent else {}
        run = _create_run(
            client,
            experiment,
            run_name(params),
            params=training_params(params),
            tags={TAG_KIND: "training", **_provenance("train"), **links, **(tags or {})},
            card=card,
        )
    return _ref(client, run)


def resume_run(params: Params, card: DataCard, state: Path, *, tags: Mapping[str, str] | None = None) -> RunRef:
    """Give the run that a state folder belongs to, or open one and note it there.

    A run that this store does not know counts as none. A store that does not answer stops a training that starts,
    but not one that goes on: its journal is sent later.
    """
    known = read_run(state)
    if known is not None:
        try:
            client = connect()
            with explained(client.tracking_uri):
                run = find_run(client, known.run_id)
        except UserError as error:
            if known.tracking_uri != public(tracking_uri()):
                raise
            _log.warning("%s; training goes on, and its journal is sent later", error)
            return known
        if run is not None:
            return _noted(state, _ref(client, run))
        _log.warning("MLflow run %s is not in %s: a new run is opened", known.run_id, public(client.tracking_uri))
    return _noted(state, open_run(params, card, tags=tags))


def run_name(params: Params) -> str:
    """Name a training for people: data, family, and six digits that stand for all of its parameters."""
    digest = hashlib.sha256(json.dumps(training_params(params), sort_keys=True).encode()).hexdigest()
    return f"{params.data.registered_model}-{params.model.family}-{digest[:6]}"


def training_params(params: Params) -> dict[str, str]:
    """List what a training depends on, as MLflow shows it: `train.batch_size` and so on."""
    tree = dump(params)
    return _flat({section: tree[section] for section in tree if section not in {"evaluate", "register"}})


def _noted(state: Path, ref: RunRef) -> RunRef:
    state.mkdir(parents=True, exist_ok=True)
    write_run(state, ref)
    return ref


def _ref(client: MlflowClient, run: Run) -> RunRef:
    return RunRef(run.info.run_id, public(client.tracking_uri), run.info.experiment_id)


def _create_run(
    client: MlflowClient,
    experiment: str,
    name: str,
    *,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    card: DataCard,
) -> Run:
    run = client.create_run(experiment, tags={**tags, TAG_DATA_DIGEST: card.digest}, run_name=name)
    for batch in _chunks([Param(key, value) for key, value in params.items()], _BATCH_PARAMS):
        client.log_batch(run.info.run_id, params=batch)
    client.log_inputs(run.info.run_id, [_dataset(card)])
    return run


def _dataset(card: DataCard) -> DatasetInput:
    counts = {split: entry.count for split, entry in card.splits.items()}
    pictures = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *_picture_shape(card)]}}
    dataset = Dataset(
        name=card.name,
        digest=card.digest.removeprefix("sha256:")[:_DIGEST_LENGTH],
        source_type="code",
        source=json.dumps({"tags": {"mlflow.source.type": "LOCAL", "mlflow.source.name": card.source}}),
        schema=json.dumps({"mlflow_tensorspec": {"features": json.dumps([pictures]), "targets": None}}),
        profile=json.dumps({"num_rows": sum(counts.values()), **counts}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _picture_shape(card: DataCard) -> tuple[int, int, int]:
    return card.channels, card.resolution, card.resolution


def _provenance(stage: str) -> dict[str, str]:
    """Say who ran which version of the code; in a container, which has no checkout, the caller gives the commit."""
    tags = {
        "mlflow.source.name": f"ganflow {stage}",
        "mlflow.source.type": "LOCAL",
        "ganflow.version": __version__,
    }
    try:
        tags["mlflow.user"] = getuser()
    except (KeyError, OSError):
        _log.debug("this user has no name")  # an arbitrary uid in a container
    if name := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.experiment"] = name
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    if commit:
        tags[TAG_COMMIT] = commit
        tags["mlflow.source.git.dirty"] = str(bool(changes)).lower()
    return tags


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _write_json(path: Path, content: Any) -> None:
    """Write a file as a whole: a reader sees the old one or the new one."""
    new = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    new.replace(path)


# The journal on its way


class RunGoneError(Exception):
    """The run was deleted: there is nothing left to send to."""


class Entry(NamedTuple):
    """One line of the journal, with the bytes that it begins and ends at."""

    line: dict[str, Any]
    start: int
    end: int


class Outbox:
    """A journal, and how much of it has been sent.

    The cursor is written after the store has taken the lines: a kill in between sends them again, and the store
    keeps one of two equal points. Pictures lie elsewhere than points (a bucket, say): one that cannot be sent is put
    off, and does not hold the curves up.
    """

    def __init__(self, state: Path, run_id: str) -> None:
        self.state = state
        self._run_id = run_id
        self._offset, self._put_off = 0, list[int]()
        try:
            cursor = json.loads((state / CURSOR_FILE).read_text(encoding="utf-8"))
            if cursor["run_id"] == run_id and cursor["offset"] <= self._size():
                self._offset, self._put_off = cursor["offset"], cursor["put_off"]
        except (OSError, ValueError, KeyError, TypeError):
            _log.debug("%s: no cursor, so the journal is sent from its beginning", state)

    def unsent(self) -> Iterator[Entry]:
        """Give the lines after the cursor. A last line without its newline was torn by a kill, or is being written."""
        if self._size() <= self._offset:
            return
        with (self.state / JOURNAL_FILE).open("rb") as file:
            start = file.seek(self._offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                yield Entry(self._parsed(raw), start, start + len(raw))
                start += len(raw)

    def put_off(self) -> Iterator[Entry]:
        """Give the pictures that could not be sent in their turn."""
        for start in list(self._put_off):
            with (self.state / JOURNAL_FILE).open("rb") as file:
                file.seek(start)
                yield Entry(self._parsed(file.readline()), start, file.tell())

    def sent(self, entry: Entry) -> None:
        """Move the cursor behind a line."""
        self._offset = max(self._offset, entry.end)
        self._put_off = [start for start in self._put_off if start != entry.start]
        self._save()

    def send_later(self, entry: Entry) -> None:
        """Move the cursor behind a picture, and keep it for later."""
        self._offset = entry.end
        self._put_off.append(entry.start)
        self._save()

    def waiting(self) -> int:
        """Count the lines not yet sent."""
        return len(self._put_off) + sum(1 for _ in self.unsent())

    def _save(self) -> None:
        cursor = {"run_id": self._run_id, "offset": self._offset, "put_off": self._put_off}
        _write_json(self.state / CURSOR_FILE, cursor)

    def _size(self) -> int:
        try:
            return (self.state / JOURNAL_FILE).stat().st_size
        except FileNotFoundError:
            return 0

    def _parsed(self, raw: bytes) -> dict[str, Any]:
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        if isinstance(line, dict):
            return line
        _log.warning("%s: a line that is not JSON was left out: %.80r", self.state / JOURNAL_FILE, raw)
        return {}


class Courier:
    """Carries the lines of an outbox to their run."""

    def __init__(self, client: MlflowClient, outbox: Outbox, run_id: str) -> None:
        self._client, self._outbox, self._run_id = client, outbox, run_id
        self._status: str | None = None

    def deliver(self) -> int:
        """Send all that waits, and count it. Raises what stopped it, or RunGoneError."""
        delivered = 0
        failure: Exception | None = None
        try:
            retried = list(self._outbox.put_off())
            for batch in _batches(self._outbox.unsent()):
                failure = self._send(batch) or failure
                delivered += len(batch)
            for entry in retried:
                self._send_picture(entry)
                self._outbox.sent(entry)
                delivered += 1
            if failure is not None:
                raise failure
        except MlflowException as error:
            if error.error_code in _REFUSED_CONTENT and find_run(self._client, self._run_id) is None:
                raise RunGoneError from error
            raise
        return delivered

    def _send(self, batch: Sequence[Entry]) -> Exception | None:
        """Send points, or one other line. Gives the reason where a picture had to be put off."""
        last = batch[-1]
        if "samples" in last.line:
            try:
                self._send_picture(last)
            except Exception as error:  # whatever an artifact store may raise: the curves go on
                self._outbox.send_later(last)
                return error
        elif "status" in last.line:
            self._status = last.line["status"]
            self._client.set_terminated(self._run_id, self._status, end_time=last.line["time"])
        else:
            self._send_points(batch)
        self._outbox.sent(last)
        return None

    def _send_points(self, batch: Sequence[Entry]) -> None:
        metrics = [
            Metric(name, value, entry.line["time"], entry.line["images"])
            for entry in batch
            for name, value in entry.line.get("values", {}).items()
        ]
        if not metrics:
            return
        self._set_running()
        try:
            self._client.log_batch(self._run_id, metrics=metrics)
        except MlflowException as error:
            if error.error_code not in _REFUSED_CONTENT or find_run(self._client, self._run_id) is None:
                raise
            if len(batch) == 1:
                _log.warning("MLflow refuses the points at %s images: %s", batch[0].line["images"], error)
                return
            for entry in batch:  # one of them must not keep the others back
                self._send_points([entry])

    def _send_picture(self, entry: Entry) -> None:
        picture = self._outbox.state / entry.line["samples"]
        if not picture.exists():
            _log.warning("%s: the picture is gone, and was not sent to MLflow", picture)
            return
        try:
            log_sample(self._client, self._run_id, picture, entry.line["images"], entry.line["time"])
        except UnidentifiedImageError:
            _log.warning("%s: is not a picture, and was not sent to MLflow", picture)

    def _set_running(self) -> None:
        """Take a run up again that had ended before it was resumed."""
        if self._status is None:
            self._status = self._client.get_run(self._run_id).info.status
        if self._status != "RUNNING":
            self._client.update_run(self._run_id, status="RUNNING")
            self._status = "RUNNING"


class Sender:
    """Sends a journal to MLflow from another thread while a training writes it.

    Training neither waits for the store nor hears of its failures: the thread tries again, and what remains after
    `close` is sent by `sync`.
    """

    def __init__(self, state: Path, interval: float = 1.0) -> None:
        ref = read_run(state)
        if ref is None:
            raise UserError(f"{state / RUN_FILE}: is missing, so nobody knows the MLflow run of this journal")
        self._ref, self._state, self._interval = ref, state, interval
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="ganflow-sender", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, timeout: float = 20.0) -> int:
        """Try to send what is left, for at most `timeout` seconds. Counts the lines that remain unsent."""
        self._closing.set()
        if not self._abandoned.is_set():
            self._thread.join(timeout)
        self._abandoned.set()
        return Outbox(self._state, self._ref.run_id).waiting()

    def _run(self) -> None:
        courier: Courier | None = None
        pause = self._interval
        lost = False
        while not self._abandoned.is_set():
            closing = self._closing.is_set()
            try:
                courier = courier or _courier(self._ref, self._state)
                delivered = courier.deliver()
            except RunGoneError:
                _log.warning("MLflow run %s was deleted: nothing more is sent to it", self._ref.run_id)
                return
            except Exception as error:  # no failure of the tracker may end a training
                if not lost:
                    _log.warning("%s; training goes on, and its journal is sent later", self._failure(error))
                lost, pause = True, min(max(1.0, 2 * pause), _LONGEST_PAUSE)
            else:
                if lost:
                    _log.warning("MLflow at %s is back: %d journal lines sent", self._ref.tracking_uri, delivered)
                lost, pause = False, self._interval
                if closing:
                    return
            (self._abandoned if closing else self._closing).wait(min(pause, 1.0) if closing else pause)

    def _failure(self, error: Exception) -> str:
        return f"MLflow at {self._ref.tracking_uri} takes no points ({public(str(error))[:200]})"


def sync(root: Path) -> int:
    """Send all that is unsent of every training below `root`, and count the lines.

    Folders in .ganflow/unsent are deleted once all of theirs is sent. Raises UserError where a store does not answer.
    """
    sent = 0
    states = root / ".ganflow"
    for journal in sorted([*states.glob(f"train/*/**/{JOURNAL_FILE}"), *states.glob(f"unsent/*/**/{JOURNAL_FILE}")]):
        ref = read_run(journal.parent)
        if ref is not None and Outbox(journal.parent, ref.run_id).waiting():
            sent += _sync_one(ref, journal.parent)
    for folder in sorted(states.glob("unsent/*/")):
        if not any(_is_waiting(journal.parent) for journal in folder.rglob(JOURNAL_FILE)):
            shutil.rmtree(folder)
    return sent


def _sync_one(ref: RunRef, state: Path) -> int:
    uri = _uri_of(ref)
    client = connect(uri)
    with explained(uri):
        try:
            return Courier(client, Outbox(state, ref.run_id), ref.run_id).deliver()
        except RunGoneError:
            _log.warning("MLflow run %s was deleted: %s cannot be sent; delete it", ref.run_id, state)
            return 0


def _is_waiting(state: Path) -> bool:
    ref = read_run(state)
    return ref is None or Outbox(state, ref.run_id).waiting() > 0


def _courier(ref: RunRef, state: Path) -> Courier:
    return Courier(MlflowClient(_uri_of(ref)), Outbox(state, ref.run_id), ref.run_id)


def _uri_of(ref: RunRef) -> str:
    """Find the store of a run, with the credentials that the environment may have for it."""
    uri = tracking_uri()
    return uri if public(uri) == ref.tracking_uri else ref.tracking_uri


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Put lines of points together as far as MLflow takes them at once; any other line stays alone."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        points = len(entry.line.get("values", ()))
        if batch and (not points or size + points > _BATCH):
            yield batch
            batch, size = [], 0
        if points:
            batch.append(entry)
            size += points
        else:
            yield [entry]
    if batch:
        yield batch


def log_sample(client: MlflowClient, run_id: str, picture: Path, images: int, time_ms: int) -> None:
    """Log a picture under the key `samples` at its image count, where MLflow's image grid finds it.

    These are the names that MlflowClient.log_image gives, except that it ends them with a random number: a picture
    that is sent twice would be there twice.
    """
    unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id}/{images}/{time_ms}")
    name = f"samples+step+{images}+timestamp+{time_ms}+{unique}"
    with TemporaryDirectory() as folder:
        shutil.copyfile(picture, Path(folder, f"{name}.png"))
        with Image.open(picture) as image:
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            image.save(Path(folder, f"{name}+compressed.webp"), lossless=True)
        client.log_artifacts(run_id, folder, "images")
    client.set_tag(run_id, "mlflow.loggedImages", "True")


# What later stages add


def log_evaluation(
    params: Params,
    card: DataCard,
    trained: Path,
    evaluated: Path,
) -> RunRef:
    """Log an evaluation: its parameters, metrics.json as `evaluate/...`, protocol.json, and the pictures.

    The first one goes to the run of the training, whose status stays as it is. MLflow does not let parameters change:
    under others, the evaluation has a run of its own, below that of the training. The same parameters find the same
    run again. Raises UserError where the store cannot be used.
    """
    client = connect()
    with explained(client.tracking_uri):
        training = training_run(client, params, card, trained)
        asked = _flat({"evaluate": dump(params)["evaluate"]})
        run = _evaluation_run(client, training, asked, card)
        for batch in _chunks([Param(key, value) for key, value in asked.items()], _BATCH_PARAMS):
            client.log_batch(run.info.run_id, params=batch)
        _log_results(client, run, evaluated, last_images(trained, params))
    return _ref(client, run)


def training_run(client: MlflowClient, params: Params, card: DataCard, trained: Path) -> Run:
    """Find the run that `trained` names.

    Where this store does not know it (the outputs come from a DVC cache, say), a run is made from what the training
    left, and linked to the lost one by tag.
    """
    known = read_run(trained)
    if (run := find_run(client, known.run_id if known else None)) is not None:
        return run
    lost = known.run_id if known else "unknown"
    experiment = experiment_id(client, params.tracking.experiment)
    name = run_name(params)
    restored = _search(
        client,
        experiment,
        f"tags.`{TAG_TRAINED_BY}` = '{lost}' and tags.`{TAG_KIND}` = 'restored' and tags.`{_TAG_NAME}` = '{name}' "
        "and attributes.status = 'FINISHED'",
    )
    if restored:
        return restored[0]
    tags = {TAG_KIND: "restored", TAG_TRAINED_BY: lost, **_provenance("train")}
    run = _create_run(client, experiment, name, params=training_params(params), tags=tags, card=card)
    _restore_history(client, run.info.run_id, trained)
    client.set_terminated(run.info.run_id, "FINISHED")
    return client.get_run(run.info.run_id)


def last_images(trained: Path, params: Params) -> int:
    """Say at how many images the training ended: the step that its evaluation belongs to."""
    return max((row[0] for row in _history(trained)), default=params.train.images)


def _evaluation_run(client: MlflowClient, training: Run, asked: Mapping[str, str], card: DataCard) -> Run:
    if _evaluated_with(training) in ({}, asked):
        return training
    training_id = training.info.run_id
    experiment = training.info.experiment_id
    links = f"tags.`{TAG_TRAINED_BY}` = '{training_id}' and tags.`{TAG_KIND}` = 'evaluation'"
    for run in _search(client, experiment, links):
        if _evaluated_with(run) == asked:
            return run
    trained_with = {key: value for key, value in training.data.params.items() if not key.startswith("evaluate.")}
    origin = {
        TAG_KIND: "evaluation",
        TAG_TRAINED_BY: training_id,
        _TAG_PARENT: training_id,
        **_provenance("evaluate"),
    }
    name = f"{training.info.run_name}-evaluation"
    run = _create_run(client, experiment, name, params={**trained_with, **asked}, tags=origin, card=card)
    client.set_terminated(run.info.run_id, "FINISHED")
    return run


def _evaluated_with(run: Run) -> dict[str, str]:
    return {key: value for key, value in run.data.params.items() if key.startswith("evaluate.")}


def _search(client: MlflowClient, experiment: str, conditions: str) -> list[Run]:
    return list(client.search_runs([experiment], conditions, max_results=_BATCH))


def _log_results(client: MlflowClient, run: Run, evaluated: Path, images: int) -> None:
    run_id = run.info.run_id
    now = _now()
    metrics = [
        Metric(f"evaluate/{name}", value, now, images)
        for name, value in read_metrics(evaluated).items()
        if value is not None and math.isfinite(value) and run.data.metrics.get(f"evaluate/{name}") != value
    ]
    tags = [RunTag(TAG_PROTOCOL, read_protocol(evaluated).digest)]
    client.log_batch(run_id, metrics=metrics, tags=tags)
    for name in ("metrics.json", "protocol.json"):
        client.log_artifact(run_id, str(evaluated / name), "evaluation")
    for picture in sorted(evaluated.glob("*.png")):
        client.log_artifact(run_id, str(picture), "evaluation")


def read_metrics(evaluated: Path) -> dict[str, float | None]:
    """Read the numbers of metrics.json; null stands for one that has no value."""
    tree = _read_json(evaluated / "metrics.json")
    return {
        name: None if value is None else float(value)
        for name, value in tree.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def read_protocol(evaluated: Path) -> Protocol:
    """Read how the numbers of metrics.json came about."""
    path = evaluated / "protocol.json"
    try:
        return Protocol.from_dict(_read_json(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}; run `ganflow evaluate` again") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; run `ganflow evaluate` first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `ganflow evaluate` again") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: does not hold names and values; run `ganflow evaluate` again")
    return tree


def _restore_history(client: MlflowClient, run_id: str, trained: Path) -> None:
    now = _now()
    metrics = [
        Metric(f"train/{name}", value, now, images) for images, values in _history(trained) for name, value in values
    ]
    for batch in _chunks(metrics, _BATCH):
        client.log_batch(run_id, metrics=batch)
    for picture in sorted((trained / "samples").glob("*.png")):
        if picture.stem.isdigit():
            log_sample(client, run_id, picture, int(picture.stem), now)


def _history(trained: Path) -> list[tuple[int, list[tuple[str, float]]]]:
    """Read history.csv: the image count of each tick, and the values that it has."""
    path = trained / "history.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [
            (int(row["images"]), [(name, float(value)) for name, value in row.items() if name != "images" and value])
            for row in rows
        ]
    except FileNotFoundError:
        return []
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is not the history of a training ({error}); train again") from None


def _now() -> int:
    return time.time_ns() // 1_000_000
