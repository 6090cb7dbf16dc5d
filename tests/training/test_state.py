import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ganflow
from ganflow import params
from ganflow.data.card import DataCard, SplitCard
from ganflow.params import Params
from ganflow.training.state import recipe, state_digest

PARAMS = params.parse({"model": {"family": "dcgan"}})
CARD = DataCard(
    name="dots",
    source="digits",
    resolution=16,
    channels=1,
    classes=None,
    splits={"train": SplitCard(3, None), "validation": SplitCard(1, None), "test": SplitCard(1, None)},
    pictures_a_shard=100,
    mean=[0.5],
    std=[0.5],
    digest="sha256:0",
    skipped=[],
    converted={},
)


def changed(where: str, value: Any) -> Params:
    section, _, leaf = where.rpartition(".")
    return params.parse(params.overlay(params.dump(PARAMS), {section: {leaf: value}} if section else {leaf: value}))


def test_it_names_a_folder_and_stays_the_same() -> None:
    digest = state_digest(PARAMS, CARD)
    assert len(digest) == 16
    assert set(digest) <= set("0123456789abcdef")
    assert state_digest(params.parse({"model": {"family": "dcgan"}}), dataclasses.replace(CARD)) == digest


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("seed", 1),
        ("model.loss", "minimax"),
        ("model.noise", "uniform"),
        ("model.width", 32),
        ("model.latent_dim", 8),
        ("train.images", 5),
        ("train.batch_size", 32),
        ("train.generator_lr", 1e-3),
        ("train.ema_half_life", 10),
        ("train.translation", 1),
    ],
)
def test_what_decides_the_result(where: str, value: Any) -> None:
    assert state_digest(changed(where, value), CARD) != state_digest(PARAMS, CARD)


def test_other_data_is_another_training_and_another_place_for_it_is_not() -> None:
    assert state_digest(PARAMS, dataclasses.replace(CARD, digest="sha256:1")) != state_digest(PARAMS, CARD)
    assert state_digest(changed("data.root", "/elsewhere"), CARD) == state_digest(PARAMS, CARD)


def test_what_it_begins_with() -> None:
    """Begun with the checkpoint of another training, it is another one, whatever else is equal."""
    digests = {state_digest(PARAMS, CARD, begun) for begun in ("", "one", "two")}
    assert len(digests) == 3
    assert state_digest(PARAMS, CARD, "one") in digests


def test_the_recipe_can_be_read() -> None:
    made = recipe(PARAMS, CARD)
    assert json.loads(json.dumps(made)) == made
    assert (made["seed"], made["model"]["family"], made["train"]["batch_size"]) == (0, "dcgan", 64)
    assert (made["data"], made["torch"]) == ("sha256:0", torch.__version__)
    assert set(made) == {"seed", "model", "train", "data", "code", "torch"}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("evaluate.images", 50),
        ("evaluate.extractor", "inception"),
        ("register.max_fid", 1.0),
        ("tracking.experiment", "other"),
    ],
)
def test_what_comes_after_the_training(where: str, value: Any) -> None:
    assert state_digest(changed(where, value), CARD) == state_digest(PARAMS, CARD)


@pytest.mark.parametrize(
    ("file", "matters"),
    [
        ("models/dcgan.py", True),
        ("training/loop.py", True),
        ("data/batches.py", True),
        ("tracking.py", False),
        ("evaluation/fid.py", False),
    ],
)
def test_the_code_of_the_training(file: str, matters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ganflow"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(ganflow.__file__).parent, package, ignore=ignored)
    before = state_digest(PARAMS, CARD)
    monkeypatch.setattr(ganflow, "__file__", str(package / "__init__.py"))
    assert state_digest(PARAMS, CARD) == before, "wherever it is installed"
    with (package / file).open("a") as source:
        source.write("# changed\n")
    assert (state_digest(PARAMS, CARD) != before) == matters


def test_the_version_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_digest(PARAMS, CARD)
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    assert state_digest(PARAMS, CARD) != before
