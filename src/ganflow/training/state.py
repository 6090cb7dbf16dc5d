"""Where a training keeps what it resumes from: a folder named by all that decides its result."""

import hashlib
import json
from pathlib import Path

import torch

import ganflow
from ganflow.data.card import DataCard
from ganflow.params import Params, dump

SECTIONS = ("seed", "model", "train")
_CODE = ("data", "models", "training")


def state_digest(params: Params, card: DataCard) -> str:
    """Digest of the parameters, data and code that affect a training; the code includes torch's version."""
    tree = dump(params)
    content = hashlib.sha256()
    content.update(json.dumps([tree[key] for key in SECTIONS], sort_keys=True).encode())
    content.update(card.digest.encode())
    content.update(torch.__version__.encode())
    package = Path(ganflow.__file__).parent
    for layer in _CODE:
        for source in sorted((package / layer).glob("*.py")):
            content.update(source.read_bytes())
    return content.hexdigest()[:16]
