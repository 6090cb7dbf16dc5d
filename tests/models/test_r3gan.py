import math

import pytest
import torch
from tiny import build, check_difference, gradients, gradients_of, lost, pictures, player, turn
from torch import nn
from torch.nn.functional import avg_pool2d

from ganflow.models.penalties import squared_gradient_norm
from ganflow.models.r3gan import _Down, _Residual, _Up

PARAMS = {"gamma": 2.0, "final_gamma": 0.5, "burn_in_images": 1000, "final_rate": 0.25, "final_beta2": 0.99}


def test_the_penalties_are_taken_at_real_and_generated_pictures_in_every_round() -> None:
    batch = pictures(4)
    game = build("r3gan", **PARAMS)
    for rounds in range(3):
        game.rounds = rounds
        outcome = turn(game, "discriminator", batch)
        torch.manual_seed(3)
        made = game.generator(game.draw_inputs(4)).detach().requires_grad_()
        real = batch.images.clone().requires_grad_()
        of_real, of_made = (squared_gradient_norm(game.judge(x, None), x) for x in (real, made))
        assert outcome.values["penalty"].item() == pytest.approx((of_real + of_made).item(), rel=1e-4)  # gamma/2 is 1
        relative = nn.functional.softplus(game.judge(made, None) - game.judge(real, None)).mean()
        assert outcome.loss.item() == pytest.approx((relative + outcome.values["penalty"]).item(), rel=1e-5)


def test_the_penalties_move_the_discriminator() -> None:
    batch = pictures(4)
    light, heavy = (gradients(build("r3gan", gamma=gamma), "discriminator", batch) for gamma in (1.0, 3.0))
    game = build("r3gan")
    torch.manual_seed(3)
    made = game.generator(game.draw_inputs(4)).detach().requires_grad_()
    real = batch.images.clone().requires_grad_()
    both = sum(squared_gradient_norm(game.judge(x, None), x) for x in (real, made))
    assert isinstance(both, torch.Tensor)
    check_difference(heavy, light, gradients_of(both, player(game, "discriminator").network))


@pytest.mark.parametrize(("images", "share"), [(0, 0.0), (250, 0.25), (500, 0.5), (1000, 1.0), (9000, 1.0)])
def test_the_burn_in_goes_along_a_cosine(images: int, share: float) -> None:
    passed = (1 - math.cos(math.pi * share)) / 2  # 0 at first, 1 at last
    game = build("r3gan", **PARAMS)
    for one in game.players:
        assert one.pace is not None
        pace = one.pace(images, 0.9)
        assert pace.rate == pytest.approx(1 + passed * (0.25 - 1))
        assert pace.beta2 == pytest.approx(0.9 + passed * (0.99 - 0.9))
    at_first = turn(game, "discriminator", pictures(4)).values["penalty"].item()
    game.images = images
    now = turn(game, "discriminator", pictures(4)).values["penalty"].item()
    assert now / at_first == pytest.approx((2 + passed * (0.5 - 2)) / 2, rel=1e-5)


def test_the_generators_turn_compares_with_a_batch_of_its_own() -> None:
    one, other = (
        lost(build("r3gan"), "generator", pictures(4)._replace(images=torch.full((4, 1, 8, 8), level)))
        for level in (-1.0, 1.0)
    )
    assert one != other


def test_a_block_begins_as_the_identity_and_has_no_norm() -> None:
    game = build("r3gan", 1, 16)
    assert not any("Norm" in type(layer).__name__ for layer in game.modules())
    features = torch.randn(2, 8, 16, 16)
    block = game.generator.stages[-1]  # type: ignore[index, union-attr]
    assert torch.equal(block(features), features)
    convolutions = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.kernel_size[0], layer.in_channels, layer.out_channels) for layer in convolutions] == [
        (1, 8, 16),
        (3, 16, 16),
        (1, 16, 8),
    ]
    wide = build("r3gan", 1, 16, width=32, max_width=64).generator.stages[0]  # type: ignore[index, union-attr]
    (grouped,) = (layer for layer in wide.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3))
    assert grouped.in_channels // grouped.groups == 16


def test_both_networks_are_mirror_images() -> None:
    game = build("r3gan", 3, 32, width=16, max_width=64)
    sizes = [sum(weight.numel() for weight in network.stages.parameters()) for network in game.children()]  # type: ignore[union-attr]
    assert sizes[0] == sizes[1]
    kinds = [[type(layer).__name__ for layer in network.stages] for network in game.children()]  # type: ignore[union-attr]
    swapped = [{"_Up": "_Down"}.get(kind, kind) for kind in reversed(kinds[0])]
    assert swapped == kinds[1]
    assert kinds[1].count("_Residual") == 8
    assert kinds[1].count("_Down") == 3


def test_resampling_is_bilinear() -> None:
    """The filter [1, 2, 1] keeps a constant picture constant inside, and a slope a slope."""
    rows = torch.arange(8.0)[None, None, :, None].expand(1, 8, 8, 8)
    up, down = _Up(8, 8)(rows), _Down(8, 8)(rows)
    assert up.shape == (1, 8, 16, 16)
    torch.testing.assert_close(up[0, 0, :15, 3], torch.arange(15) / 2)
    assert down.shape == (1, 8, 4, 4)
    torch.testing.assert_close(down[0, 0, 1:, 1], torch.tensor([2.0, 4.0, 6.0]))
    noise = torch.randn(1, 8, 8, 8)
    torch.testing.assert_close(
        _Down(8, 8)(noise)[:, :, 1:, 1:],
        avg_pool2d(avg_pool2d(noise, 2, 1), 2, 1)[:, :, 1::2, 1::2],  # [1, 1] twice is [1, 2, 1]
    )


def test_weights_are_drawn_to_keep_the_variance() -> None:
    game = build("r3gan", 3, 16, latent_dim=512, width=128, max_width=128)
    generator, discriminator = game.generator, game.discriminator
    gain = math.sqrt(2 / (1 + 0.2**2))  # of leaky ReLUs (He et al. 2015)
    blocks = [block for block in game.modules() if isinstance(block, _Residual)]
    assert len(blocks) == 2 * 6, "two at each of 16, 8 and 4 pixels"
    for block in blocks:
        widen, first, grouped, second, narrow = block.layers
        for layer, fan_in in ((widen, 128), (grouped, 16 * 9)):
            assert layer.weight.std().item() == pytest.approx(gain * 6**-0.25 / math.sqrt(fan_in), rel=0.03)
            assert not layer.bias.any()
        assert not narrow.weight.any()
        assert first.negative_slope == second.negative_slope == 0.2
    assert generator.basis.std().item() == pytest.approx(1, rel=0.1)  # type: ignore[operator, union-attr]
    assert generator.linear.weight.std().item() == pytest.approx(512**-0.5, rel=0.03)  # type: ignore[operator, union-attr]
    # A sum over 4 x 4 places keeps the variance of one.
    assert discriminator.basis.std().item() == pytest.approx(1 / 4, rel=0.1)  # type: ignore[operator, union-attr]


def test_pictures_have_no_bound_in_training() -> None:
    """A generator that went too far could not come back, were its pictures cut."""
    game = build("r3gan")
    inputs = (1e3 * game.draw_inputs(4)).requires_grad_()
    made = game.generator(inputs)
    beyond = made.abs() > 1
    assert beyond.any()
    (gradient,) = torch.autograd.grad(made[beyond].sum(), inputs)
    assert gradient.abs().max() > 0
    with torch.no_grad():
        assert game.generator.eval()(inputs).abs().max() == 1
