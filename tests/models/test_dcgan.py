import pytest
import torch
from tiny import build, tiny


@pytest.mark.parametrize("family", ["dcgan", "cgan", "wgan", "wgan_gp"])
def test_weights_are_drawn_as_in_the_paper(family: str) -> None:
    game = build(family, 3, 32, width=32)
    weights = torch.cat([weight.detach().flatten() for weight in game.parameters() if weight.dim() == 4])
    assert weights.mean() == pytest.approx(0, abs=2e-4)
    assert weights.std() == pytest.approx(0.02, rel=0.01)
    norms = [layer for layer in game.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    scales = torch.cat([layer.weight.detach() for layer in norms])
    assert scales.mean() == pytest.approx(1, abs=0.01)
    assert scales.std() == pytest.approx(0.02, rel=0.3)


def test_keeps_to_the_paper() -> None:
    game = build("dcgan", 3, 32, width=32)
    generator, discriminator = list(game.generator), list(game.discriminator)  # type: ignore[arg-type]
    norms = [isinstance(layer, torch.nn.BatchNorm2d) for layer in generator]
    assert norms.count(True) == 3
    assert not any(norms[-2:]), "none at the output"
    assert isinstance(generator[-1], torch.nn.Tanh)
    assert not any(isinstance(layer, torch.nn.Linear | torch.nn.MaxPool2d) for layer in [*generator, *discriminator])
    assert all(layer.negative_slope == 0.2 for layer in discriminator if isinstance(layer, torch.nn.LeakyReLU))
    assert [type(layer) for layer in generator].count(torch.nn.ReLU) == 3
    assert [type(layer) for layer in discriminator].count(torch.nn.LeakyReLU) == 3
    assert [layer.out_channels for layer in discriminator if isinstance(layer, torch.nn.Conv2d)] == [32, 64, 128, 1]


def test_normalises_the_discriminator_only_when_asked() -> None:
    kinds = {
        norm: [
            type(layer).__name__ for layer in build("dcgan", 1, 32, discriminator_norm=norm).discriminator.children()
        ]
        for norm in ("none", "batch")
    }
    assert "BatchNorm2d" not in kinds["none"]
    assert kinds["batch"].count("BatchNorm2d") == 2
    assert kinds["batch"][:2] == ["Conv2d", "LeakyReLU"], "none at the input"


@pytest.mark.parametrize("penalty", ["r1", "r2"])
def test_batch_norm_and_penalties_of_each_picture_exclude_each_other(penalty: str) -> None:
    with pytest.raises(ValueError, match="discriminator_norm: batch makes a score depend on all pictures"):
        tiny("dcgan", discriminator_norm="batch", **{penalty: 1.0})
