"""Prepared data through a real DVC remote: a folder, and a bucket of S3."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML
from servers import S3Server

from ganflow.data.card import DataCard, Skipped, SplitCard
from ganflow.dvc_remote import pull
from ganflow.errors import UserError

CARD = DataCard(
    name="shapes",
    source="image_folder",
    resolution=8,
    channels=1,
    classes=["round", "square"],
    splits={
        "train": SplitCard(6, {"round": 4, "square": 2}),
        "validation": SplitCard(1, None),
        "test": SplitCard(2, None),
    },
    pictures_a_shard=100,
    mean=[0.1],
    std=[0.30000000000000004],
    digest="sha256:00",
    skipped=[Skipped("a/b.png", "empty file")],
    converted={"cmyk": 2},
)
UNKNOWN = "0" * 32 + ".dir"

Push = Callable[..., str]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the settings of the person who runs the tests nor DVC's notes on repositories below /var/tmp."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "DVC_"))]:
        monkeypatch.delenv(name)
    for name in ("GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR", "SITE_CACHE_DIR"):
        monkeypatch.setenv(f"DVC_{name}", str(tmp_path / "dvc" / name.lower()))


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The prepared data of somebody's repository."""
    folder = tmp_path / "origin" / "prepare"
    folder.mkdir(parents=True)
    CARD.save(folder / "card.json")
    (folder / "train_images-00000.npy").write_bytes(bytes(range(256)) * 40)
    (folder / "nested").mkdir()
    (folder / "nested" / "empty").touch()
    return folder


@pytest.fixture
def push(origin: Path) -> Push:
    """`dvc add` and `dvc push` to a remote; gives the digest that dvc.lock would have."""

    def push(remote: str) -> str:
        with Repo.init(str(origin.parent), no_scm=True, force=True) as repo:
            with repo.config.edit() as config:
                config["remote"]["ours"] = {"url": remote}
                config["core"]["remote"] = "ours"
            repo.add(str(origin))
            assert repo.push()
        (out,) = YAML(typ="safe").load(origin.with_suffix(".dvc"))["outs"]
        return str(out["md5"])

    return push


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the data is to lie, with something in it already, alone in a folder."""
    folder = tmp_path / "work" / "out"
    folder.mkdir(parents=True)
    (folder / "earlier.txt").write_text("as it was")
    return folder


def assert_refused(remote: str, md5: str, out: Path, said: str = "") -> None:
    """One message that names the remote and the digest; what was there before is there still, and nothing else."""
    with pytest.raises(UserError) as caught:
        pull(remote, md5, out)
    message = str(caught.value)
    assert message.startswith(f"{remote}: the prepared data {md5} cannot be pulled (")
    assert said in message
    assert "\n" not in message
    assert contents(out.parent) == {"out/earlier.txt": b"as it was"}


# A folder


def test_what_was_pushed_comes_back_byte_for_byte(push: Push, origin: Path, out: Path, tmp_path: Path) -> None:
    remote = str(tmp_path / "remote")
    md5 = push(remote)
    assert md5.endswith(".dir")
    assert pull(remote, md5, out) == CARD
    assert contents(out) == contents(origin)
    assert [path.name for path in out.parent.iterdir()] == ["out"], "nothing lies beside it"


def test_a_place_that_is_not_there_yet_is_made(push: Push, origin: Path, tmp_path: Path) -> None:
    remote = str(tmp_path / "remote")
    out = tmp_path / "new" / "er" / "out"
    pull(remote, push(remote), out)
    assert contents(out) == contents(origin)


def test_of_several_versions_the_one_that_is_named(push: Push, origin: Path, out: Path, tmp_path: Path) -> None:
    remote = str(tmp_path / "remote")
    first, before = push(remote), contents(origin)
    (origin / "train_images-00000.npy").write_bytes(b"other pictures")
    second = push(remote)
    pull(remote, first, out)
    assert contents(out) == before
    pull(remote, second, out)
    assert contents(out) == contents(origin)


def test_a_digest_that_the_remote_does_not_have(push: Push, out: Path, tmp_path: Path) -> None:
    push(str(tmp_path / "remote"))
    assert_refused(str(tmp_path / "remote"), UNKNOWN, out)


def test_a_remote_that_is_not_there(push: Push, out: Path, tmp_path: Path) -> None:
    md5 = push(str(tmp_path / "remote"))
    assert_refused(str(tmp_path / "nowhere"), md5, out)
    assert_refused("http://127.0.0.1:9/nowhere", md5, out)
    assert_refused("nonsense://nowhere", md5, out, "Unsupported URL type nonsense://")


def test_a_remote_that_has_lost_a_file(push: Push, out: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    md5 = push(str(remote))
    (largest,) = (path for path in remote.rglob("*") if path.is_file() and path.stat().st_size == 256 * 40)
    largest.unlink()
    assert_refused(str(remote), md5, out)


def test_pushed_data_without_a_card_replaces_nothing(push: Push, origin: Path, out: Path, tmp_path: Path) -> None:
    (origin / "card.json").unlink()
    remote = str(tmp_path / "remote")
    with pytest.raises(UserError, match="is no prepared data"):
        pull(remote, push(remote), out)
    assert contents(out.parent) == {"out/earlier.txt": b"as it was"}


def test_a_remote_whose_content_is_damaged(push: Push, out: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    md5 = push(str(remote))
    (largest,) = (path for path in remote.rglob("*") if path.is_file() and path.stat().st_size == 256 * 40)
    largest.chmod(0o644)
    largest.write_bytes(bytes(256 * 40))
    assert_refused(str(remote), md5, out)


def test_links_in_a_persons_dvc_settings_do_not_matter(push: Push, origin: Path, out: Path, tmp_path: Path) -> None:
    remote = str(tmp_path / "remote")
    md5 = push(remote)
    settings = tmp_path / "dvc" / "global_config_dir" / "config"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("[cache]\n    type = symlink\n")
    assert pull(remote, md5, out) == CARD
    assert contents(out) == contents(origin)


def test_nothing_is_left_in_dvcs_own_folders(
    push: Push, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = str(tmp_path / "remote")
    md5 = push(remote)
    # Without the variable that keeps the other tests tidy, and goes before any setting.
    monkeypatch.setattr("dvc.dirs.site_cache_dir", lambda configured=None: configured or str(tmp_path / "site"))
    pull(remote, md5, out)
    assert not list((tmp_path / "site").rglob("*"))


# A bucket


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


def test_a_bucket_needs_an_address_and_two_keys(
    push: Push, origin: Path, out: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them from the environment, as cluster.yaml's dvc_secret gives them to a pod."""
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.environment["MLFLOW_S3_ENDPOINT_URL"])
    for key in keys:
        monkeypatch.setenv(key, s3.environment[key])
    remote = f"s3://{s3.bucket}/data"
    md5 = push(remote)
    stored = s3.keys()
    assert f"data/files/md5/{md5[:2]}/{md5[2:]}" in stored

    assert_refused(remote, UNKNOWN, out)
    assert_refused("s3://no-such-bucket/data", md5, out)
    with monkeypatch.context() as without:
        without.delenv(keys[1])
        assert_refused(remote, md5, out)
    assert pull(remote, md5, out) == CARD
    assert contents(out.parent) == {f"out/{name}": content for name, content in contents(origin).items()}
