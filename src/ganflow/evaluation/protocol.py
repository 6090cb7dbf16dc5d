"""Under which conditions a metric was measured. It travels with the number."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything beside the model that a FID depends on. Two FIDs under different protocols are never compared."""

    extractor: str
    """Name of the network whose features are compared."""
    extractor_digest: str
    """SHA-256 of its weights."""
    feature_dimension: int
    """Length d of a feature vector."""
    resize: str
    """What is done to the size of the pictures before the network sees them."""
    split: str
    """Split that the real pictures are from."""
    reals: int
    """Number of real pictures: the first of the split."""
    fakes: int
    """Number of pictures measured: the first."""
    compared: int
    """Number of pictures of each kind that KID, precision, recall, density and coverage compare: the first."""
    searched: int
    """Number of training pictures among which memorised ones are looked for: the first of the split."""
    data_digest: str
    """Digest of the prepared data set."""
    code_version: str
    """Version of ganflow."""

    def to_dict(self) -> dict[str, Any]:
        """Give a tree of plain values, which `from_dict` takes back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Protocol":
        """Make the protocol out of a tree; keys that are not the protocol's own are passed over.

        Raises ValueError if a key is missing or its value is of another type.
        """
        try:
            values = {field.name: tree[field.name] for field in fields(cls)}
        except KeyError as error:
            raise ValueError(f"a protocol needs {error.args[0]}") from None
        for field in fields(cls):
            if type(values[field.name]) is not field.type:
                raise ValueError(f"a protocol's {field.name} cannot be {values[field.name]!r}")
        return cls(**values)

    @property
    def cautions(self) -> tuple[str, ...]:
        """Say what a reader of the numbers has to know, in a sentence each; empty where there is nothing."""
        few = min(self.reals, self.fakes)
        notes = []
        if few <= self.feature_dimension:
            notes.append(
                f"{few} pictures are too few for {self.feature_dimension} features: the covariances are rank-deficient "
                "and FID is biased; compare it with its floor, and with FIDs of as many pictures alone"
            )
        if "unknown" in self.extractor:
            notes.append(
                "the extractor's weights are not those of FID: the numbers cannot be compared with published ones"
            )
        return tuple(notes)

    @property
    def digest(self) -> str:
        """SHA-256 of the whole protocol: equal for comparable ones."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"

    def differences(self, other: "Protocol") -> list[str]:
        """Name the fields in which two protocols differ."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]

    def comparable(self, other: "Protocol") -> bool:
        """Tell whether numbers under the two protocols may be compared."""
        return not self.differences(other)
