"""Experiments: small overlays over the defaults, and the params.yaml that each of them makes."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ganflow.errors import UserError
from ganflow.models.game import FamilyParams
from ganflow.params import Params, descriptions, dump, overlay, override, parse, read_tree

FOLDER = Path("experiments")
SCHEMA = "params.schema.json"

_PLAIN_TEXT = re.compile(r"[A-Za-z/][\w./-]*")  # not with a dot first: .5 and .inf are numbers
_NOT_PRINTABLE = re.compile("[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]")  # JSON holds them as they are, YAML does not
_NOT_PLAIN = {"true", "false", "null"}


def resolve(name: str, overrides: Sequence[str] = (), folder: Path = FOLDER) -> Params:
    """Lay `experiments/<name>.yaml` and then the overrides over the defaults. Raises UserError."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise UserError(f"experiment {name}: there is no {path}; there are {known}")
    return parse(override(overlay({}, read_tree(path)), overrides), str(path))


def switch(name: str, overrides: Sequence[str], target: Path, kept: Path, folder: Path = FOLDER) -> Path | None:
    """Write the experiment's parameters to `target`.

    Edits by hand are not lost: a `target` that no experiment makes is copied below `kept` first, and the
    copy's path is returned.
    """
    text = render(resolve(name, overrides, folder))
    copy = None
    present = target.read_bytes() if target.exists() else None
    if present is not None and present not in {made.encode() for made in (text, *_renderings(folder))}:
        copy = kept / f"{hashlib.sha256(present).hexdigest()[:12]}.yaml"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(present)
    target.write_text(text, encoding="utf-8")
    return copy


def render(params: Params) -> str:
    """Write parameters as a params.yaml that lists every common leaf, and of the family's own the changed ones."""
    common = {field.name for field in dataclasses.fields(FamilyParams)}
    own_defaults = {field.name: field.default for field in dataclasses.fields(params.model)}
    notes = descriptions(params)
    lines = [
        f"# yaml-language-server: $schema={SCHEMA}",
        "# A family's own parameters appear where they differ from its defaults.",
    ]
    for key, value in dump(params).items():
        if not isinstance(value, dict):
            lines.append(_line(key, value, notes[key]))
            continue
        lines += ["", f"{key}:"]
        for leaf, leaf_value in value.items():
            if key != "model" or leaf in common or leaf_value != own_defaults[leaf]:
                lines.append("  " + _line(leaf, leaf_value, notes[f"{key}.{leaf}"]))
    return "\n".join(lines) + "\n"


def _renderings(folder: Path) -> list[str]:
    texts = []
    for path in folder.glob("*.yaml"):
        with suppress(UserError):  # a broken one says so when it is asked for
            texts.append(render(resolve(path.stem, folder=folder)))
    return texts


def _line(key: str, value: Any, note: str) -> str:
    plain = isinstance(value, str) and _PLAIN_TEXT.fullmatch(value) and value.lower() not in _NOT_PLAIN
    quoted = _NOT_PRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
    return f"{key}: {value if plain else quoted}  # {note}"
