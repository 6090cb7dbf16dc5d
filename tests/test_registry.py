import json
import math
import re
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.models import Model

from ganflow import registry
from ganflow.data.quantise import to_uint8
from ganflow.errors import UserError
from ganflow.evaluation.sampling import generate
from ganflow.models.game import Game
from ganflow.params import Params, RegisterParams, parse
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


def built(family: str) -> tuple[Params, Game]:
    params = parse({"data": {"resolution": 8, "channels": 3}, "model": {"family": family, "latent_dim": 5}})
    torch.manual_seed(0)
    return params, params.model.build(3, 8).eval()


@pytest.mark.parametrize("family", ["dcgan", "vanilla"])
def test_exported_generator_is_the_generator_at_any_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    _, game = built(family)
    folder = tmp_path / "model"
    registry.save_generator(game, folder, Model(), {"noise": "normal", "latent_dim": 5})
    loaded = mlflow.pytorch.load_model(str(folder))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # pyfunc must not look for the weights on a GPU
    served = mlflow.pyfunc.load_model(str(folder))
    for n in (1, 4, 9):
        latents = game.draw_inputs(n)
        with torch.no_grad():
            pictures = game.generator(latents)
            assert torch.allclose(loaded(latents), pictures, atol=1e-6)
        answer = served.predict(latents.numpy())
        assert answer.shape == (n, 3, 8, 8)
        assert answer.dtype == np.float32
        assert np.allclose(answer, pictures.numpy(), atol=1e-6)
    assert [tensor.shape for tensor in served.metadata.signature.inputs] == [(-1, 5)]
    assert [tensor.shape for tensor in served.metadata.signature.outputs] == [(-1, 3, 8, 8)]
    assert served.metadata.metadata == {"noise": "normal", "latent_dim": 5, "value_range": [-1, 1]}
    assert {path.suffix for path in (folder / "data").iterdir()} == {".pt2"}


@pytest.fixture
def client(repository: Path) -> MlflowClient:
    return store.connect()


def logged(client: MlflowClient, digest: str) -> tuple[str, Game]:
    """Keep a generator with a run, as the register stage does."""
    _, game = built("dcgan")
    run = client.create_run(store.experiment_id(client, "ganflow"))
    client.log_param(run.info.run_id, "train.images", 8)
    run = client.get_run(run.info.run_id)
    model_id = registry.log_generator(client, run, game, digest, {"noise": "uniform", "latent_dim": 5})
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
