"""The best checkpoint of a training: the networks at the lowest validation FID so far, kept beside the last ones."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from ganflow.training.disk import sync, writing
from ganflow.training.match import Match
from ganflow.training.weights import BEST

RECORD_FILE = "best.json"
VALUES = ("validation_fid", "best_fid")
"""Names of what is measured; they have points of their own, between those of the ticks."""


class Best:
    """Measures a match from time to time, and keeps its networks whenever they were never better.

    The discriminator is kept with its generators: an accuracy says nothing of the generator of another moment.
    """

    def __init__(
        self,
        state: Path,
        score: Callable[[Match], float],
        save: Callable[[Match, Path], None],
        *,
        every: int,
        protocol: Mapping[str, str | int],
    ) -> None:
        """Go on from what is kept in the folder `state`, where there is anything.

        `score` gives a FID, NaN for a broken generator; `save` writes the networks of a match into an empty folder;
        `every` is the number of images between two measurements. `protocol` says how they are made: a FID of another
        one, measured before the training was interrupted, is not compared with, and its networks are not kept.
        """
        self.every = every
        self._score, self._save, self._protocol = score, save, dict(protocol)
        self.folder, self._new, self._old = (state / f"{BEST}{suffix}" for suffix in ("", ".new", ".old"))
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if not self.folder.exists() and self._old.exists():  # killed between the two renames
            self._old.rename(self.folder)
        for leftover in (self._new, self._old):
            shutil.rmtree(leftover, ignore_errors=True)
        self.fid = self._recorded()

    def measure(self, match: Match) -> dict[str, float]:
        """Give the FID of the averaged generator and the lowest so far, whose networks are on disk when this returns.

        Both are NaN for a broken generator, and nothing is kept of it. Raises FullDiskError, with those kept before
        still there.
        """
        fid = self._score(match)
        if math.isnan(fid):
            return {"validation_fid": fid, "best_fid": fid}
        if fid < self.fid:
            self._keep(match, fid)
        return {"validation_fid": fid, "best_fid": self.fid}

    def _recorded(self) -> float:
        """Read the lowest FID so far; infinite where there is none of this protocol."""
        try:
            record = json.loads((self.folder / RECORD_FILE).read_text(encoding="utf-8"))
            return float(record["fid"]) if record["protocol"] == self._protocol else math.inf
        except (OSError, ValueError, KeyError, TypeError):
            return math.inf

    def _keep(self, match: Match, fid: float) -> None:
        """Put the networks in the place of those kept before, whole or not at all."""
        record = {"images": match.images, "fid": fid, "protocol": self._protocol}
        with writing(self._new):
            self._new.mkdir()
            self._save(match, self._new)
            (self._new / RECORD_FILE).write_text(json.dumps(record) + "\n", encoding="utf-8")
            for path in (*self._new.iterdir(), self._new):
                sync(path)
        if self.folder.exists():
            self.folder.rename(self._old)
        self._new.rename(self.folder)
        sync(self.folder.parent)
        shutil.rmtree(self._old, ignore_errors=True)
        self.fid = fid
