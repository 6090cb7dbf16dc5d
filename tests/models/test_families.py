"""What every family keeps to, whichever files lie in models/."""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ganflow.models
from ganflow.models import families
from ganflow.models.game import Batch, FamilyParams, Game, Player

NAMES = [vars(family)["family"] for family in families()]
SIDES = sorted(base * 2**n for base in (4, 5, 6, 7) for n in range(1, 6) if base * 2**n <= 128)
TINY = {"width": 4, "hidden_units": 4, "latent_dim": 6}


def tiny(name: str, **changes: Any) -> FamilyParams:
    """A family's parameters at its least size."""
    (family,) = (family for family in families() if vars(family)["family"] == name)
    own = {field.name for field in dataclasses.fields(family)}
    return family(**{key: value for key, value in {**TINY, **changes}.items() if key in own})


def build(name: str, channels: int = 1, side: int = 8, **changes: Any) -> Game:
    torch.manual_seed(0)
    return tiny(name, **changes).build(channels, side)


def pictures(n: int, channels: int = 1, side: int = 8) -> Batch:
    rng = torch.Generator().manual_seed(1)
    return Batch(torch.rand(n, channels, side, side, generator=rng) * 2 - 1, None)


def player(game: Game, name: str) -> Player:
    (found,) = (player for player in game.players if player.name == name)
    return found


def lost(game: Game, name: str, batch: Batch) -> Tensor:
    torch.manual_seed(3)
    return player(game, name).play(batch).loss


def test_the_families() -> None:
    assert sorted(NAMES) == NAMES
    assert {"dcgan", "vanilla"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described_and_has_a_default(name: str) -> None:
    (family,) = (family for family in families() if vars(family)["family"] == name)
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
    with torch.no_grad():
        made = game.generator(game.draw_inputs(2))
        logits = game.discriminator(pictures(3, channels, side).images)
    assert made.shape == (2, channels, side, side)
    assert made.abs().max() <= 1
    assert made.std() > 0
    assert logits.shape == (3,)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_range_is_minus_one_to_one_even_for_wild_latents(name: str) -> None:
    game = build(name).eval()
    with torch.no_grad():
        made = game.generator(game.draw_inputs(8) * 1e6)
    assert made.min() >= -1
    assert made.max() <= 1
    assert made.abs().max() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_pictures_in_a_batch_do_not_know_each_other(name: str) -> None:
    game = build(name).eval()
    inputs, reals = game.draw_inputs(4), pictures(4).images
    with torch.no_grad():
        torch.testing.assert_close(game.generator(inputs)[1:2], game.generator(inputs[1:2]))
        torch.testing.assert_close(game.discriminator(reals)[1:2], game.discriminator(reals[1:2]))


@pytest.mark.parametrize("name", NAMES)
def test_the_discriminator_moves_first_and_as_often_as_asked(name: str) -> None:
    assert [(one.name, one.steps) for one in build(name).players] == [("discriminator", 1), ("generator", 1)]
    game = build(name, discriminator_steps=3)
    assert [(one.name, one.steps) for one in game.players] == [("discriminator", 3), ("generator", 1)]
    assert [one.network for one in game.players] == [game.discriminator, game.generator]


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_changes_what_the_generator_descends_and_nothing_else(name: str) -> None:
    batch = pictures(8)
    games = {loss: build(name, loss=loss).eval() for loss in ("minimax", "non_saturating")}  # without dropout
    assert lost(games["minimax"], "generator", batch) < 0 < lost(games["non_saturating"], "generator", batch)
    of_discriminator = [lost(game, "discriminator", batch) for game in games.values()]
    assert of_discriminator[0] == of_discriminator[1]
    # -softplus(l) and softplus(-l) differ by l: the logits of one and the same pictures
    torch.manual_seed(3)
    logits = games["minimax"].discriminator(games["minimax"].generator(games["minimax"].draw_inputs(8)))
    difference = lost(games["non_saturating"], "generator", batch) + lost(games["minimax"], "generator", batch)
    difference += torch.nn.functional.softplus(logits).mean() - torch.nn.functional.softplus(-logits).mean()
    assert difference.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_changes_what_the_generator_sees(name: str) -> None:
    normal = build(name, noise="normal").draw_inputs(500)
    uniform = build(name, noise="uniform").draw_inputs(500)
    assert normal.shape == uniform.shape == (500, 6)
    assert normal.abs().max() > 2
    assert uniform.abs().max() <= 1
    assert uniform.std() == pytest.approx(3**-0.5, abs=0.03)
    game = build(name)
    first, second = (game.draw_inputs(3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("turn", ["discriminator", "generator"])
@pytest.mark.parametrize("name", NAMES)
def test_a_turn_moves_its_own_network_alone(name: str, turn: str) -> None:
    """As the match arranges it: the networks of the other players ask for no gradient."""
    game = build(name)
    for other in game.players:
        other.network.requires_grad_(other.name == turn)
    torch.autograd.backward(player(game, turn).play(pictures(4)).loss)
    for other in game.players:
        gradients = [parameter.grad for parameter in other.network.parameters()]
        if other.name == turn:
            assert all(gradient is not None for gradient in gradients)
            assert any(gradient.abs().max() > 0 for gradient in gradients if gradient is not None)
        else:
            assert gradients == [None] * len(gradients)


@pytest.mark.parametrize("name", NAMES)
def test_the_discriminators_turn_does_not_reach_the_generator(name: str) -> None:
    """The classic mistake: generated pictures that are not detached."""
    game = build(name)
    torch.autograd.backward(player(game, "discriminator").play(pictures(4)).loss)
    assert all(parameter.grad is None for parameter in game.generator.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_values_of_a_turn(name: str) -> None:
    game = build(name).eval()  # without dropout, so that the logits can be had again
    batch = pictures(16)
    torch.manual_seed(3)
    outcome = player(game, "discriminator").play(batch)
    torch.manual_seed(3)
    with torch.no_grad():
        fake = game.discriminator(game.generator(game.draw_inputs(16))).double()
        real = game.discriminator(batch.images).double()
    d_real, d_fake = 1 / (1 + (-real).exp()), 1 / (1 + (-fake).exp())
    expected = {
        "d_real": d_real.mean(),
        "d_fake": d_fake.mean(),
        "batch_accuracy": ((d_real > 0.5).sum() + (d_fake <= 0.5).sum()) / 32,
    }
    assert {key: pytest.approx(value.item(), abs=1e-6) for key, value in outcome.values.items()} == {
        key: value.item() for key, value in expected.items()
    }
    assert not any(value.requires_grad for key, value in outcome.values.items() if key == "batch_accuracy")
    assert outcome.loss.item() == pytest.approx(-(d_real.log().mean() + (1 - d_fake).log().mean()).item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["minimax", "non_saturating"])
@pytest.mark.parametrize("name", NAMES)
def test_each_player_wins_against_one_that_does_not_move(name: str, loss: str) -> None:
    game = build(name, loss=loss)
    batch = Batch(torch.ones(16, 1, 8, 8), None)
    for turn in ("discriminator", "generator"):
        for other in game.players:
            other.network.requires_grad_(other.name == turn)
        optimizer = torch.optim.Adam(player(game, turn).network.parameters(), lr=5e-3)
        losses = []
        for _ in range(40):
            outcome = player(game, turn).play(batch)
            optimizer.zero_grad()
            torch.autograd.backward(outcome.loss)
            optimizer.step()
            losses.append(outcome.loss.item())
        assert sum(losses[-5:]) < sum(losses[:5])


def test_dcgan_keeps_to_the_paper() -> None:
    game = build("dcgan", 3, 32, width=32)
    generator, discriminator = list(game.generator), list(game.discriminator)  # type: ignore[arg-type]
    norms = [isinstance(layer, torch.nn.BatchNorm2d) for layer in generator]
    assert norms.count(True) == 3
    assert not any(norms[-2:]), "none at the output"
    assert isinstance(generator[-1], torch.nn.Tanh)
    assert not any(isinstance(layer, torch.nn.Linear | torch.nn.MaxPool2d) for layer in [*generator, *discriminator])
    assert all(layer.negative_slope == 0.2 for layer in discriminator if isinstance(layer, torch.nn.LeakyReLU))
    weights = torch.cat([weight.detach().flatten() for weight in game.parameters() if weight.dim() == 4])
    assert weights.mean() == pytest.approx(0, abs=2e-4)
    assert weights.std() == pytest.approx(0.02, rel=0.01)
    assert [layer.out_channels for layer in discriminator if isinstance(layer, torch.nn.Conv2d)] == [32, 64, 128, 1]


def test_dcgan_normalises_the_discriminator_only_when_asked() -> None:
    kinds = {
        norm: [
            type(layer).__name__ for layer in build("dcgan", 1, 32, discriminator_norm=norm).discriminator.children()
        ]
        for norm in ("none", "batch")
    }
    assert "BatchNorm2d" not in kinds["none"]
    assert kinds["batch"].count("BatchNorm2d") == 2
    assert kinds["batch"][:2] == ["Conv2d", "LeakyReLU"], "none at the input"


def test_vanilla_keeps_to_the_tutorial() -> None:
    game = build("vanilla", 1, 28, hidden_units=8, dropout=0.25)
    widths = {
        side: [layer.out_features for layer in network.children() if isinstance(layer, torch.nn.Linear)]
        for side, network in (("G", game.generator), ("D", game.discriminator))
    }
    assert widths == {"G": [8, 16, 32, 784], "D": [32, 16, 8, 1]}
    dropped = [layer.p for layer in game.discriminator.children() if isinstance(layer, torch.nn.Dropout)]
    assert dropped == [0.25] * 3


# Families and layers by their files alone

NEW_FAMILY = """
from dataclasses import dataclass
from typing import Literal
from ganflow.models.game import option
from ganflow.models.two_player import TwoPlayerGame, TwoPlayerParams

@dataclass(frozen=True, kw_only=True)
class NewParams(TwoPlayerParams):
    family: Literal["newcomer"] = option("newcomer", "Kind of GAN.")
    depth: int = option(2, "How deep.", ge=1)

    def build(self, channels: int, resolution: int) -> TwoPlayerGame:
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
    with pytest.raises(Exception, match="must be one of dcgan, newcomer, vanilla"):
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


@pytest.mark.parametrize("name", ["dcgan", "vanilla"])
def test_the_generator_answers_for_the_pictures_that_the_discriminator_saw(name: str) -> None:
    game = build(name, dropout=0.0)
    made = []
    game.generator.register_forward_hook(lambda _network, _inputs, output: made.append(output))
    lost(game, "discriminator", pictures(4))
    loss = player(game, "generator").play(pictures(4)).loss
    assert len(made) == 1
    expected = torch.nn.functional.softplus(-game.discriminator(made[0])).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.autograd.backward(loss)
    assert all(parameter.grad is not None for parameter in game.generator.parameters())
    player(game, "generator").play(pictures(4))
    assert len(made) == 2  # pictures serve one step of the generator, which then has moved
