import math

import pytest
import torch
from tiny import build, lost, pictures, turn
from torch import Tensor
from torch.nn.functional import conv2d

from ganflow.models.penalties import squared_gradient_norm
from ganflow.models.stylegan import _StyledConvolution


def test_modulating_features_is_modulating_and_demodulating_weights() -> None:
    """Against the paper's equations 1 and 3, a convolution with weights of its own for each picture."""
    torch.manual_seed(0)
    layer = _StyledConvolution(5, 3, 4, 8).eval()
    with torch.no_grad():
        layer.strength.fill_(0.7)
        layer.bias.normal_()
        features, style = torch.randn(2, 3, 8, 8), torch.randn(2, 5)
        expected = []
        for own, of in zip(features, style, strict=True):
            scale = layer.scale(of[None])[0]
            weight = layer.weight / math.sqrt(27) * scale[None, :, None, None]
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
            convolved = conv2d(own[None], weight, padding=1) + 0.7 * layer.noise + layer.bias
            expected.append(torch.where(convolved > 0, convolved, 0.2 * convolved) * math.sqrt(2))
        torch.testing.assert_close(layer(features, style), torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_noise_is_fresh_in_training_and_fixed_in_eval_mode() -> None:
    layer = _StyledConvolution(5, 3, 4, 8)
    with torch.no_grad():
        layer.strength.fill_(1.0)
    features, style = torch.randn(1, 3, 8, 8), torch.randn(1, 5)
    assert not torch.equal(layer(features, style), layer(features, style))
    layer.eval()
    assert torch.equal(layer(features, style), layer(features, style))


def test_mapping_forgets_the_length_of_a_latent() -> None:
    mapping = build("stylegan").generator.mapping
    latents = torch.randn(4, 6)
    torch.testing.assert_close(mapping(latents), mapping(7 * latents))  # type: ignore[operator]


def test_styles_cross_over_from_a_layer_on() -> None:
    generator = build("stylegan", 1, 16).generator.eval()
    first, second = torch.randn(3, 7), torch.randn(3, 7)
    first[:, -1] = second[:, -1] = 1
    own, other = (generator.styles(inputs) for inputs in (first, second))  # type: ignore[operator]
    assert own.shape == (3, 6, 5)
    assert torch.equal(own, own[:, :1].expand_as(own))
    mixed = generator.styles(first, second, torch.tensor([1, 4, 6]))  # type: ignore[operator]
    for picture, crossover in enumerate((1, 4, 6)):
        assert torch.equal(mixed[picture, :crossover], own[picture, :crossover])
        assert torch.equal(mixed[picture, crossover:], other[picture, crossover:])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.9, 0.9), (1.0, 1.0)])
def test_a_share_of_the_pictures_is_mixed(share: float, expected: float) -> None:
    game = build("stylegan", 1, 16, style_mixing=share)
    _, _, crossover = game._draw_mixed(4000)  # type: ignore[operator]
    assert crossover.min() >= 1
    mixed = (crossover < 6).float().mean().item()
    assert mixed == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 4000))


def test_truncation_draws_styles_towards_the_average_one() -> None:
    game = build("stylegan").eval()
    generator = game.generator
    with torch.no_grad():
        generator.average_style.normal_()  # type: ignore[operator, union-attr]
        inputs = game.draw_inputs(4)
        styles = {psi: generator.styles(game.inputs.choose(inputs, {"truncation": psi})) for psi in (0.0, 0.5, 1.0)}  # type: ignore[operator]
        average = generator.average_style
        torch.testing.assert_close(styles[0.0], average.expand_as(styles[0.0]))  # type: ignore[operator, union-attr]
        torch.testing.assert_close(styles[0.5], (average + styles[1.0]) / 2)  # type: ignore[operator]
        made = generator(game.inputs.choose(inputs, {"truncation": 0.0}))
    torch.testing.assert_close(made, made[:1].expand_as(made))


def test_the_average_style_follows_in_training_alone() -> None:
    generator = build("stylegan").generator
    inputs = torch.randn(8, 7)
    with torch.no_grad():
        mean = generator.mapping(inputs[:, :-1]).mean(dim=0)  # type: ignore[operator]
    generator(inputs)
    torch.testing.assert_close(generator.average_style, 0.005 * mean)  # type: ignore[arg-type]
    generator.eval()(inputs)
    torch.testing.assert_close(generator.average_style, 0.005 * mean)  # type: ignore[arg-type]


def test_r1_comes_every_so_many_rounds_and_as_much_the_heavier() -> None:
    batch = pictures(4)
    losses = {}
    for rounds in (0, 1, 3, 4):
        game = build("stylegan", r1=3.0, r1_every=4)
        game.rounds = rounds
        losses[rounds] = lost(game, "discriminator", batch).item()
    assert losses[1] == losses[3]
    game = build("stylegan")
    real = batch.images.clone().requires_grad_()
    penalty = 4 * 3.0 / 2 * squared_gradient_norm(game.judge(real, None), real).item()
    assert losses[0] - losses[1] == pytest.approx(penalty, rel=1e-3)
    assert losses[4] == losses[0]


def test_path_lengths_come_every_so_many_rounds() -> None:
    game = build("stylegan", path_length_every=3)
    found = []
    for rounds in range(4):
        game.rounds = rounds
        found.append("path_length" in turn(game, "generator", pictures(4)).values)
    assert found == [True, False, False, True]


def test_the_path_length_penalty_is_the_squared_distance_from_the_running_mean() -> None:
    game = build("stylegan", path_length=2.0, path_length_every=4)
    lengths: list[Tensor] = []
    measure = game._path_lengths  # type: ignore[union-attr]

    def remember(n: int) -> Tensor:
        lengths.append(measure(n))  # type: ignore[operator]
        return lengths[-1]

    game._path_lengths = remember  # type: ignore[assignment]
    with_penalty = turn(game, "generator", pictures(8)).loss.item()
    game.rounds = 1
    without = lost(game, "generator", pictures(8)).item()
    (own,) = lengths
    assert len(own) == 4  # half a batch
    mean = 0.01 * own.mean()
    assert game.path_mean.item() == pytest.approx(mean.item(), rel=1e-5)  # type: ignore[operator, union-attr]
    assert with_penalty - without == pytest.approx(4 * 2.0 * (own - mean).square().mean().item(), rel=1e-2)


def test_the_sheet_of_mixed_styles() -> None:
    """The first row and column are the sources; a picture in between has its row's coarse layers."""
    game = build("stylegan", 1, 16).eval()
    with torch.no_grad():
        sheet = game.sheets(torch.Generator().manual_seed(0))["style_mixing"]
        side = sheet.columns
        rng = torch.Generator().manual_seed(0)
        rows, columns = game.draw_inputs(side - 1, rng), game.draw_inputs(side - 1, rng)
        table = sheet.images.unflatten(0, (side, side))
        torch.testing.assert_close(table[1:, 0], game.generator(rows))
        torch.testing.assert_close(table[0, 1:], game.generator(columns))
        crossover = torch.tensor([2])
        torch.testing.assert_close(table[3, 5], game.generator(rows[2:3], columns[4:5], crossover)[0])


def test_the_sheet_of_truncations_begins_with_the_average_picture() -> None:
    game = build("stylegan").eval()
    with torch.no_grad():
        sheet = game.sheets(torch.Generator().manual_seed(0))["truncation"]
    rows = sheet.images.unflatten(0, (-1, sheet.columns))
    torch.testing.assert_close(rows[0], rows[0][:1].expand_as(rows[0]))
    spread = [row.std(dim=0).mean().item() for row in rows]
    assert spread == sorted(spread)
