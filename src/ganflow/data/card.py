"""The data card: what a packed data set holds, where it came from, and what was left out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ganflow.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CARD_FILE = "card.json"


@dataclass(frozen=True)
class SplitCard:
    """One split: its number of pictures, and how many of each class by name (None without labels)."""

    count: int
    class_counts: Mapping[str, int] | None


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, by its path below data.root, and why."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DataCard:
    """What a packed data set holds.

    `mean` and `std` are per channel, of the training pixels scaled to [0, 1]. `digest` is a SHA-256 of the shapes,
    pixels, labels and class names of all splits: equal data has an equal digest, wherever it lies, and however it is
    cut. The pictures of a split lie in files of `pictures_a_shard` each, but for the last one.

    `channel_classes` are set where every channel is a picture of its own: the names of what one channel may show. The
    classes are then all combinations of them, those of the last channel varying fastest.
    """

    name: str
    source: str
    resolution: int
    channels: int
    classes: Sequence[str] | None
    splits: Mapping[Split, SplitCard]
    pictures_a_shard: int
    mean: Sequence[float]
    std: Sequence[float]
    digest: str
    skipped: Sequence[Skipped]
    converted: Mapping[str, int]
    channel_classes: Sequence[str] | None = None

    @property
    def class_count(self) -> int:
        """Number of classes, 0 without labels."""
        return len(self.classes or ())

    def shards(self, split: Split) -> list[int]:
        """Give the number of pictures in each file of a split; there is one file at least."""
        whole, rest = divmod(self.splits[split].count, self.pictures_a_shard)
        return [self.pictures_a_shard] * whole + ([rest] if rest or not whole else [])

    def save(self, path: Path) -> None:
        """Write the card as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "DataCard":
        """Read a card. Raises UserError if it is missing or is not one."""
        try:
            return cls.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise UserError(f"{path}: there is no data card; run `ganflow prepare` first") from None
        except OSError as error:
            raise UserError(f"{path}: the data card cannot be read ({error.strerror or error})") from None

    @classmethod
    def parse(cls, content: bytes, place: str) -> "DataCard":
        """Read a card from the bytes of a file; messages name its place. Raises UserError if it is not one."""
        try:
            tree = json.loads(content.decode())
            if "digest" in tree and "pictures_a_shard" not in tree:
                raise UserError(
                    f"{place}: is of an earlier ganflow, which had no pictures_a_shard; run `ganflow prepare` again"
                )
            return cls._from_json(tree)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{place}: is not a data card ({type(error).__name__}: {error}); run `ganflow prepare` again"
            ) from None

    @classmethod
    def _from_json(cls, tree: dict[str, Any]) -> "DataCard":
        fields = dict(tree)
        fields["classes"] = None if tree["classes"] is None else [str(name) for name in tree["classes"]]
        fields["splits"] = {split: SplitCard(**tree["splits"][split]) for split in SPLITS}
        fields["skipped"] = [Skipped(**entry) for entry in tree["skipped"]]
        fields["converted"] = dict(tree["converted"])
        if tree["pictures_a_shard"] < 1:
            raise ValueError("pictures_a_shard must be at least 1")
        card = cls(**fields)
        if card.channel_classes and len(card.channel_classes) ** card.channels != len(card.classes or ()):
            raise ValueError("classes must be all combinations of channel_classes")
        return card
