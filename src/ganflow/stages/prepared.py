"""Where the prepared data of a stage lies: in a folder, or at a URL, of which a copy is kept."""

from pathlib import Path

from ganflow.data.remote import fetch, is_url
from ganflow.evaluation.classifier import RECORD_FILE, WEIGHTS_FILE


def prepared_folder(location: str, states: Path) -> Path:
    """Give the folder that `location` names, or one below `states` that is a copy of what lies at a URL.

    Raises UserError.
    """
    return fetch(location, states / "prepared", (RECORD_FILE, WEIGHTS_FILE)) if is_url(location) else Path(location)
