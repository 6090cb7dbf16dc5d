from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pixel_fid import fid, quarters
from torch import Tensor, nn

from ganflow.data.images import Images
from ganflow.data.packed import PackedData
from ganflow.data.quantise import to_uint8
from ganflow.errors import UserError
from ganflow.evaluation import validation
from ganflow.evaluation.extractor import Extractor
from ganflow.evaluation.sampling import BrokenGeneratorError
from ganflow.evaluation.validation import ValidationFid
from ganflow.models.game import Game
from ganflow.params import parse


def build(seed: int = 0) -> Game:
    torch.manual_seed(seed)
    return parse({"model": {"family": "dcgan", "width": 4, "latent_dim": 16}}).model.build(1, 8)


def made_by(generator: nn.Module, n: int) -> NDArray[np.uint8]:
    """The pictures of the latents that every validation takes."""
    latents = torch.randn(1000, 16, generator=torch.Generator().manual_seed(2))[:n]
    with torch.no_grad():
        return to_uint8(generator.eval()(latents)).numpy()


def test_it_is_the_fid_against_the_whole_validation_split(packed: PackedData, pixel_extractor: Extractor) -> None:
    game, averaged = build(0), build(1).generator

    found = ValidationFid(packed, pixel_extractor).of(game, averaged)

    reals = quarters(packed.images("validation")[:])
    assert found == pytest.approx(fid(quarters(made_by(averaged, 1000)), reals), rel=1e-4)
    assert found != pytest.approx(fid(quarters(made_by(game.generator, 1000)), reals), rel=1e-2)


def test_as_many_are_made_as_there_are_reals_but_a_thousand_at_least(
    packed: PackedData, pixel_extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = build()
    for least, most, fakes, reals in ((5, 10_000, 20, 20), (5, 12, 12, 12), (25, 12, 25, 12)):
        monkeypatch.setattr(validation, "_LEAST_FAKES", least)
        monkeypatch.setattr(validation, "_MOST_REALS", most)
        expected = fid(quarters(made_by(game.generator, fakes)), quarters(packed.images("validation")[:reals]))
        assert ValidationFid(packed, pixel_extractor).of(game, game.generator) == pytest.approx(expected, rel=1e-4)


def test_the_reals_are_embedded_once_and_ahead(packed: PackedData, pixel_extractor: Extractor) -> None:
    shown: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(pixel_extractor, name)

        def features(self, images: Tensor) -> Tensor:
            shown.append(len(images))
            return pixel_extractor.features(images)

    score, game = ValidationFid(packed, Counting()).of, build()
    assert sum(shown) == 20
    first = score(game, game.generator)
    assert sum(shown) == 1020
    assert score(game, game.generator) == first, "from the same latents every time"
    assert sum(shown) == 2020
    assert max(shown) <= 250


def test_protocol_says_what_is_measured(packed: PackedData, pixel_extractor: Extractor) -> None:
    assert ValidationFid(packed, pixel_extractor).protocol == {
        "extractor": "pixels",
        "extractor_digest": "sha256:pixels",
        "split": "validation",
        "reals": 20,
        "fakes": 1000,
    }


def test_looking_leaves_no_trace(packed: PackedData, pixel_extractor: Extractor) -> None:
    game, averaged = build(0).train(), build(1).generator.eval()
    averaged.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in (*game.state_dict().items(), *averaged.state_dict().items())}
    state = torch.get_rng_state()

    ValidationFid(packed, pixel_extractor).of(game, averaged)

    assert torch.equal(torch.get_rng_state(), state)
    assert game.training
    assert all(module.training for module in game.modules())
    after = {**game.state_dict(), **averaged.state_dict()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert not any(parameter.grad is not None for parameter in game.parameters())


def test_a_broken_generator(packed: PackedData, pixel_extractor: Extractor) -> None:
    game = build()
    with torch.no_grad():
        next(game.generator.parameters()).fill_(torch.nan)

    with pytest.raises(BrokenGeneratorError):
        ValidationFid(packed, pixel_extractor).of(game, game.generator)


def test_a_split_too_small(tmp_path: Path, write_packed: Callable[..., PackedData], pixel_extractor: Extractor) -> None:
    packed = write_packed(tmp_path)

    class Small:
        folder, card = packed.folder, packed.card

        def images(self, split: str) -> Images:
            assert split == "validation"
            return Images([packed.images("validation")[:1]])

    with pytest.raises(
        UserError, match=r"train\.fid_every_images: .* not 1; raise data\.validation_fraction, or .*fid_every_images: 0"
    ):
        ValidationFid(Small(), pixel_extractor)  # type: ignore[arg-type]
