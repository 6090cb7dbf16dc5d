import torch
from tiny import build


def test_keeps_to_the_tutorial() -> None:
    game = build("vanilla", 1, 28, hidden_units=8, dropout=0.25)
    widths = {
        side: [layer.out_features for layer in network.children() if isinstance(layer, torch.nn.Linear)]
        for side, network in (("G", game.generator), ("D", game.discriminator))
    }
    assert widths == {"G": [8, 16, 32, 784], "D": [32, 16, 8, 1]}
    dropped = [layer.p for layer in game.discriminator.children() if isinstance(layer, torch.nn.Dropout)]
    assert dropped == [0.25] * 3
    leaks = [layer.negative_slope for layer in game.modules() if isinstance(layer, torch.nn.LeakyReLU)]
    assert leaks == [0.2] * 6
