import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.models import Model
from PIL import Image
from tiny_families import tiny_models

from ganflow import cli, registry
from ganflow.data.quantise import to_uint8
from ganflow.errors import UserError
from ganflow.evaluation.sampling import generate
from ganflow.models.game import Game
from ganflow.models.inputs import InputSpec
from ganflow.params import RegisterParams, parse
from ganflow.registry import Champion, decide
from ganflow.tracking import store

LIMITS = RegisterParams(max_fid=20.0, min_discriminator_accuracy=0.3, max_discriminator_accuracy=0.9)
GOOD = {"fid": 10.0, "discriminator_accuracy": 0.6}


@pytest.mark.parametrize(
    ("metrics", "champion", "alias", "said"),
    [
        (GOOD, None, "champion", "there was no champion"),
        (GOOD, Champion("1", False, 11.0), "champion", "better than the 11 of version 1"),
        (GOOD, Champion("1", False, 10.0), "challenger", "not better"),
        (GOOD, Champion("1", False, 9.0), "challenger", "not better than the champion: 9, version 1"),
        (GOOD, Champion("1", False, None, "OSError: gone"), "challenger", r"could not be measured .*OSError: gone"),
        (GOOD, Champion("1", True, None), "champion", "is the champion already"),
        ({**GOOD, "fid": 20.0}, None, "champion", "passed"),
        ({**GOOD, "fid": 20.1}, None, None, r"FID 20.1 exceeds register.max_fid 20"),
        ({**GOOD, "fid": 20.1}, Champion("1", True, None), "champion", "the gate would refuse it now: FID 20.1"),
        ({**GOOD, "fid": math.nan}, None, None, "FID has no value"),
        ({**GOOD, "fid": math.inf}, None, None, "FID has no value"),
        ({**GOOD, "fid": None}, None, None, "FID has no value"),
        ({}, None, None, "FID has no value"),
        ({**GOOD, "discriminator_accuracy": None}, None, "champion", "no discriminator accuracy"),
        ({**GOOD, "discriminator_accuracy": 0.3}, None, "champion", "passed"),
        ({**GOOD, "discriminator_accuracy": 0.29}, None, None, "accuracy 0.290 lies outside 0.3 to 0.9"),
        ({**GOOD, "discriminator_accuracy": 0.91}, None, None, "accuracy 0.910 lies outside"),
        ({**GOOD, "discriminator_accuracy": math.nan}, None, None, "accuracy nan lies outside"),
    ],
)
def test_decision(metrics: dict[str, float | None], champion: Champion | None, alias: str | None, said: str) -> None:
    decision = decide(metrics, LIMITS, champion)
    assert decision.alias == alias
    assert re.search(said, decision.reason)


MODELS = tiny_models()


def built(family: str) -> Game:
    """Networks that are no longer quite as they were drawn, since some of them begin by ignoring their input."""
    torch.manual_seed(0)
    game = parse({"model": {**MODELS[family], "latent_dim": 5}}).model.build(3, 8, 4).eval()
    with torch.no_grad():
        for parameter in game.generator.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for buffer in game.generator.buffers():
            buffer.copy_(buffer + 0.1 * torch.rand(buffer.shape))
    return game


@pytest.mark.parametrize("family", MODELS)
def test_exported_generator_is_the_generator_at_any_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    game = built(family)
    folder = tmp_path / "model"
    registry.save_generator(game, folder, Model(), {"noise": "normal", "latent_dim": 5})
    loaded = mlflow.pytorch.load_model(str(folder))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # pyfunc must not look for the weights on a GPU
    served = mlflow.pyfunc.load_model(str(folder))
    for n in (1, 4, 9):
        inputs = game.draw_inputs(n)
        for control in game.inputs.controls:  # all that it may be asked for, in one batch
            game.inputs.column(inputs, control.name).copy_(torch.linspace(control.least, control.most, n).round())
        with torch.no_grad():
            pictures = game.generator(inputs)
            assert torch.allclose(loaded(inputs), pictures, atol=1e-6)
        answer = served.predict(inputs.numpy())
        assert answer.shape == (n, 3, 8, 8)
        assert answer.dtype == np.float32
        assert np.allclose(answer, pictures.numpy(), atol=1e-6)
        assert n == 1 or pictures.std(dim=0).max() > 0.01, "the inputs matter"
    (tensor,) = served.metadata.signature.inputs
    assert (tensor.shape, tensor.type) == ((-1, 5 + len(game.inputs.controls)), np.float32)
    assert [tensor.shape for tensor in served.metadata.signature.outputs] == [(-1, 3, 8, 8)]
    assert served.metadata.metadata == {"noise": "normal", "latent_dim": 5, "value_range": [-1, 1]}
    assert {path.suffix for path in (folder / "data").iterdir()} == {".pt2"}


@pytest.fixture
def client(repository: Path) -> MlflowClient:
    return store.connect()


def logged(client: MlflowClient, digest: str, family: str = "dcgan") -> tuple[str, Game]:
    """Keep a generator with a run, as the register stage does."""
    game = built(family)
    run = client.create_run(store.experiment_id(client, "ganflow"))
    client.log_param(run.info.run_id, "train.images", 8)
    run = client.get_run(run.info.run_id)
    controls = [asdict(control) for control in game.inputs.controls]
    metadata = {"noise": "uniform", "latent_dim": 5, "controls": controls}
    model_id = registry.log_generator(client, run, game, digest, metadata)
    assert registry.log_generator(client, client.get_run(run.info.run_id), game, digest, {}) == model_id
    return model_id, game


def test_model_belongs_to_its_run(client: MlflowClient) -> None:
    model_id, _ = logged(client, "sha256:1")
    model = client.get_logged_model(model_id)
    run = client.get_run(model.source_run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [model_id]
    assert run.info.status == "RUNNING"
    assert model.params == {"train.images": "8"}
    client.log_metric(run.info.run_id, "evaluate/fid", 9.5, step=8)
    for _ in range(2):
        registry.link_metrics(client, client.get_run(run.info.run_id), model_id)
    assert [(m.key, m.value, m.step) for m in client.get_logged_model(model_id).metrics] == [("evaluate/fid", 9.5, 8)]
    assert len(client.get_metric_history(run.info.run_id, "evaluate/fid")) == 1


def test_registered_generator_is_sampled_like_the_trained_one(client: MlflowClient) -> None:
    model_id, game = logged(client, "sha256:1")
    version = registry.register_version(client, "toy-8px", model_id, "words", {registry.TAG_WEIGHTS: "sha256:1"})
    registry.set_aliases(client, "toy-8px", version, "champion")
    for uri in ("models:/toy-8px@champion", "models:/toy-8px/1"):
        loaded = registry.load_registered(uri)
        made = torch.cat(list(generate(loaded, 6, 4, seed=3)))
        latents = loaded.draw_inputs(1000, torch.Generator().manual_seed(3))[:6]
        with torch.no_grad():
            expected = to_uint8(game.generator(latents))
        assert (made.int() - expected.int()).abs().max() <= 1
        assert latents.abs().max() <= 1  # uniform
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        assert mlflow.pyfunc.load_model("models:/toy-8px@champion").predict(latents.numpy()).shape == (6, 3, 8, 8)
    finally:
        mlflow.set_tracking_uri(None)
    linked = json.loads(client.get_logged_model(model_id).tags["mlflow.modelVersions"])
    assert linked == [{"name": "toy-8px", "version": "1"}]


@pytest.mark.parametrize("family", [name for name in MODELS if built(name).inputs.controls])
def test_what_a_registered_generator_takes_beside_its_latents(
    family: str, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `ganflow sample` sets it: the columns are drawn, bounded and set as for the trained weights."""
    model_id, game = logged(client, "sha256:1", family)
    registry.register_version(client, "toy-8px", model_id, "words", {registry.TAG_WEIGHTS: "sha256:1"})
    loaded = registry.load_registered("models:/toy-8px/1")
    assert loaded.inputs.controls == game.inputs.controls
    inputs = loaded.draw_inputs(40, torch.Generator().manual_seed(3))
    (control,) = loaded.inputs.controls
    assert set(inputs[:, -1].tolist()) == ({control.default} if control.default is not None else {0, 1, 2, 3})
    order = ["sample", "--model", "models:/toy-8px/1", "-n", "3", "--seed", "3", "--single", "--out", "made"]
    for value in (control.least, control.most):
        assert cli.main([*order, f"--{control.name}", f"{value:g}"]) == 0
        latents = loaded.draw_inputs(1000, torch.Generator().manual_seed(3))[:3, :-1]
        with torch.no_grad():
            expected = to_uint8(game.generator(torch.cat([latents, torch.full((3, 1), float(value))], dim=1))).numpy()
        made = np.stack([np.asarray(Image.open(path)) for path in sorted(Path("made").iterdir())])
        assert np.abs(made.astype(int) - expected.transpose(0, 2, 3, 1)).max() <= 1
    assert cli.main([*order, f"--{control.name}", f"{control.most + 1:g}"]) == 2
    assert f"ganflow: --{control.name}: must be a" in capsys.readouterr().err
    assert cli.main([*order, *({"--label", "--truncation"} - {f"--{control.name}"}), "0"]) == 2
    assert f"this generator has no such input beside its latents; it has {control.name}" in capsys.readouterr().err


def test_one_registered_before_there_were_controls_has_none(client: MlflowClient) -> None:
    game = built("dcgan")
    run = client.create_run(store.experiment_id(client, "ganflow"))
    model_id = registry.log_generator(client, run, game, "sha256:1", {"noise": "normal", "latent_dim": 5})
    registry.register_version(client, "toy", model_id, "words", {registry.TAG_WEIGHTS: "sha256:1"})
    assert registry.load_registered("models:/toy/1").inputs == InputSpec("normal", 5)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("toy", "does not name a registered model"),
        ("models:/toy-8px", "does not name a registered model"),
        ("models:/toy-8px@champion", "there is no such model"),
        ("models:/toy-8px/7", "there is no such model"),
    ],
)
def test_model_that_is_not_there(client: MlflowClient, uri: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        registry.load_registered(uri)


def test_aliases_move_with_the_decisions(client: MlflowClient) -> None:
    client.create_registered_model("toy")
    for number in (1, 2, 3):
        client.create_model_version("toy", source=f"file:///nowhere/{number}")
    decisions = [
        ("1", "champion", {"champion": "1"}),
        ("2", "challenger", {"champion": "1", "challenger": "2"}),
        ("2", "champion", {"champion": "2", "challenger": "1"}),
        ("1", None, {"champion": "2"}),
        ("3", "challenger", {"champion": "2", "challenger": "3"}),
        ("2", "champion", {"champion": "2", "challenger": "3"}),
        ("3", "champion", {"champion": "3", "challenger": "2"}),
        ("1", None, {"champion": "3", "challenger": "2"}),
    ]
    for version, alias, expected in decisions:
        registry.set_aliases(client, "toy", version, alias)
        assert registry.aliases(client, "toy") == expected


def test_same_weights_are_one_version(client: MlflowClient) -> None:
    model_id, _ = logged(client, "sha256:1")
    for fid in ("9.5", "8.0"):
        tags = {registry.TAG_WEIGHTS: "sha256:1", registry.TAG_FID: fid}
        assert registry.register_version(client, "toy", model_id, f"FID {fid}", tags) == "1"
    version = client.get_model_version("toy", "1")
    assert version.tags[registry.TAG_FID] == "8.0"
    assert version.description == "FID 8.0"
    assert version.source == f"models:/{model_id}"  # MLflow's page of the version links to the model by this
