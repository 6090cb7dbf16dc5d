"""One file per family of GAN: its parameters, its networks and what its players lose.

A family is found by its file: `models/<family>.py` holds the networks and one frozen dataclass, derived
from `game.FamilyParams`, with the family's own parameters. Nothing else has to be told that it exists.
"""

import importlib
import pkgutil
from types import ModuleType

from ganflow.models.game import FamilyParams

_SHARED = {"classic", "convolutional", "game", "inputs", "losses", "penalties", "shapes", "two_player"}


def families() -> tuple[type[FamilyParams], ...]:
    """Return the parameter class of every family, in the order of their names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)
    return tuple(_params_of(importlib.import_module(f"{__name__}.{name}")) for name in names)


def _params_of(module: ModuleType) -> type[FamilyParams]:
    (own,) = (
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, FamilyParams) and thing.__module__ == module.__name__
    )
    return own
