"""URLs as they may be shown."""

import re


def public(text: str) -> str:
    """Take the credentials out of every URL in a text."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)
