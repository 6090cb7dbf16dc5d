import pytest
import torch
from tiny import CLASSES, build, pictures, player, tiny


def test_no_classes_no_game() -> None:
    with pytest.raises(ValueError, match=r"model\.family: cgan needs pictures with labels, and this data set has none"):
        tiny("cgan").build(1, 8)


def test_both_players_see_the_label() -> None:
    game = build("cgan").eval()
    inputs = game.draw_inputs(1)
    batch = pictures(1)
    made, scores = [], []
    with torch.no_grad():
        for label in range(CLASSES):
            made.append(game.generator(game.inputs.choose(inputs, {"label": label})))
            scores.append(game.judge(batch.images, torch.tensor([label])).item())
    assert not torch.allclose(made[0], made[1])
    assert len(set(scores)) == CLASSES


def test_generated_pictures_are_of_the_classes_of_the_batch() -> None:
    """A class that is rarer among generated pictures would give them away."""
    game, batch = build("cgan"), pictures(32)
    seen: list[torch.Tensor] = []
    game.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -1]))
    asked: list[torch.Tensor] = []
    game.discriminator.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1]))  # type: ignore[union-attr]
    player(game, "discriminator").play(batch)
    assert torch.equal(seen[0].long(), batch.labels)  # type: ignore[arg-type]
    assert all(torch.equal(labels, batch.labels) for labels in asked)  # type: ignore[arg-type]
    assert len(asked) == 2


def test_the_generators_turn_keeps_the_labels_of_its_pictures() -> None:
    game = build("cgan")
    asked: list[torch.Tensor] = []
    game.discriminator.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1]))  # type: ignore[union-attr]
    first, second = pictures(8), pictures(8)._replace(labels=torch.zeros(8, dtype=torch.int64))
    player(game, "discriminator").play(first)
    player(game, "generator").play(second)  # a batch of its own, but the pictures of before
    assert torch.equal(asked[-1], first.labels)  # type: ignore[arg-type]


def test_a_pair_that_is_compared_has_one_class() -> None:
    """The discriminator learns to compare within classes; across them its scores mean nothing."""
    game = build("cgan", loss="relativistic")
    asked: list[torch.Tensor] = []
    game.discriminator.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1]))  # type: ignore[union-attr]
    first, second = pictures(8), pictures(8)._replace(labels=torch.arange(8) % CLASSES)
    for name, batch in (("discriminator", first), ("generator", second)):
        asked.clear()
        player(game, name).play(batch)
        assert len(asked) == 2
        assert all(torch.equal(labels, batch.labels) for labels in asked)  # type: ignore[arg-type]


def test_a_sheet_has_a_row_for_each_label_and_the_same_latents_in_every_row() -> None:
    game = build("cgan").eval()
    with torch.no_grad():
        sheet = game.sheets(torch.Generator().manual_seed(0))["labels"]
        latents = game.draw_inputs(sheet.columns, torch.Generator().manual_seed(0))
        rows = sheet.images.unflatten(0, (-1, sheet.columns))
        assert len(rows) == CLASSES
        for label, row in enumerate(rows):
            torch.testing.assert_close(row, game.generator(game.inputs.choose(latents, {"label": label})))
