from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ganflow.data.packed import PackedData
from ganflow.evaluation.discriminator import best_threshold, score_discriminator
from ganflow.evaluation.opponents import score_opponents
from ganflow.evaluation.sampling import generate
from ganflow.models.game import Game, Scale
from ganflow.models.inputs import LABEL, Control, InputSpec
from ganflow.params import parse

N = 30  # of 40 test pictures, 60 to train on


class Gray(nn.Module):
    """Gives pictures of two grays, left and right: the latents, which are uniform in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight * inputs[:, :2].repeat_interleave(4, dim=1)[:, None, None].expand(-1, 1, 8, 8)


class Brightness(Game):
    """Scores a picture by its mean, far above 0, and notes all that it was asked."""

    def __init__(self, scale: Scale, classes: int = 0) -> None:
        super().__init__()
        controls = (Control(name=LABEL, least=0, most=classes - 1),) if classes else ()
        self.scale, self.inputs = scale, InputSpec("uniform", 2, controls)
        self.generator, self.discriminator = Gray(), nn.Flatten()
        self.judged: list[tuple[Tensor, Tensor | None]] = []

    @property
    def players(self) -> tuple[()]:
        return ()

    def judge(self, images: Tensor, labels: Tensor | None) -> Tensor:
        self.judged.append((images, labels))
        return images.mean(dim=(1, 2, 3)) + 100

    def seen(self, part: int) -> Tensor:
        """Give the `part`-th quarter, or half, of what was judged, in the order in which it was."""
        return torch.cat([images for images, _ in self.judged]).split(N)[part]


def means(images: np.ndarray) -> Tensor:
    return (torch.from_numpy(np.array(images)).double() / 127.5 - 1).mean(dim=(1, 2, 3)) + 100


@pytest.mark.parametrize("scale", ["log_odds", "signed"])
def test_scores_with_a_zero_of_their_own_are_divided_there(packed: PackedData, scale: Scale) -> None:
    game = Brightness(scale)

    scored = score_opponents(game, packed, "test", N, 7)

    assert scored.threshold == 0
    assert (scored.accuracy_real, scored.accuracy_fake) == (1, 0), "all are above 0"
    assert (scored.calibration_error is not None) == (scale == "log_odds")
    assert sum(len(images) for images, _ in game.judged) == 2 * N
    torch.testing.assert_close(game.seen(0).mean(dim=(1, 2, 3)).double() + 100, means(packed.images("test")[:N]))


def test_scores_that_only_compare_are_divided_where_training_pictures_say(packed: PackedData) -> None:
    game = Brightness("relative")

    scored = score_opponents(game, packed, "test", N, 7)

    fitted_real, fitted_fake, real, fake = (game.seen(part).mean(dim=(1, 2, 3)) + 100 for part in range(4))
    torch.testing.assert_close(fitted_real.double(), means(packed.images("train")[:N]))
    torch.testing.assert_close(real.double(), means(packed.images("test")[:N]))
    threshold = best_threshold(fitted_real, fitted_fake)
    assert scored == score_discriminator(real, fake, threshold=threshold, log_odds=False)
    assert scored.threshold == threshold != best_threshold(real, fake)
    assert 99 < scored.threshold < 101
    assert scored.accuracy > 0.5
    pictures = [{tuple(picture.flatten().tolist()) for picture in game.seen(part)} for part in (1, 3)]
    assert [len(of) for of in pictures] == [N, N]
    assert not pictures[0] & pictures[1], "no picture that it is judged by was fitted on"


def test_pictures_are_other_ones_than_those_of_the_fid(packed: PackedData) -> None:
    game = Brightness("relative")
    score_opponents(game, packed, "test", N, 7)
    of_fid = torch.cat(list(generate(game, N, N, seed=0)))[:, 0, 0, 0].float() / 127.5 - 1

    for part in (1, 3):
        made = game.seen(part)[:, 0, 0, 0]
        assert not torch.allclose(made, of_fid, atol=0.01)


def test_the_same_pictures_whatever_the_batch(packed: PackedData) -> None:
    assert score_opponents(Brightness("relative"), packed, "test", N, 7) == score_opponents(
        Brightness("relative"), packed, "test", N, N
    )


@pytest.mark.parametrize("scale", get_args(Scale))
def test_the_discriminator_is_told_the_classes(packed: PackedData, scale: Scale) -> None:
    """Of real pictures those they have, of generated ones those that were asked for."""
    game = Brightness(scale, classes=2)
    seeds = (3, 1) if scale == "relative" else (1,)
    asked = [game.draw_inputs(1000, torch.Generator().manual_seed(seed))[:N] for seed in seeds]

    score_opponents(game, packed, "test", N, 7)

    told = list(torch.cat([labels for _, labels in game.judged if labels is not None]).split(N))
    splits = ("train", "test")[-len(asked) :]
    assert len(told) == 2 * len(asked)
    for part, (split, inputs) in enumerate(zip(splits, asked, strict=True)):
        assert told[2 * part].tolist() == packed.labels(split)[:N].tolist()  # type: ignore[index, arg-type]
        assert told[2 * part + 1].tolist() == inputs[:, -1].tolist()
        torch.testing.assert_close(game.seen(2 * part + 1)[:, 0, 0, 0], inputs[:, 0], rtol=0, atol=0.01)
    assert set(told[-1].tolist()) == {0, 1}


def test_without_labels_nothing_is_told(packed: PackedData) -> None:
    """A data set that has classes tells them; a generator that takes none has none to tell."""
    game = Brightness("signed")
    score_opponents(game, packed, "test", N, N)
    (_, of_real), (_, of_fake) = game.judged
    assert of_real is not None
    assert of_fake is None


def test_a_family_without_discriminator(packed: PackedData) -> None:
    game = parse({"model": {"family": "vae", "width": 4, "latent_dim": 4}}).model.build(1, 8)
    with pytest.raises(ValueError, match="a variational autoencoder has no discriminator"):
        score_opponents(game, packed, "test", N, N)
