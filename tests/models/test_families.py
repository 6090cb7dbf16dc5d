"""What every family keeps to, whichever files lie in models/."""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import CLASSES, FAMILIES, build, lost, pictures, player, turn

import ganflow.models
from ganflow.models.game import Game

NAMES = list(FAMILIES)
SIDES = sorted(base * 2**n for base in (4, 5, 6, 7) for n in range(1, 6) if base * 2**n <= 128)


def turns(game: Game) -> list[str]:
    return [player.name for player in game.players]


def test_the_families() -> None:
    assert sorted(NAMES) == NAMES
    assert {"cgan", "dcgan", "r3gan", "stylegan", "vae", "vanilla", "wgan", "wgan_gp"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described_and_has_a_default(name: str) -> None:
    family = FAMILIES[name]
    for field in dataclasses.fields(family):
        assert field.metadata["description"].endswith(".")
        assert field.default is not dataclasses.MISSING
    assert family().family == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        family().latent_dim = 5


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", NAMES)
def test_any_side_and_channels(name: str, side: int, channels: int) -> None:
    game = build(name, channels, side).eval()
    batch = pictures(3, channels, side)
    with torch.no_grad():
        made = game.generator(game.draw_inputs(2))
        scores = None if game.discriminator is None else game.judge(*batch)
    assert made.shape == (2, channels, side, side)
    assert made.abs().max() <= 1
    assert made.std() > 0
    if scores is None:
        assert "has no discriminator" in game.no_discriminator
        with pytest.raises(ValueError, match=game.no_discriminator):
            game.judge(*batch)
    else:
        assert scores.shape == (3,)
        assert torch.isfinite(scores).all()
        assert game.no_discriminator == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_range_is_minus_one_to_one_even_for_wild_latents(name: str) -> None:
    game = build(name).eval()
    inputs = game.draw_inputs(8)
    inputs[:, : game.inputs.latent_dim] *= 1e6
    with torch.no_grad():
        made = game.generator(inputs)
    assert made.min() >= -1
    assert made.max() <= 1
    assert made.abs().max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_pictures_in_a_batch_do_not_know_each_other(name: str) -> None:
    game = build(name).eval()
    inputs, (reals, labels) = game.draw_inputs(4), pictures(4)
    with torch.no_grad():
        torch.testing.assert_close(game.generator(inputs)[1:2], game.generator(inputs[1:2]))
        if game.discriminator is not None:
            torch.testing.assert_close(game.judge(reals, labels)[1:2], game.judge(reals[1:2], labels[1:2]))


@pytest.mark.parametrize("name", NAMES)
def test_the_discriminator_moves_first_and_as_often_as_asked(name: str) -> None:
    game = build(name, discriminator_steps=3)
    if game.discriminator is None:
        assert turns(game) == ["generator"]
    else:
        assert [(one.name, one.steps) for one in game.players] == [("discriminator", 3), ("generator", 1)]
        assert [one.network for one in game.players] == [game.discriminator, game.generator]


@pytest.mark.parametrize("name", NAMES)
def test_inputs_follow_from_the_generator_of_random_numbers(name: str) -> None:
    game = build(name)
    first, second = (game.draw_inputs(300, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (300, game.inputs.width)
    labels = game.inputs.labels(first)
    assert labels is None or set(labels.tolist()) == set(range(CLASSES))


@pytest.mark.parametrize("name", NAMES)
def test_a_turn_moves_its_own_network_alone_and_all_of_it(name: str) -> None:
    game = build(name)
    for mover in turns(game):
        game.zero_grad()
        turn(game, mover, pictures(4))
        moved = set(player(game, mover).network.parameters())
        for parameter in game.parameters():
            assert (parameter.grad is not None) == (parameter in moved)
        assert any(parameter.grad.abs().max() > 0 for parameter in moved if parameter.grad is not None)


@pytest.mark.parametrize("name", [name for name in NAMES if build(name).discriminator is not None])
def test_the_discriminators_turn_does_not_reach_the_generator(name: str) -> None:
    """The classic mistake: generated pictures that are not detached."""
    game = build(name)
    torch.autograd.backward(player(game, "discriminator").play(pictures(4)).loss)
    assert all(parameter.grad is None for parameter in game.generator.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_each_player_wins_against_one_that_does_not_move(name: str) -> None:
    game = build(name)
    batch = pictures(16)._replace(images=torch.full((16, 1, 8, 8), 0.8))
    game.rounds = 1  # without what some rounds have beside
    for mover in turns(game):
        optimizer = torch.optim.Adam(player(game, mover).network.parameters(), lr=5e-3)
        losses = []
        for _ in range(40):
            game.zero_grad()
            losses.append(turn(game, mover, batch).loss.item())
            optimizer.step()
        assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("name", NAMES)
def test_a_scale_without_a_dividing_value_has_no_accuracy(name: str) -> None:
    game = build(name)
    if game.discriminator is None:
        return
    values = player(game, "discriminator").play(pictures(8)).values
    assert {"d_real", "d_fake"} <= values.keys()
    assert ("batch_accuracy" in values) == (game.scale != "relative")
    if game.scale == "log_odds":
        assert 0 <= values["d_real"] <= 1


@pytest.mark.parametrize("name", NAMES)
def test_sheets_are_the_same_for_the_same_seed(name: str) -> None:
    game = build(name).eval()
    with torch.no_grad():
        first, second = (game.sheets(torch.Generator().manual_seed(0)) for _ in range(2))
    for sheet, again in zip(first.values(), second.values(), strict=True):
        assert torch.equal(sheet.images, again.images)
        assert len(sheet.images) % sheet.columns == 0
        assert sheet.images.abs().max() <= 1


@pytest.mark.parametrize("name", [name for name in NAMES if len(build(name).players) == 2])
def test_the_generator_answers_for_the_pictures_that_the_discriminator_saw(name: str) -> None:
    game = build(name, dropout=0.0)
    game.rounds = 1
    made = []
    game.generator.register_forward_hook(lambda _network, _inputs, output: made.append(output))
    lost(game, "discriminator", pictures(4))
    turn(game, "generator", pictures(4))
    assert len(made) == 1
    turn(game, "generator", pictures(4))
    assert len(made) == 2  # pictures serve one step of the generator, which then has moved


# Families and layers by their files alone

NEW_FAMILY = """
from dataclasses import dataclass
from typing import Literal
from ganflow.models.game import option
from ganflow.models.two_player import TwoPlayerGame, TwoPlayerParams

@dataclass(frozen=True, kw_only=True)
class NewParams(TwoPlayerParams):
    family: Literal["newcomer"] = option("newcomer", "Kind of GAN.")
    loss: Literal["new"] = option("new", "What both lose.")
    depth: int = option(2, "How deep.", ge=1)

    def build(self, channels: int, resolution: int, classes: int = 0) -> TwoPlayerGame:
        raise NotImplementedError
"""


@pytest.fixture
def forget() -> Iterator[Callable[..., None]]:
    """Have packages imported afresh, until the test is over."""
    before = dict(sys.modules)
    touched: set[str] = set()

    def forget(*packages: str, forbidden: bool = False) -> None:
        touched.update(packages)
        for module in list(sys.modules):
            if module.partition(".")[0] in packages:
                del sys.modules[module]
        if forbidden:
            sys.modules.update(dict.fromkeys(packages))  # importing None raises ModuleNotFoundError

    yield forget
    forget(*touched)
    sys.modules.update(before)


def test_a_family_appears_by_its_file(tmp_path: Path, forget: Callable[..., None]) -> None:
    (tmp_path / "newcomer.py").write_text(NEW_FAMILY)
    forget("ganflow")
    importlib.import_module("ganflow.models").__path__.append(str(tmp_path))
    params = importlib.import_module("ganflow.params")
    assert params.parse({"model": {"family": "newcomer", "depth": 3}}).model.depth == 3
    with pytest.raises(Exception, match=r"model.depth: should be greater than or equal to 1, not 0"):
        params.parse({"model": {"family": "newcomer", "depth": 0}})
    with pytest.raises(Exception, match=r"must be one of cgan, dcgan, newcomer, r3gan, .*, wgan_gp"):
        params.parse({"model": {"family": "other"}})


def test_the_maths_needs_no_mlflow_kfp_or_dvc(forget: Callable[..., None]) -> None:
    package = Path(ganflow.models.__file__).parents[1]
    forget("ganflow")
    forget("mlflow", "kfp", "dvc", forbidden=True)
    for layer in ("models", "training", "evaluation", "data"):
        for path in sorted((package / layer).glob("*.py")):
            module = f"ganflow.{layer}" if path.stem == "__init__" else f"ganflow.{layer}.{path.stem}"
            assert importlib.import_module(module)
    with pytest.raises(ModuleNotFoundError, match="mlflow"):
        importlib.import_module("ganflow.tracking.store")


def test_the_models_depend_on_torch_alone(forget: Callable[..., None]) -> None:
    forget("ganflow")
    forget("pydantic", "ruamel", "torchvision", "sklearn", "PIL", "safetensors", "tqdm", forbidden=True)
    importlib.import_module("ganflow.models").families()
    ours = {module for module in sys.modules if module.startswith("ganflow.")}
    assert ours
    assert all(module.startswith("ganflow.models") for module in ours)
