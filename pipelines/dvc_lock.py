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
    return Pushed(remote or _default_remote(root), md5)


def _default_remote(root: Path) -> str:
    try:
        from dvc.repo import Repo
    except ImportError:
        raise UserError("dvc: is not installed; install ganflow[dvc], or name the remote with --dvc-remote") from None
    with Repo(str(root)) as repo:
        config: dict[str, Any] = repo.config
        name = config["core"].get("remote")
        if not name:
            raise UserError("dvc: has no default remote; set one with `dvc remote default`, or give --dvc-remote URL")
        return str(config["remote"][name]["url"])
