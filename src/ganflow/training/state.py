"""Where a training keeps what it resumes from: a folder named by all that decides its result."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

import ganflow
from ganflow.data.card import DataCard
from ganflow.params import Params, dump

SECTIONS = ("seed", "model", "train")
_CODE = ("data", "models", "training")


def recipe(params: Params, card: DataCard) -> dict[str, Any]:
    """List what decides the result of a training: parameters, data, and code, with the version of torch."""
    tree = dump(params)
    content = hashlib.sha256()
    package = Path(ganflow.__file__).parent
    for layer in _CODE:
        for source in sorted((package / layer).glob("*.py")):
            content.update(source.read_bytes())
    return {
        **{section: tree[section] for section in SECTIONS},
        "data": card.digest,
        "code": content.hexdigest(),
        "torch": torch.__version__,
    }


def state_digest(params: Params, card: DataCard, resumed_from: str = "") -> str:
    """Digest of all that decides the result of a training.

    `resumed_from` is the digest of the checkpoint of another training that it begins with, if it does.
    """
    content = json.dumps([recipe(params, card), resumed_from], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
