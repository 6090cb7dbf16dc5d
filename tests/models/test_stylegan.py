import math
from typing import Any

import pytest
import torch
from tiny import build, check_difference, gradients, gradients_of, lost, pictures, player, turn
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ganflow.models.penalties import squared_gradient_norm
from ganflow.models.stylegan import _Convolution, _doubled, _Halving, _Linear, _StyledConvolution, _UnitVariance


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


def test_noise_is_of_a_pixel_of_a_picture_and_the_same_in_every_channel() -> None:
    layer = _StyledConvolution(5, 3, 4, 8)
    with torch.no_grad():
        layer.strength.fill_(0.5)
        layer.weight.zero_()
        made = layer(torch.randn(200, 3, 8, 8), torch.randn(200, 5))
    assert torch.equal(made[:, :1].expand_as(made), made)
    noise = torch.where(made[:, 0] > 0, made[:, 0], 5 * made[:, 0]) / math.sqrt(2)
    assert noise.std(dim=0).mean().item() == pytest.approx(0.5, rel=0.05), "over the pictures"
    assert noise.std(dim=(1, 2)).mean().item() == pytest.approx(0.5, rel=0.05), "over the pixels"


def test_every_layer_takes_its_style() -> None:
    generator = build("stylegan", 1, 16).generator.eval()
    with torch.no_grad():
        styles = torch.randn(1, generator.layers, 5)  # type: ignore[call-overload]
        made = generator.synthesis(styles)  # type: ignore[operator]
        for layer in range(generator.layers):  # type: ignore[call-overload, arg-type]
            other = styles.clone()
            other[:, layer] = torch.randn(1, 5)
            assert not torch.allclose(generator.synthesis(other), made)  # type: ignore[operator]


def test_scales_begin_at_one() -> None:
    assert torch.equal(_StyledConvolution(5, 3, 4, 8).scale(torch.zeros(1, 5)), torch.ones(1, 3))


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_linear_layers_keep_the_variance_and_learn_at_their_rate(rate: float) -> None:
    torch.manual_seed(0)
    layer = _Linear(256, 256, bias=0.5, rate=rate)

    def effective() -> tuple[Tensor, Tensor]:
        bias = layer(torch.zeros(1, 256))[0].detach()
        return layer(torch.eye(256)).detach() - bias, bias

    weight, bias = effective()
    assert weight.std().item() == pytest.approx(1 / 16, rel=0.02)
    torch.testing.assert_close(bias, torch.full((256,), 0.5))
    step_by_adam(layer, layer(torch.randn(8, 256)))
    after = effective()
    assert (after[0] - weight).abs().median().item() == pytest.approx(0.1 * rate / 16, rel=1e-2)
    assert (after[1] - bias).abs().median().item() == pytest.approx(0.1 * rate, rel=1e-2)


def test_convolutions_keep_the_variance_and_learn_alike() -> None:
    torch.manual_seed(0)
    layer = _Convolution(64, 64, 3)
    assert layer(torch.randn(500, 64, 3, 3))[:, :, 1, 1].std().item() == pytest.approx(1, rel=0.05)
    pixel = _Convolution(64, 8, 1)
    impulses = torch.eye(64)[:, :, None, None]
    before = pixel(impulses).detach()
    step_by_adam(pixel, pixel(torch.randn(8, 64, 2, 2)))
    moved = pixel(impulses) - pixel.bias[:, None, None] - before
    assert moved.abs().median().item() == pytest.approx(0.1 / 8, rel=1e-2)


def step_by_adam(layer: nn.Module, outputs: Tensor) -> None:
    """Descend once at a rate of 0.1; Adam's first step is the rate, whatever the gradient."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    torch.autograd.backward((outputs * torch.randn_like(outputs)).sum())
    optimizer.step()


def test_the_mapping_learns_a_hundred_times_more_slowly() -> None:
    mapping = build("stylegan", mapping_layers=3).generator.mapping
    assert [layer.rate for layer in mapping.modules() if isinstance(layer, _Linear)] == [0.01] * 3  # type: ignore[union-attr]


def test_latents_are_brought_to_unit_variance() -> None:
    latents = torch.randn(4, 6)
    found = _UnitVariance()(latents)
    torch.testing.assert_close(found, latents / latents.square().mean(dim=1, keepdim=True).sqrt())


def test_features_are_doubled_bilinearly() -> None:
    rows = torch.arange(4.0)[None, None, :, None].expand(1, 2, 4, 4)
    torch.testing.assert_close(_doubled(rows)[0, 0, 1:7, 3], torch.arange(6) / 2 + 0.25)


def test_a_halving_is_the_sum_of_two_ways_over_the_root_of_two() -> None:
    layer, features = _Halving(2, 3), torch.randn(4, 2, 8, 8)
    pixels = features.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    with torch.no_grad():
        layer.second[0].weight.zero_()
        torch.testing.assert_close(layer(features), layer.beside(pixels) / math.sqrt(2))
        layer.beside.weight.zero_()
        layer.second[0].bias.fill_(1.0)
        torch.testing.assert_close(layer(features), torch.ones(4, 3, 4, 4))  # sqrt(2) of the leaky ReLU over sqrt(2)


def test_pictures_have_no_bound_in_training() -> None:
    """A generator that went too far could not come back, were its pictures cut."""
    game = build("stylegan")
    with torch.no_grad():
        for layer in game.generator.synthesis.to_pixels:  # type: ignore[union-attr]
            layer.convolution.weight.mul_(100)
    made = game.generator(game.draw_inputs(4))
    beyond = made.abs() > 1
    assert beyond.any()
    found = gradients_of(made[beyond].sum(), game.generator)
    assert any(bool(gradient.any()) for gradient in found)
    with torch.no_grad():
        assert game.generator.eval()(game.draw_inputs(4)).abs().max() == 1


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


def test_pictures_and_path_lengths_are_of_mixed_styles() -> None:
    game = build("stylegan", 1, 16, style_mixing=1.0)
    calls = []
    styles = game.generator.styles

    def remember(*arguments: Tensor) -> Tensor:
        calls.append(arguments)
        made: Tensor = styles(*arguments)  # type: ignore[operator]
        return made

    game.generator.styles = remember  # type: ignore[assignment]
    for name in ("discriminator", "generator"):
        turn(game, name, pictures(32, side=16))
    assert [len(first) for first, _, _ in calls] == [32, 16], "the second for path lengths"
    for first, second, crossover in calls:
        assert not torch.equal(first[:, :-1], second[:, :-1])
        assert len(crossover.unique()) > 1


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


def test_r1_moves_the_discriminator() -> None:
    batch, found = pictures(4), []
    for rounds in (0, 1):
        game = build("stylegan", r1=3.0, r1_every=4)
        game.rounds = rounds
        found.append(gradients(game, "discriminator", batch))
    real = batch.images.clone().requires_grad_()
    expected = 4 * 3.0 / 2 * squared_gradient_norm(game.judge(real, None), real)
    check_difference(*found, gradients_of(expected, player(game, "discriminator").network))


def test_path_lengths_move_the_generator() -> None:
    batch, found, states = pictures(8), [], []
    for rounds in (0, 1):
        game = build("stylegan", path_length=2.0, path_length_every=4)
        game.rounds = rounds
        measure = game._path_lengths

        def remember(n: int, measure: Any = measure) -> Tensor:
            states.append(torch.get_rng_state())
            made: Tensor = measure(n)
            return made

        game._path_lengths = remember  # type: ignore[assignment]
        found.append(gradients(game, "generator", batch))
    game = build("stylegan")
    (state,) = states
    torch.set_rng_state(state)
    lengths = game._path_lengths(4)  # type: ignore[operator]
    expected = 4 * 2.0 * (lengths - 0.01 * lengths.mean().item()).square().mean()
    check_difference(*found, gradients_of(expected, player(game, "generator").network))


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
