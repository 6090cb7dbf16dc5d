import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import tiny_models

from ganflow import cli, params
from ganflow.errors import UserError
from ganflow.stages.sample import Order, sample, sample_registered
from ganflow.training.weights import GENERATORS, Origin, load_game, others, read_origin, save_weights

DISCRIMINATOR = "discriminator.safetensors"


@pytest.fixture(params=[1, 3])
def trained(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Weights as a training leaves them, of gray and of colour pictures."""
    loaded = params.parse({"model": {"family": "vanilla", "hidden_units": 8, "latent_dim": 4}})
    write_trained(Origin(loaded, request.param, 8, 0, 0), tmp_path)
    return tmp_path


def write_trained(origin: Origin, folder: Path) -> None:
    """Write freshly drawn weights."""
    game = origin.build()
    for name in GENERATORS.values():
        save_weights(game.generator, folder / name, origin)
    for name, network in others(game).items():
        save_weights(network, folder / name, origin)


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def test_single_pictures_are_the_generators_for_these_latents(trained: Path, tmp_path: Path) -> None:
    sample(trained, "cpu", Order(n=3, seed=7), tmp_path / "out", single=True)
    game = load_game(trained, "ema", torch.device("cpu"))
    with torch.no_grad():
        made = game.generator(torch.randn(1000, 4, generator=torch.Generator().manual_seed(7))[:3])
    expected = (made * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).squeeze(-1).numpy()
    assert np.array_equal(np.stack(pictures(tmp_path / "out")), expected)


def test_grid_holds_all_pictures_and_follows_from_the_seed(trained: Path, tmp_path: Path) -> None:
    for name, seed in {"a": 1, "again": 1, "b": 2}.items():
        sample(trained, "cpu", Order(n=5, seed=seed), tmp_path / f"{name}.png", single=False)
    with Image.open(tmp_path / "a.png") as grid:
        width, height = grid.size
    assert width > height  # three columns, two rows
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_the_first_pictures_do_not_depend_on_how_many(trained: Path, tmp_path: Path) -> None:
    for n in (2, 5):
        sample(trained, "cpu", Order(n=n, seed=7), tmp_path / str(n), single=True)
    for name in ("000000.png", "000001.png"):
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "5" / name).read_bytes()


@pytest.mark.parametrize(("n", "seed", "said"), [(0, 0, "-n 0"), (-1, 0, "-n -1"), (1, -1, "--seed -1")])
def test_numbers_that_cannot_be(trained: Path, tmp_path: Path, n: int, seed: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        sample(trained, "cpu", Order(n=n, seed=seed), tmp_path / "out.png", single=False)


def test_place_that_cannot_be_written(trained: Path) -> None:
    with pytest.raises(UserError, match=r"--out .*cannot be written"):
        sample(trained, "cpu", Order(n=1, seed=0), trained / DISCRIMINATOR / "out.png", single=False)


def test_uri_that_names_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="models:/digits-16px@champion"):
        sample_registered("digits", Order(n=1, seed=0), tmp_path / "out.png", single=False)


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
    write_trained(other, folder / "best")
    assert cli.main(best) == 0
    assert cli.main(["sample", "-n", "2", "--out", "last.png", "-S", "evaluate.checkpoint=last"]) == 0
    for name, weights in (("best", folder / "best"), ("last", folder)):
        sample(weights, "cpu", Order(n=2, seed=0), repository / "expected.png", single=False)
        assert (repository / f"{name}.png").read_bytes() == (repository / "expected.png").read_bytes()
    assert (repository / "best.png").read_bytes() != (repository / "last.png").read_bytes()


# What a person may choose


@pytest.fixture(params=["cgan", "stylegan"])
def choosable(request: pytest.FixtureRequest, repository: Path) -> Path:
    """A repository with the weights of a family that takes something beside its latents, as a training leaves them."""
    tree = {"model": tiny_models()[request.param], "train": {"device": "cpu"}}
    (repository / "params.yaml").write_text(json.dumps(tree), encoding="utf-8")
    folder = repository / "artifacts" / "train"
    folder.mkdir(parents=True)
    write_trained(Origin(params.parse(tree), 1, 8, 3, 0), folder)
    return folder


CHOICES = {"cgan": ("label", [0, 2]), "stylegan": ("truncation", [0.0, 0.25, 1.0])}


def choice(trained: Path) -> tuple[str, list[float]]:
    """Give what can be chosen, and some values of it."""
    return CHOICES[read_origin(trained / GENERATORS["ema"]).params.model.family]


def test_all_pictures_are_as_chosen(choosable: Path, tmp_path: Path) -> None:
    """And of the same latents as the pictures for which nothing was chosen."""
    name, values = choice(choosable)
    game = load_game(choosable, "ema", torch.device("cpu"))
    latents = torch.randn(1000, 4, generator=torch.Generator().manual_seed(7))[:5]
    made = {}
    for value in values:
        order = ["sample", "-n", "5", "--seed", "7", "--single", "--out", str(tmp_path / str(value))]
        assert cli.main([*order, f"--{name}", str(value)]) == 0
        made[value] = np.stack(pictures(tmp_path / str(value)))
        with torch.no_grad():
            expected = game.generator(torch.cat([latents, torch.full((5, 1), float(value))], dim=1))
        assert np.array_equal(made[value], (expected * 127.5 + 128).clamp(0, 255).to(torch.uint8)[:, 0].numpy())
    for value, other in pairwise(values):
        assert not np.array_equal(made[value], made[other])


def test_what_is_not_chosen_is_drawn(choosable: Path, tmp_path: Path) -> None:
    """A class anew for each picture; truncation is none."""
    name, values = choice(choosable)
    game = load_game(choosable, "ema", torch.device("cpu"))
    drawn = game.draw_inputs(1000, torch.Generator().manual_seed(0))[:20, -1].tolist()
    assert set(drawn) == ({1.0} if name == "truncation" else {0.0, 1.0, 2.0})
    sample = ["sample", "-n", "20", "--single", "--out"]
    assert cli.main([*sample, str(tmp_path / "drawn")]) == 0
    for value in values:
        assert cli.main([*sample, str(tmp_path / "set"), f"--{name}", str(value)]) == 0
        both = zip(pictures(tmp_path / "drawn"), pictures(tmp_path / "set"), strict=True)
        assert [np.array_equal(*pair) for pair in both] == [column == value for column in drawn]


@pytest.mark.parametrize(
    ("family", "asked", "said"),
    [
        ("cgan", ["--label", "3"], "--label: must be a whole number from 0 to 2, not 3"),
        ("cgan", ["--label", "-1"], "--label: must be a whole number from 0 to 2, not -1"),
        (
            "cgan",
            ["--truncation", "0.5"],
            "--truncation: this generator has no such input beside its latents; it has label",
        ),
        ("stylegan", ["--truncation", "1.5"], "--truncation: must be a number from 0 to 1, not 1.5"),
        ("stylegan", ["--truncation", "-0.1"], "--truncation: must be a number from 0 to 1, not -0.1"),
        ("stylegan", ["--truncation", "nan"], "--truncation: must be a number from 0 to 1, not nan"),
        (
            "stylegan",
            ["--label", "0"],
            "--label: this generator has no such input beside its latents; it has truncation",
        ),
        ("vanilla", ["--label", "0"], "--label: this generator has no such input beside its latents; it has nothing"),
    ],
)
def test_what_cannot_be_chosen(
    family: str, asked: list[str], said: str, *, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {"model": tiny_models()[family], "train": {"device": "cpu"}}
    (repository / "params.yaml").write_text(json.dumps(tree), encoding="utf-8")
    folder = repository / "artifacts" / "train"
    folder.mkdir(parents=True)
    write_trained(Origin(params.parse(tree), 1, 8, 3, 0), folder)
    for single in ([], ["--single"]):
        assert cli.main(["sample", "-n", "2", "--out", "out", *asked, *single]) == 2
        assert capsys.readouterr().err == f"ganflow: {said}\n"
    assert not (repository / "out").exists() or not any((repository / "out").iterdir())


@pytest.mark.parametrize("asked", [["--label", "7.5"], ["--label", "seven"], ["--truncation", "much"]])
def test_a_choice_that_is_no_number(asked: list[str], repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sample", *asked])
    assert ended.value.code == 2
    assert asked[0] in capsys.readouterr().err
