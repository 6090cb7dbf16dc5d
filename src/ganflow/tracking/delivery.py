"""The journal on its way to MLflow: from a cursor, in batches, in a thread of its own."""

import json
import logging
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from PIL import Image, UnidentifiedImageError

from ganflow.errors import UserError
from ganflow.tracking.runs import RUN_FILE, RunRef, read_run, write_json
from ganflow.tracking.store import REFUSED_CONTENT, connect, explained, find_run, tracking_uri
from ganflow.urls import public

_LONGEST_PAUSE = 15.0
_THUMBNAIL = 256  # side, in pixels, of the small copies that MLflow's image grid shows
LARGEST_BATCH = 1000  # metrics and tags that MLflow takes at once
CURSOR_FILE = "cursor.json"
JOURNAL_FILE = "journal.jsonl"
TAG_WARNING = "ganflow.warning"

_log = logging.getLogger(__name__)


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
        write_json(self.state / CURSOR_FILE, cursor)

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
            if error.error_code in REFUSED_CONTENT and find_run(self._client, self._run_id) is None:
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
        elif "warning" in last.line:
            self._send_warning(last.line)
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
            if error.error_code not in REFUSED_CONTENT or find_run(self._client, self._run_id) is None:
                raise
            if len(batch) == 1:
                _log.warning("MLflow refuses the points at %s images: %s", batch[0].line["images"], error)
                return
            for entry in batch:  # one of them must not keep the others back
                self._send_points([entry])

    def _send_warning(self, line: dict[str, Any]) -> None:
        warning = line["warning"]
        self._client.set_tag(
            self._run_id, f"{TAG_WARNING}.{warning['kind']}", f"at {line['images']} images: {warning['text']}"
        )

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
        self.reference, self._state, self._interval = ref, state, interval
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
        return Outbox(self._state, self.reference.run_id).waiting()

    def _run(self) -> None:
        courier: Courier | None = None
        pause = self._interval
        lost = False
        while not self._abandoned.is_set():
            closing = self._closing.is_set()
            try:
                courier = courier or _courier(self.reference, self._state)
                delivered = courier.deliver()
            except RunGoneError:
                _log.warning("MLflow run %s was deleted: nothing more is sent to it", self.reference.run_id)
                return
            except Exception as error:  # no failure of the tracker may end a training
                if not lost:
                    _log.warning("%s; training goes on, and its journal is sent later", self._failure(error))
                lost, pause = True, min(max(1.0, 2 * pause), _LONGEST_PAUSE)
            else:
                if lost:
                    _log.warning("MLflow at %s is back: %d journal lines sent", self.reference.tracking_uri, delivered)
                lost, pause = False, self._interval
                if closing:
                    return
            (self._abandoned if closing else self._closing).wait(min(pause, 1.0) if closing else pause)

    def _failure(self, error: Exception) -> str:
        return f"MLflow at {self.reference.tracking_uri} takes no points ({public(str(error))[:200]})"


def sync(states: Path, *, ended: bool = False) -> int:
    """Send all that is unsent of every training whose state lies in the folder `states`, and count the lines.

    With `ended`, only of those that have ended well: another process may be sending the others. Folders in unsent/ are
    deleted once all of theirs is sent. Raises UserError where a store does not answer.
    """
    sent = 0
    open_journals = [] if ended else states.glob(f"train/*/**/{JOURNAL_FILE}")
    for journal in sorted([*open_journals, *states.glob(f"unsent/*/**/{JOURNAL_FILE}")]):
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
        if batch and (not points or size + points > LARGEST_BATCH):
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
