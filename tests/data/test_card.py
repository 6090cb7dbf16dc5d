import json
from dataclasses import replace
from pathlib import Path

import pytest

from ganflow.data.card import DataCard, Skipped, SplitCard
from ganflow.errors import UserError

CARD = DataCard(
    name="shapes",
    source="image_folder",
    resolution=8,
    channels=1,
    classes=["round", "square"],
    splits={
        "train": SplitCard(6, {"round": 4, "square": 2}),
        "validation": SplitCard(1, {"round": 1, "square": 0}),
        "test": SplitCard(2, {"round": 1, "square": 1}),
    },
    pictures_a_shard=100,
    mean=[0.1],
    std=[0.30000000000000004],
    digest="sha256:00",
    skipped=[Skipped("a/b.png", "empty file"), Skipped("nicht-utf8-\udcff.png", "empty file")],
    converted={"cmyk": 2},
)


def test_a_card_survives_its_file(tmp_path: Path) -> None:
    CARD.save(tmp_path / "card.json")
    assert DataCard.load(tmp_path / "card.json") == CARD
    tree = json.loads((tmp_path / "card.json").read_text())
    assert tree["splits"]["train"] == {"count": 6, "class_counts": {"round": 4, "square": 2}}
    assert tree["skipped"][0] == {"file": "a/b.png", "reason": "empty file"}


@pytest.mark.parametrize(("length", "shards"), [(6, [6]), (7, [6]), (4, [4, 2]), (3, [3, 3]), (1, [1] * 6)])
def test_all_shards_but_the_last_are_whole(length: int, shards: list[int]) -> None:
    assert replace(CARD, pictures_a_shard=length).shards("train") == shards


def test_a_missing_card_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `ganflow prepare` first"):
        DataCard.load(tmp_path / "card.json")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"x"', b"{}", b"\xff\xfe", b'{"classes": 3, "splits": 1, "skipped": []}']
)
def test_a_broken_card_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(UserError, match="run `ganflow prepare` again"):
        DataCard.load(tmp_path / "card.json")


STACKED = replace(CARD, channels=2, channel_classes=["a", "b"], classes=["aa", "ab", "ba", "bb"])


def test_a_card_of_channels_that_are_pictures_of_their_own(tmp_path: Path) -> None:
    STACKED.save(tmp_path / "card.json")
    assert DataCard.load(tmp_path / "card.json") == STACKED


def test_an_older_card_has_no_channels_of_their_own(tmp_path: Path) -> None:
    CARD.save(tmp_path / "card.json")
    tree = json.loads((tmp_path / "card.json").read_text())
    del tree["channel_classes"]
    (tmp_path / "card.json").write_text(json.dumps(tree))
    assert DataCard.load(tmp_path / "card.json") == CARD


@pytest.mark.parametrize("classes", [None, ["aa", "ab"]])
def test_a_card_whose_classes_are_no_combinations(tmp_path: Path, classes: list[str] | None) -> None:
    replace(STACKED, classes=classes).save(tmp_path / "card.json")
    with pytest.raises(UserError, match="all combinations of channel_classes"):
        DataCard.load(tmp_path / "card.json")


@pytest.mark.parametrize("key", ["name", "splits", "classes", "digest", "pictures_a_shard"])
def test_a_card_without_a_field(tmp_path: Path, key: str) -> None:
    CARD.save(tmp_path / "card.json")
    tree = json.loads((tmp_path / "card.json").read_text())
    del tree[key]
    (tmp_path / "card.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=key):
        DataCard.load(tmp_path / "card.json")


def test_a_card_with_shards_of_nothing(tmp_path: Path) -> None:
    replace(CARD, pictures_a_shard=0).save(tmp_path / "card.json")
    with pytest.raises(UserError, match="pictures_a_shard must be at least 1"):
        DataCard.load(tmp_path / "card.json")
