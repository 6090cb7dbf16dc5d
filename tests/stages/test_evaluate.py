import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ganflow.data.grid import save_grid
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation import classifier
from ganflow.evaluation.protocol import Protocol
from ganflow.params import Params, parse
from ganflow.stages import evaluate as stage
from ganflow.stages.evaluate import measure
from ganflow.stages.prepare import prepare
from ganflow.training.weights import Origin, save_weights

N = 150
KEYS = {
    "fid",
    "fid_floor",
    "fid_ceiling",
    "discriminator_accuracy",
    "discriminator_accuracy_real",
    "discriminator_accuracy_fake",
    "discriminator_accuracy_low",
    "discriminator_accuracy_high",
    "discriminator_auc",
    "discriminator_auc_low",
    "discriminator_auc_high",
    "discriminator_batch_accuracy_recent",
    "images",
}


@pytest.fixture(scope="module")
def params() -> Params:
    return parse(
        {
            "data": {"source": "digits", "resolution": 8},
            "model": {"family": "dcgan", "width": 4, "latent_dim": 16},
            "train": {"device": "cpu"},
            "evaluate": {"images": N, "batch_size": 100},
        }
    )


@pytest.fixture(scope="module")
def prepared(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "prepare"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_LEAST_IMAGES", 4_000)
        patch.setattr(classifier, "_PASSES", 1)
        prepare(params, folder)
    return folder


def write_trained(params: Params, folder: Path, resolution: int = 8) -> Path:
    """Weights as they were drawn, the live generator's others than the averaged one's, and a history."""
    folder.mkdir(exist_ok=True)
    origin = Origin(params, 1, resolution, 100)
    torch.manual_seed(1)
    game, other = (params.model.build(1, resolution) for _ in range(2))
    save_weights(game.generator, folder / "generator.safetensors", origin)
    save_weights(other.generator, folder / "generator_live.safetensors", origin)
    save_weights(game.discriminator, folder / "discriminator.safetensors", origin)
    ticks = "".join(f"{images},{images / 20}\n" for images in range(1, 21))
    (folder / "history.csv").write_text(f"images,batch_accuracy\n{ticks}")
    return folder


@pytest.fixture
def trained(params: Params, tmp_path: Path) -> Path:
    return write_trained(params, tmp_path / "train")


def test_metrics_protocol_and_pictures(params: Params, prepared: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    metrics = measure(params, prepared, trained, out)

    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert set(metrics) == KEYS
    assert metrics["images"] == N
    # Weights as they were drawn are as bad as those of the untrained generator.
    assert metrics["fid_floor"] < 0.1 * metrics["fid"]
    assert metrics["fid"] == pytest.approx(metrics["fid_ceiling"], rel=0.3)
    assert metrics["fid"] != metrics["fid_ceiling"]
    assert metrics["discriminator_batch_accuracy_recent"] == pytest.approx(np.mean(np.arange(11, 21) / 20))
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["digest"] == Protocol.from_dict(protocol).digest
    assert (protocol["extractor"], protocol["reals"], protocol["fakes"]) == ("classifier", N, N)
    assert protocol["data_digest"] == PackedData(prepared).card.digest
    assert {path.name for path in out.iterdir()} == {
        "metrics.json",
        "protocol.json",
        "samples.png",
        "real_and_generated.png",
    }


def test_pictures_show_real_left_and_generated_right(
    params: Params, prepared: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids: dict[str, np.ndarray] = {}

    def record(images: torch.Tensor, path: Path, columns: int) -> None:
        grids[path.name] = np.asarray(images).reshape(-1, columns, 8, 8)
        save_grid(images, path, columns)

    monkeypatch.setattr(stage, "save_grid", record)
    measure(params, prepared, trained, tmp_path / "out")

    comparison, generated = grids["real_and_generated.png"], grids["samples.png"]
    assert comparison.shape == (10, 21, 8, 8)
    assert (comparison[:, :10].reshape(100, 8, 8) == PackedData(prepared).images("test")[:100, 0]).all()
    assert (comparison[:, 10] == 255).all()
    assert (comparison[:, 11:] == generated).all()
    with Image.open(tmp_path / "out" / "real_and_generated.png") as picture:
        assert picture.width > 2 * picture.height


def test_measures_alike_every_time_whatever_the_seed(
    params: Params, prepared: Path, trained: Path, tmp_path: Path
) -> None:
    first = measure(params, prepared, trained, tmp_path / "first")
    second = measure(replace(params, seed=5), prepared, trained, tmp_path / "second")

    assert first == second


def test_discriminator_meets_the_live_generator(params: Params, prepared: Path, trained: Path, tmp_path: Path) -> None:
    before = measure(params, prepared, trained, tmp_path / "out")
    (trained / "generator_live.safetensors").write_bytes((trained / "generator.safetensors").read_bytes())
    after = measure(params, prepared, trained, tmp_path / "out")

    assert after["fid"] == before["fid"]
    assert after["discriminator_auc"] != before["discriminator_auc"]


def test_a_history_without_accuracy(params: Params, prepared: Path, trained: Path, tmp_path: Path) -> None:
    (trained / "history.csv").write_text("images,loss\n1,2\n")

    assert set(measure(params, prepared, trained, tmp_path / "out")) == KEYS - {"discriminator_batch_accuracy_recent"}


def test_mistakes_are_named_and_leave_what_was_there(params: Params, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("before")

    def message(params: Params, prepared: Path, trained: Path) -> str:
        with pytest.raises(UserError) as raised:
            measure(params, prepared, trained, out)
        return str(raised.value)

    assert "run `ganflow train` first" in message(params, prepared, tmp_path / "nothing")
    assert "run `ganflow prepare` first" in message(params, tmp_path / "nothing", tmp_path)
    other = write_trained(params, tmp_path / "other", resolution=16)
    assert "pictures of (channels, height, width) (1, 16, 16)" in message(params, prepared, other)
    inception: dict[str, Any] = {"extractor": "inception", "inception_weights": str(tmp_path / "no.pth")}
    assert "evaluate.inception_weights" in message(
        replace(params, evaluate=replace(params.evaluate, **inception)), prepared, other
    )
    assert [path.name for path in out.iterdir()] == ["metrics.json"]
    assert (out / "metrics.json").read_text() == "before"
