"""What `dvc repro` and `dvc push` have prepared already: its digest in dvc.lock, and the remote that has it."""

from pathlib import Path
from typing import Any, NamedTuple

from ganflow.errors import UserError
from ganflow.params import Params, dump, parse, read_tree

_OUTPUT = "artifacts/prepare"


class Pushed(NamedTuple):
    """Prepared data in a DVC remote."""

    remote: str
    md5: str


def pushed_data(params: Params, root: Path, remote: str = "") -> Pushed:
    """Find the prepared data of these parameters in `root`, a DVC repository.

    Raises UserError where there is none, or it was made with other parameters.
    """
    lock = root / "dvc.lock"
    if not lock.exists():
        raise UserError(f"{lock}: there is no such file; run `dvc repro prepare` and `dvc push` first")
    try:
        stage = read_tree(lock)["stages"]["prepare"]
        made_with = stage["params"]["params.yaml"]["data"]
        (md5,) = (out["md5"] for out in stage["outs"] if out["path"] == _OUTPUT)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{lock}: does not know the outputs of prepare; run `dvc repro prepare` and `dvc push`"
        ) from None
    asked = dump(params)
    locked = dump(parse({"data": made_with, "model": asked["model"]}, str(lock)))["data"]
    if locked != asked["data"]:
        differ = ", ".join(f"data.{key}" for key in locked if locked[key] != asked["data"][key])
        raise UserError(f"{lock}: prepare ran with another {differ}; run `dvc repro prepare` and `dvc push` first")
    return Pushed(_address(root, remote), md5)


def _address(root: Path, remote: str) -> str:
    """Find the URL of a remote by its name, or of the default one; a URL is one already."""
    if "://" in remote:
        return remote
    try:
        from dvc.exceptions import NotDvcRepoError
        from dvc.repo import Repo
    except ImportError:
        raise UserError("dvc: is not installed; install ganflow[dvc], or give --dvc-remote a URL") from None
    try:
        with Repo(str(root)) as repo:
            config: dict[str, Any] = repo.config
    except NotDvcRepoError:
        raise UserError(f"{root}: is no DVC repository; run from the repository's root") from None
    return _url(config, remote or config["core"].get("remote"))


def _url(config: dict[str, Any], name: str | None) -> str:
    if not name:
        raise UserError("dvc: has no default remote; set one with `dvc remote default`, or give --dvc-remote URL")
    if name not in config["remote"]:
        known = ", ".join(config["remote"]) or "none"
        raise UserError(f"--dvc-remote {name}: is neither a URL nor a remote of this repository; there are {known}")
    url = str(config["remote"][name]["url"])
    if "://" not in url:
        raise UserError(f"dvc: the remote {name} is {url}, a folder that a pod does not have; push to a bucket")
    return url
