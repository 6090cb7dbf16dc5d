"""A packed data set that lies at a URL, copied once into a folder: S3 and whatever else fsspec opens."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from filelock import FileLock

from ganflow.data.card import CARD_FILE, DataCard
from ganflow.data.digest import digest_of
from ganflow.data.packed import PackedData, file_sizes
from ganflow.errors import UserError
from ganflow.progress import progress
from ganflow.urls import public

_AT_ONCE = 4  # files
_READ_BYTES = 2**23
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def is_url(location: str) -> bool:
    """Tell a URL, such as s3://bucket/path, from the path of a folder."""
    return "://" in location


def fetch(url: str, kept: Path, beside: Sequence[str] = ()) -> Path:
    """Give a folder below `kept` that holds the packed data set at a URL; what is large is fetched once.

    The folder is named by the digest of the data, and appears when all that it should hold has been fetched and has
    that digest. What a fetch that broke off has got is kept for the next one. Of several processes, one fetches.
    `beside` are files that may lie there, too, and are none of the data: where the first of them is another one than
    the last time, all of them are fetched again.

    Credentials come from the environment, for S3 AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on. Raises UserError,
    which names the URL without its credentials.
    """
    place = _Place(url)
    try:
        content = place.read(CARD_FILE)
    except FileNotFoundError as error:
        raise UserError(
            f"{place}: there is no {CARD_FILE} ({place.said(error)}); copy what `ganflow prepare` wrote to that place"
        ) from None
    card = DataCard.parse(content, f"{place}/{CARD_FILE}")
    named = _DIGEST.fullmatch(card.digest)
    if named is None:
        raise UserError(f"{place}/{CARD_FILE}: {card.digest!r} is no digest; run `ganflow prepare` again")
    folder = kept / named[1]
    try:
        kept.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if _missing(folder, card):
                _fill(folder, place, card, content)
            _write(folder / CARD_FILE, content)
            _refresh(folder, place, beside)
    except OSError as error:
        raise UserError(f"{folder}: the data at {place} cannot be kept there ({error.strerror or error})") from None
    return folder


class _Place:
    """What lies below a URL. A file that is not there is a FileNotFoundError; all else that fails is a UserError."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        with self._explained():
            import fsspec  # its own imports take a while

            # Not what this process saw there before.
            self._files, root = fsspec.url_to_fs(self._url, skip_instance_cache=True, use_listings_cache=False)
            self._root = root.rstrip("/")

    def __str__(self) -> str:
        shown, query, _ = public(self._url).partition("?")
        return f"{shown}{query}..." if query else shown

    def read(self, name: str) -> bytes:
        """Read a small file."""
        with self._explained():
            content: bytes = self._files.cat_file(f"{self._root}/{name}")
        return content

    def copy(self, name: str, target: Path, stop: Event) -> None:
        """Copy a file, whole or not at all; it is given up when `stop` is set."""
        part = target.with_name(f".{name}.part")
        with self._explained():
            source = self._files.open(f"{self._root}/{name}", "rb", block_size=_READ_BYTES)
        with source, part.open("wb") as file:
            while chunk := self._next(source):
                file.write(chunk)
                if stop.is_set():
                    return
        part.replace(target)

    def said(self, error: Exception) -> str:
        """Give the reason in an error, without credentials."""
        text = public(" ".join(str(error).split())) or type(error).__name__
        query = self._url.partition("?")[2]
        return (text.replace(query, "...") if query else text)[:300]

    def _next(self, source: Any) -> bytes:
        with self._explained():
            chunk: bytes = source.read(_READ_BYTES)
        return chunk

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever the kinds of storage raise, which is almost anything, into one message."""
        try:
            yield
        except FileNotFoundError:
            raise
        except ImportError as error:
            missing = 's3fs is not installed; pip install "ganflow[s3]"' if self._is_s3 else self.said(error)
            raise UserError(f"{self}: cannot be read ({missing})") from None
        except Exception as error:
            advice = "; check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if self._is_s3 else ""
            raise UserError(f"{self}: the prepared data cannot be read ({self.said(error)}){advice}") from None

    @property
    def _is_s3(self) -> bool:
        return self._url.startswith(("s3://", "s3a://"))


def _missing(folder: Path, card: DataCard) -> dict[str, int]:
    """Give the files that are not there in their full size, by name, with that size."""
    there = {path.name: path.stat().st_size for path in folder.glob("*.npy")}
    return {name: size for name, size in file_sizes(card).items() if there.get(name) != size}


def _fill(folder: Path, place: _Place, card: DataCard, content: bytes) -> None:
    """Fetch what is missing beside the folder, and let it take its place when it is all there and right."""
    staging = folder.with_name(f".{folder.name}.new")
    if folder.exists():  # someone deleted files from it
        folder.rename(staging)
    staging.mkdir(exist_ok=True)
    missing, stop = _missing(staging, card), Event()
    with (
        progress(sum(missing.values()), f"fetch {place}", "B", scale=True) as bar,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        try:
            copies = {pool.submit(place.copy, name, staging / name, stop): name for name in missing}
            for copy in as_completed(copies):
                _require_whole(copy, copies[copy], place, staging, missing)
                bar.update(missing[copies[copy]])
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    _write(staging / CARD_FILE, content)
    if not _is_right(staging, card):
        shutil.rmtree(staging)
        raise UserError(
            f"{place}: holds other data than its {CARD_FILE} says (another digest); copy the data there again"
        )
    staging.rename(folder)


def _is_right(folder: Path, card: DataCard) -> bool:
    """Say whether the files of a folder hold what the card says."""
    try:
        return digest_of(PackedData(folder)) == card.digest
    except UserError:  # one of them begins with something else
        return False


def _require_whole(copy: "Future[None]", name: str, place: _Place, folder: Path, sizes: Mapping[str, int]) -> None:
    try:
        copy.result()
    except FileNotFoundError:
        raise UserError(f"{place}/{name}: there is no such file; copy all of the prepared data there") from None
    if (size := (folder / name).stat().st_size) != sizes[name]:
        (folder / name).unlink()
        raise UserError(
            f"{place}/{name}: is damaged: {size} bytes, not {sizes[name]}; copy the prepared data there again"
        )


def _refresh(folder: Path, place: _Place, beside: Sequence[str]) -> None:
    """Fetch the small files, if there are any and the first of them has changed."""
    for name in beside[:1]:
        try:
            first = place.read(name)
        except FileNotFoundError:
            return
        if all((folder / other).exists() for other in beside) and (folder / name).read_bytes() == first:
            return
        for other in beside[1:]:
            place.copy(other, folder / other, Event())
        _write(folder / name, first)


def _write(path: Path, content: bytes) -> None:
    """Write a small file, whole or not at all; one that is the same already is left alone."""
    if path.exists() and path.read_bytes() == content:
        return
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
