"""Packed data at a URL: a folder, and a bucket of a real S3 endpoint."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from packed_noise import pack_noise
from servers import S3Server

from ganflow.data import packing, remote
from ganflow.data.packed import PackedData, file_sizes
from ganflow.data.remote import fetch, is_url
from ganflow.errors import UserError

BESIDE = ("extractor.json", "extractor.safetensors")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `ganflow prepare` wrote: shards of 20 pictures, three of which are the training pictures."""
    monkeypatch.setattr(packing, "_SHARD_BYTES", 20 * 64)
    folder = tmp_path / "origin"
    folder.mkdir()
    pack_noise(folder, 80)
    for name in BESIDE:
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def refused(url: str, kept: Path) -> str:
    """The one message of a fetch that fails, and leaves nothing that could be taken for data."""
    with pytest.raises(UserError) as caught:
        fetch(url, kept, BESIDE)
    assert not [path for path in kept.glob("[!.]*") if path.is_dir()]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("location", "expected"),
    [("s3://a/b", True), ("memory://x", True), ("artifacts/prepare", False), ("/a/b", False), ("C:\\a", False)],
)
def test_urls_are_told_from_folders(location: str, expected: bool) -> None:
    assert is_url(location) == expected


def test_the_sizes_are_those_of_the_files(origin: Path) -> None:
    sizes = file_sizes(PackedData(origin).card)
    assert sizes == {path.name: path.stat().st_size for path in origin.glob("*.npy")}
    assert len(sizes) == 3 + 1 + 1 + 3


def test_all_is_copied_into_a_folder_named_by_the_digest(origin: Path, kept: Path) -> None:
    folder = fetch(origin.as_uri() + "/", kept, BESIDE)
    digest = PackedData(origin).card.digest
    assert digest == f"sha256:{folder.name}"
    assert folder.parent == kept
    assert contents(folder) == contents(origin)
    assert {path.name for path in kept.iterdir()} <= {folder.name, f"{folder.name}.lock"}
    np.testing.assert_array_equal(PackedData(folder).images("train")[:], PackedData(origin).images("train")[:])


def test_what_may_lie_beside_it_need_not(origin: Path, kept: Path) -> None:
    for name in BESIDE:
        (origin / name).unlink()
    assert contents(fetch(origin.as_uri(), kept, BESIDE)) == contents(origin)


def test_what_is_whole_is_left_alone(origin: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(origin.as_uri(), kept, BESIDE)
    monkeypatch.setattr(remote, "_fill", None)
    assert fetch(origin.as_uri(), kept, BESIDE) == folder


def test_files_that_someone_deleted_are_fetched_again(origin: Path, kept: Path) -> None:
    folder = fetch(origin.as_uri(), kept, BESIDE)
    (folder / "train_images-00001.npy").unlink()
    (folder / "test_labels.npy").write_bytes(b"")
    assert fetch(origin.as_uri(), kept, BESIDE) == folder
    assert contents(folder) == contents(origin)


def test_another_card_or_extractor_of_the_same_data_is_taken(origin: Path, kept: Path) -> None:
    fetch(origin.as_uri(), kept, BESIDE)
    (origin / "card.json").write_text((origin / "card.json").read_text().replace("mine", "renamed"))
    for name in BESIDE:
        (origin / name).write_bytes(b"another")
    folder = fetch(origin.as_uri(), kept, BESIDE)
    assert PackedData(folder).card.name == "renamed"
    assert contents(folder) == contents(origin)


def test_no_card(tmp_path: Path, kept: Path) -> None:
    assert refused((tmp_path / "nothing").as_uri(), kept).startswith(
        f"{(tmp_path / 'nothing').as_uri()}: there is no card.json ("
    )


@pytest.mark.parametrize("content", [b"{}", b"junk", b""])
def test_a_broken_card(origin: Path, kept: Path, content: bytes) -> None:
    (origin / "card.json").write_bytes(content)
    assert refused(origin.as_uri(), kept).startswith(f"{origin.as_uri()}/card.json: is not a data card")


def test_a_digest_that_would_lead_elsewhere(origin: Path, kept: Path) -> None:
    card = (origin / "card.json").read_text()
    (origin / "card.json").write_text(re.sub("sha256:[0-9a-f]+", "sha256:../../home", card))
    assert "'sha256:../../home' is no digest" in refused(origin.as_uri(), kept)


@pytest.mark.parametrize("harm", ["missing", "short", "long"])
@pytest.mark.parametrize("name", ["train_images-00001.npy", "test_labels.npy"])
def test_a_damaged_file_is_named_and_the_others_are_not_lost(origin: Path, kept: Path, name: str, harm: str) -> None:
    path = origin / name
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes(content[:-1] if harm == "short" else content + b"x")
    said = {"missing": "there is no such file", "short": "is damaged", "long": "is damaged"}[harm]
    assert refused(origin.as_uri(), kept).startswith(f"{origin.as_uri()}/{name}: {said}")
    path.write_bytes(content)
    folder = fetch(origin.as_uri(), kept, BESIDE)
    assert contents(folder) == contents(origin)


@pytest.mark.parametrize("place", [-1, 20])
def test_content_of_the_same_size_that_is_not_what_the_card_says(origin: Path, kept: Path, place: int) -> None:
    path = origin / "validation_images-00000.npy"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert refused(origin.as_uri(), kept).startswith(f"{origin.as_uri()}: holds other data than its card.json says")
    content[place] ^= 1
    path.write_bytes(content)
    assert contents(fetch(origin.as_uri(), kept, BESIDE)) == contents(origin)


def test_a_place_that_cannot_be_written(origin: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be kept there"):
        fetch(origin.as_uri(), tmp_path / "file" / "kept")


def test_credentials_are_in_no_message(kept: Path) -> None:
    message = refused("http://me:s3cret@127.0.0.1:9/data?X-Amz-Signature=s1gned", kept)
    assert message.startswith("http://127.0.0.1:9/data?...: the prepared data cannot be read (")
    assert "s3cret" not in message
    assert "s1gned" not in message


def test_an_error_that_repeats_the_credentials_is_told_without_them(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cat_file(self: MemoryFileSystem, path: str) -> bytes:
        raise OSError("GET memory://me:s3cret@host/data?token=s1gned\nis refused")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    assert refused("memory://me:s3cret@host/data?token=s1gned", kept) == (
        "memory://host/data?...: the prepared data cannot be read (GET memory://host/data?... is refused)"
    )


def test_a_kind_of_storage_that_there_is_not(kept: Path) -> None:
    assert refused("nonsense://x", kept).startswith(
        "nonsense://x: the prepared data cannot be read (Protocol not known"
    )


def test_without_s3fs(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    assert 'pip install "ganflow[s3]"' in refused("s3://bucket/data", kept)


# A bucket


@pytest.fixture(scope="module")
def s3_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s3") / "s3.log"


@pytest.fixture(scope="module")
def s3(s3_log: Path) -> Iterator[S3Server]:
    server = S3Server(s3_log.parent)
    server.start()
    yield server
    server.kill()


Put = Callable[[Path, str], str]


@pytest.fixture
def put(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Copies a folder into the bucket, and gives its URL; with the credentials in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.environment["MLFLOW_S3_ENDPOINT_URL"])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, s3.environment[name])

    def put(folder: Path, name: str) -> str:
        for path in folder.iterdir():
            s3._client().upload_file(str(path), s3.bucket, f"{name}/{path.name}")
        return f"s3://{s3.bucket}/{name}"

    return put


def fetched(log: Path, name: str) -> list[str]:
    """The files below a name that the server has given out so far, in order."""
    return re.findall(rf'"GET /team/{name}/(\S+) HTTP', log.read_text())


def test_a_bucket_is_read_once(put: Put, origin: Path, kept: Path, s3_log: Path) -> None:
    url = put(origin, "once")
    folder = fetch(url, kept, BESIDE)
    assert contents(folder) == contents(origin)
    first = fetched(s3_log, "once")
    assert sorted(name for name in first if name.endswith(".npy")) == sorted(path.name for path in origin.glob("*.npy"))
    assert fetch(url, kept, BESIDE) == folder
    assert fetched(s3_log, "once")[len(first) :] == ["card.json", "extractor.json"]


def test_of_several_at_once_one_fetches(put: Put, origin: Path, kept: Path, s3_log: Path) -> None:
    url = put(origin, "several")
    with ThreadPoolExecutor(3) as pool:  # each opens the lock by itself, as processes do
        folders = set(pool.map(lambda _: fetch(url, kept, BESIDE), range(3)))
    assert folders == {kept / PackedData(origin).card.digest.removeprefix("sha256:")}
    names = [name for name in fetched(s3_log, "several") if name.endswith(".npy")]
    assert sorted(names) == sorted(path.name for path in origin.glob("*.npy"))


def test_what_was_fetched_before_it_broke_off_is_not_fetched_again(
    put: Put, origin: Path, kept: Path, s3: S3Server, s3_log: Path
) -> None:
    url = put(origin, "broken")
    s3._client().put_object(Bucket=s3.bucket, Key="broken/train_images-00000.npy", Body=b"half")
    assert refused(url, kept).startswith(f"{url}/train_images-00000.npy: is damaged: 4 bytes, not ")
    there = {path.name for folder in kept.glob(".*.new") for path in folder.glob("[!.]*.npy")}
    before = len(fetched(s3_log, "broken"))
    put(origin, "broken")
    assert contents(fetch(url, kept, BESIDE)) == contents(origin)
    assert there.isdisjoint(fetched(s3_log, "broken")[before:])


def test_a_bucket_that_there_is_not(put: Put, kept: Path) -> None:
    message = refused("s3://no-such-bucket/data", kept)
    assert message.startswith("s3://no-such-bucket/data: there is no card.json (")
    assert "bucket does not exist" in message


def test_without_credentials(put: Put, origin: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(origin, "closed")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(kept / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(kept / "none"))
    message = refused(url, kept)
    assert message.startswith(f"{url}: the prepared data cannot be read (")
    assert "credentials" in message
    assert message.endswith("; check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


def test_nobody_answers(put: Put, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    message = refused("s3://bucket/data", kept)
    assert message.startswith("s3://bucket/data: the prepared data cannot be read (")
    assert "127.0.0.1:9" in message
