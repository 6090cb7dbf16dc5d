import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganflow import cli, params
from ganflow.errors import UserError
from ganflow.stages.sample import sample, sample_registered
from ganflow.training.weights import DISCRIMINATOR, GENERATORS, Origin, load_game, read_origin, save_weights


@pytest.fixture(params=[1, 3])
def trained(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Weights as a training leaves them, of gray and of colour pictures."""
    loaded = params.parse({"model": {"family": "vanilla", "hidden_units": 8, "latent_dim": 4}})
    game = loaded.model.build(request.param, 8)
    origin = Origin(loaded, request.param, 8, 0)
    for name in GENERATORS.values():
        save_weights(game.generator, tmp_path / name, origin)
    save_weights(game.discriminator, tmp_path / DISCRIMINATOR, origin)
    return tmp_path


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def test_single_pictures_are_the_generators_for_these_latents(trained: Path, tmp_path: Path) -> None:
    sample(trained, "cpu", 3, 7, tmp_path / "out", single=True)
    game = load_game(trained, "ema", torch.device("cpu"))
    with torch.no_grad():
        made = game.generator(torch.randn(1000, 4, generator=torch.Generator().manual_seed(7))[:3])
    expected = (made * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).squeeze(-1).numpy()
    assert np.array_equal(np.stack(pictures(tmp_path / "out")), expected)


def test_grid_holds_all_pictures_and_follows_from_the_seed(trained: Path, tmp_path: Path) -> None:
    for name, seed in {"a": 1, "again": 1, "b": 2}.items():
        sample(trained, "cpu", 5, seed, tmp_path / f"{name}.png", single=False)
    with Image.open(tmp_path / "a.png") as grid:
        width, height = grid.size
    assert width > height  # three columns, two rows
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_the_first_pictures_do_not_depend_on_how_many(trained: Path, tmp_path: Path) -> None:
    for n in (2, 5):
        sample(trained, "cpu", n, 7, tmp_path / str(n), single=True)
    for name in ("000000.png", "000001.png"):
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "5" / name).read_bytes()


@pytest.mark.parametrize(("n", "seed", "said"), [(0, 0, "-n 0"), (-1, 0, "-n -1"), (1, -1, "--seed -1")])
def test_numbers_that_cannot_be(trained: Path, tmp_path: Path, n: int, seed: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        sample(trained, "cpu", n, seed, tmp_path / "out.png", single=False)


def test_place_that_cannot_be_written(trained: Path) -> None:
    with pytest.raises(UserError, match=r"--out .*cannot be written"):
        sample(trained, "cpu", 1, 0, trained / DISCRIMINATOR / "out.png", single=False)


def test_uri_that_names_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="models:/digits-16px@champion"):
        sample_registered("digits", 1, 0, tmp_path / "out.png", single=False)


def test_command_takes_parameters(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "params.yaml").write_text("model: {family: vanilla}\n", encoding="utf-8")
    assert cli.main(["sample", "-S", "train.device=gpu"]) == 2
    assert "train.device" in capsys.readouterr().err
    assert cli.main(["sample", "-n", "1"]) == 2
    assert "run `ganflow train` first" in capsys.readouterr().err


def test_command_samples_the_checkpoint_that_is_measured(
    repository: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "params.yaml").write_text("model: {family: vanilla}\ntrain: {device: cpu}\n", encoding="utf-8")
    folder = repository / "artifacts" / "train"
    folder.mkdir(parents=True)
    other = read_origin(trained / DISCRIMINATOR)
    for name in (*GENERATORS.values(), DISCRIMINATOR):
        shutil.copyfile(trained / name, folder / name)
    best = [
        "sample",
        "-n",
        "2",
        "--out",
        "best.png",
        "-S",
        "evaluate.checkpoint=best",
        "-S",
        "train.fid_every_images=1",
    ]
    assert cli.main(best) == 2
    assert "holds no best checkpoint" in capsys.readouterr().err
    assert not (repository / "best.png").exists()

    (folder / "best").mkdir()
    game = other.params.model.build(other.channels, other.resolution)
    for name in GENERATORS.values():
        save_weights(game.generator, folder / "best" / name, other)
    save_weights(game.discriminator, folder / "best" / DISCRIMINATOR, other)
    assert cli.main(best) == 0
    assert cli.main(["sample", "-n", "2", "--out", "last.png", "-S", "evaluate.checkpoint=last"]) == 0
    for name, weights in (("best", folder / "best"), ("last", folder)):
        sample(weights, "cpu", 2, 0, repository / "expected.png", single=False)
        assert (repository / f"{name}.png").read_bytes() == (repository / "expected.png").read_bytes()
    assert (repository / "best.png").read_bytes() != (repository / "last.png").read_bytes()
