import json
from pathlib import Path
from typing import Any

import pytest

from ganflow import params
from ganflow.errors import UserError
from ganflow.params import Params
from pipelines.dvc_lock import pushed_data


@pytest.fixture
def asked() -> Params:
    return params.parse({"data": {"resolution": 8}, "model": {"family": "dcgan"}})


def lock(root: Path, data: dict[str, Any], outs: list[dict[str, Any]] | None = None) -> None:
    """Write a dvc.lock, as JSON, which is YAML too."""
    stage = {"params": {"params.yaml": {"data": data}}, "outs": outs or [{"path": "artifacts/prepare", "md5": "1.dir"}]}
    (root / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"prepare": stage}}), encoding="utf-8")


def test_the_digest_and_the_remote(tmp_path: Path, asked: Params) -> None:
    lock(tmp_path, {"resolution": 8})  # what it leaves out has its default
    assert pushed_data(asked, tmp_path, "s3://bucket/x") == ("s3://bucket/x", "1.dir")


def test_the_repositorys_default_remote(tmp_path: Path, asked: Params) -> None:
    from dvc.repo import Repo

    with Repo.init(str(tmp_path), no_scm=True) as repo, repo.config.edit() as config:
        config["remote"]["team"] = {"url": "s3://team/ganflow"}
        config["core"]["remote"] = "team"
    lock(tmp_path, {"resolution": 8})
    assert pushed_data(asked, tmp_path).remote == "s3://team/ganflow"


@pytest.mark.parametrize(
    ("remote", "said"),
    [("other", "neither a URL nor a remote of this repository; there are team, here"), ("here", "a pod does not have")],
)
def test_a_remote_that_a_pod_cannot_use(tmp_path: Path, asked: Params, remote: str, said: str) -> None:
    from dvc.repo import Repo

    with Repo.init(str(tmp_path), no_scm=True) as repo, repo.config.edit() as config:
        config["remote"] |= {"team": {"url": "s3://team/ganflow"}, "here": {"url": str(tmp_path / "folder")}}
    lock(tmp_path, {"resolution": 8})
    assert pushed_data(asked, tmp_path, "team").remote == "s3://team/ganflow"
    with pytest.raises(UserError, match=said):
        pushed_data(asked, tmp_path, remote)


def test_no_dvc_repository(tmp_path: Path, asked: Params) -> None:
    lock(tmp_path, {"resolution": 8})
    with pytest.raises(UserError, match="no DVC repository"):
        pushed_data(asked, tmp_path)


def test_no_default_remote(tmp_path: Path, asked: Params) -> None:
    from dvc.repo import Repo

    Repo.init(str(tmp_path), no_scm=True).close()
    lock(tmp_path, {"resolution": 8})
    with pytest.raises(UserError, match="no default remote"):
        pushed_data(asked, tmp_path)


def test_data_prepared_with_other_parameters_is_refused(tmp_path: Path, asked: Params) -> None:
    lock(tmp_path, {"resolution": 16, "seed": 3})
    with pytest.raises(UserError, match=r"prepare ran with another data\.resolution, data\.seed"):
        pushed_data(asked, tmp_path, "s3://bucket/x")


def test_nothing_was_prepared(tmp_path: Path, asked: Params) -> None:
    with pytest.raises(UserError, match="no such file; run `dvc repro prepare`"):
        pushed_data(asked, tmp_path, "s3://bucket/x")
    lock(tmp_path, {"resolution": 8}, [{"path": "elsewhere", "md5": "2.dir"}])
    with pytest.raises(UserError, match="does not know the outputs of prepare"):
        pushed_data(asked, tmp_path, "s3://bucket/x")
