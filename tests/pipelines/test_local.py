import os
from pathlib import Path

import pytest
from kfp import dsl

from ganflow import params
from ganflow.errors import UserError
from pipelines import local


@dsl.component(base_image="python", install_kfp_package=False)
def say(text: str) -> str:
    if text == "fail":
        raise SystemExit(3)
    return text


@dsl.pipeline(name="little")
def little(text: str = "yes") -> None:
    say(text=text)


def test_status_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KFP_RUN_ID", "")
    assert local.run(little, {"text": "yes"})
    assert os.environ["KFP_RUN_ID"].startswith("local-")
    assert not local.run(little, {"text": "fail"})
    assert capfd.readouterr().err.splitlines()[-1].startswith("pipelines: ")
    assert (tmp_path / "artifacts" / "kfp").is_dir()


def test_a_picture_that_is_added_changes_the_version_of_the_data(tmp_path: Path) -> None:
    """Else the cache would give the data set without it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    tree = {"data": {"source": "image_folder", "root": str(folder)}, "model": {"family": "dcgan"}}
    loaded = params.parse(tree)
    versions = {local.data_version(loaded)}
    (folder / "a.png").write_bytes(b"1")
    versions.add(local.data_version(loaded))
    (folder / "a.png").write_bytes(b"22")
    versions.add(local.data_version(loaded))
    assert len(versions) == 3
    assert local.data_version(loaded) in versions


def test_pictures_that_are_not_there() -> None:
    tree = {"data": {"source": "image_folder", "root": "nowhere"}, "model": {"family": "dcgan"}}
    with pytest.raises(UserError, match=r"data\.root: there is no folder nowhere"):
        local.data_version(params.parse(tree))


def test_a_data_set_that_cannot_change_has_no_version() -> None:
    assert local.data_version(params.parse({"model": {"family": "dcgan"}})) == ""
