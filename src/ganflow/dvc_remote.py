"""Prepared data from a DVC remote: what `dvc push` put there, without the repository that pushed it."""

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from ganflow.data.card import CARD_FILE, DataCard
from ganflow.errors import UserError

_NAME = "prepared"


def pull(remote: str, md5: str, out: Path) -> DataCard:
    """Fetch the folder that dvc.lock names with `md5` from the remote at the URL `remote` into `out`.

    Credentials come from the environment, as for any use of DVC (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on).
    Raises UserError where DVC is missing, or the remote does not have the folder.
    """
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError:
        raise UserError("dvc: is not installed, and is needed to pull prepared data; install ganflow[dvc]") from None
    os.environ.setdefault("USER", str(os.getuid()))  # DVC asks for a name, which a user of a container may not have
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".dvc-") as folder:
        root = Path(folder)
        try:
            _settle(root, remote)
            entry = {"outs": [{"md5": md5, "hash": "md5", "path": _NAME}]}
            (root / f"{_NAME}.dvc").write_text(json.dumps(entry), encoding="utf-8")
            with Repo(str(root)) as repo:
                repo.pull()
        except (DvcException, OSError, ImportError) as error:
            said = " ".join(str(error).split())[:300].replace(str(root), "")
            raise UserError(
                f"{remote}: the prepared data {md5} cannot be pulled ({said}; DVC's own lines above say more); check "
                "the remote and its credentials, or run `dvc push`"
            ) from None
        if not (root / _NAME / CARD_FILE).is_file():
            raise UserError(
                f"{remote}: {md5} is no prepared data: it has no {CARD_FILE}; run `dvc repro` and `dvc push`"
            )
        card = DataCard.load(root / _NAME / CARD_FILE)
        shutil.rmtree(out, ignore_errors=True)
        (root / _NAME).rename(out)
    return card


def _settle(root: Path, remote: str) -> None:
    """Make a DVC repository of a folder that goes away soon; `dvc init` would leave notes on it elsewhere."""
    from dvc.config import Config

    (root / ".dvc").mkdir()
    with Config.init(str(root / ".dvc")).edit() as config:
        config["remote"]["origin"] = {"url": remote, "verify": True}
        config["core"] |= {"no_scm": True, "remote": "origin", "site_cache_dir": str(root / "site")}
        config["cache"]["type"] = "copy"  # a link would lead into this folder
