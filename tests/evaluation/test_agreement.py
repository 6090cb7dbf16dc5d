import pytest
import torch
from torch import Tensor, nn

from ganflow.evaluation.agreement import label_agreement
from ganflow.evaluation.sampling import BrokenGeneratorError
from ganflow.models.game import Game
from ganflow.models.inputs import LABEL, Control, InputSpec
from ganflow.params import parse

CLASSES = 5


class Obedient(nn.Module):
    """Makes pictures as bright as their class is high; it does not know the classes from `knows` on, and makes 0."""

    def __init__(self, knows: int) -> None:
        super().__init__()
        self.knows = knows
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        labels = torch.where(inputs[:, -1] < self.knows, inputs[:, -1], 0.0)
        return (labels * 0.4 - 0.9 + self.shift)[:, None, None, None].expand(-1, 1, 8, 8)


class Toy(Game):
    def __init__(self, knows: int) -> None:
        super().__init__()
        self.generator, self.discriminator = Obedient(knows), None
        self.inputs = InputSpec("normal", 3, (Control(name=LABEL, least=0, most=CLASSES - 1),))

    @property
    def players(self) -> tuple[()]:
        return ()


def by_brightness(images: Tensor) -> Tensor:
    """Read the class of such a picture, as logits."""
    assert images.dtype == torch.uint8
    levels = torch.arange(CLASSES) * 0.4 - 0.9
    return -(images.float().mean(dim=(1, 2, 3))[:, None] / 127.5 - 1 - levels).abs()


@pytest.mark.parametrize("batch_size", [7, 1000])
@pytest.mark.parametrize("knows", [0, 3, CLASSES])
def test_it_is_the_share_of_pictures_that_are_what_was_asked(knows: int, batch_size: int) -> None:
    n = 400
    asked = Toy(knows).draw_inputs(1000, torch.Generator().manual_seed(2))[:n, -1]
    expected = float(((asked < knows) | (asked == 0)).float().mean())

    found = label_agreement(Toy(knows), by_brightness, n, batch_size, seed=2)

    assert found == pytest.approx(expected)
    assert {0: 0.1, 3: 0.5, CLASSES: 0.999}[knows] < expected <= {0: 0.3, 3: 0.7, CLASSES: 1.0}[knows]


def test_every_class_is_asked_for_as_often() -> None:
    asked = Toy(0).draw_inputs(10_000, torch.Generator().manual_seed(0))[:, -1].long()
    shares = torch.bincount(asked, minlength=CLASSES) / len(asked)
    torch.testing.assert_close(shares, torch.full((CLASSES,), 1 / CLASSES), rtol=0, atol=0.02)  # 5 deviations


def test_a_generator_that_takes_no_labels_has_none() -> None:
    game = parse({"model": {"family": "dcgan", "width": 4, "latent_dim": 4}}).model.build(1, 8)
    assert label_agreement(game, by_brightness, 10, 10, seed=0) is None


def test_a_broken_generator() -> None:
    game = Toy(CLASSES)
    with torch.no_grad():
        game.generator.shift.fill_(float("nan"))
    with pytest.raises(BrokenGeneratorError):
        label_agreement(game, by_brightness, 10, 10, seed=0)
