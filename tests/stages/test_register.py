"""The stage on a real store, with real weights and a real extractor; only the FIDs are given."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from servers import MlflowServer

from ganflow import registry
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation import classifier
from ganflow.params import Params, parse
from ganflow.stages.evaluate import measure
from ganflow.stages.prepare import prepare
from ganflow.stages.register import register
from ganflow.tracking import evaluations, runs, store
from ganflow.training.weights import GENERATORS, Origin, folder_of, load_game, save_weights, weights_digest

NAME = "digits-8px"


@pytest.fixture(scope="module")
def params() -> Params:
    return parse(
        {
            "data": {"resolution": 8},
            "model": {"family": "vanilla", "hidden_units": 8, "latent_dim": 4},
            "evaluate": {"images": 100},
            "train": {"device": "cpu", "fid_every_images": 100},
        }
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    out = tmp_path_factory.mktemp("data") / "prepare"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_LEAST_IMAGES", 256)
        patch.setattr(classifier, "_MOST_IMAGES", 256)
        prepare(params, out)
    return out


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, params: Params, prepared: Path) -> Path:
    """An evaluation whose numbers the tests replace by their own."""
    folder = tmp_path_factory.mktemp("measured")
    save_game(params, folder, seed=0)
    measure(params, prepared, folder, folder / "evaluate", folder / "states")
    return folder / "evaluate"


def save_game(params: Params, folder: Path, seed: int, images: int = 64) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    game = params.model.build(1, 8)
    origin = Origin(params, 1, 8, 0, images)
    save_weights(game.generator, folder / GENERATORS["ema"], origin)
    save_weights(game.generator, folder / GENERATORS["live"], origin)
    save_weights(game.discriminator, folder / "discriminator.safetensors", origin)
    (folder / "history.csv").write_text("images,generator_loss\n64,1.5\n")


class Pipeline:
    """Goes through the stages as `ganflow` does, with made-up weights and a FID of the test's choice."""

    def __init__(self, root: Path, params: Params, prepared: Path, measured: Path) -> None:
        self.params, self.prepared, self._measured = params, prepared, measured
        self.trained, self.evaluated, self.out = (root / "artifacts" / stage for stage in ("t", "e", "r"))
        self.states = root / "states"
        self.card = PackedData(prepared).card
        self._cache = root / "cache"

    def train(self, seed: int) -> None:
        """Leave what a training by this seed leaves; a second time as DVC's run-cache restores it."""
        kept = self._cache / str(seed)
        if not kept.exists():
            save_game(self.params, kept, seed)
            save_game(self.params, kept / "best", seed + 100, images=32)
            runs.write_run(kept, runs.open_run(self.params, self.card))
            ref = runs.read_run(kept)
            store.connect().set_terminated(ref.run_id, "FINISHED")
        shutil.rmtree(self.trained, ignore_errors=True)
        shutil.copytree(kept, self.trained)

    def evaluate(self, fid: float, accuracy: float | None = 0.6) -> None:
        shutil.rmtree(self.evaluated, ignore_errors=True)
        shutil.copytree(self._measured, self.evaluated)
        self.change("metrics.json", fid=fid, discriminator_accuracy=accuracy)
        checkpoint = self.params.evaluate.checkpoint
        weights = folder_of(self.trained, checkpoint) / GENERATORS["ema"]
        self.change("measured.json", checkpoint=checkpoint, weights_digest=weights_digest(weights))
        self.log()

    def measure(self) -> dict[str, Any]:
        return measure(self.params, self.prepared, self.trained, self.evaluated, self.states)

    def change(self, name: str, **entries: Any) -> None:
        content = json.loads((self.evaluated / name).read_text())
        (self.evaluated / name).write_text(json.dumps({**content, **entries}))

    def log(self) -> None:
        ref = evaluations.log_evaluation(self.params, self.card, self.trained, self.evaluated)
        runs.write_run(self.evaluated, ref)

    def register(self) -> dict[str, Any]:
        result = register(self.params, self.prepared, self.trained, self.evaluated, self.out, self.states)
        assert json.loads((self.out / "registration.json").read_text()) == result
        return result

    def all(self, seed: int, fid: float) -> dict[str, Any]:
        self.train(seed)
        self.evaluate(fid)
        return self.register()


@pytest.fixture
def pipeline(repository: Path, params: Params, prepared: Path, measured: Path) -> Pipeline:
    return Pipeline(repository, params, prepared, measured)


def aliases() -> dict[str, str]:
    return registry.aliases(store.connect(), NAME)


def test_first_model_becomes_champion_with_all_that_is_known_of_it(pipeline: Pipeline, repository: Path) -> None:
    result = pipeline.all(seed=1, fid=10.0)
    client = store.connect()
    run = client.get_run(result["run_id"])
    version = client.get_model_version_by_alias(NAME, "champion")
    assert result["alias"] == "champion"
    assert result["champion"] is None
    assert result["fid"] == 10.0
    assert result["tracking_uri"] == f"sqlite:///{repository}/mlflow.db"
    assert str(version.version) == result["version"] == "1"
    assert version.run_id == run.info.run_id
    assert version.tags["ganflow.fid"] == "10.0"
    assert version.tags["ganflow.data_digest"] == result["data_digest"] == pipeline.card.digest
    assert version.tags["ganflow.protocol"] == result["protocol_digest"] == run.data.tags["ganflow.protocol"]
    assert version.tags["ganflow.weights_digest"] == result["weights_digest"]
    assert version.tags["ganflow.noise"] == "normal"
    assert version.tags["register.max_fid"] == "50.0"
    assert "FID 10.0" in version.description
    assert run.info.status == "FINISHED"
    assert run.data.tags["ganflow.registered_model"] == f"{NAME}/1"
    assert not [name for name in run.data.params if name.startswith("register")]
    shown = {
        metric.key: metric.value for metric in client.get_logged_model(version.source.removeprefix("models:/")).metrics
    }
    assert shown["evaluate/fid"] == 10.0


def test_registering_twice_changes_nothing(pipeline: Pipeline) -> None:
    first, second = pipeline.all(1, 10.0), pipeline.register()
    assert (second["version"], second["alias"]) == (first["version"], "champion")
    assert second["champion"] == {"version": "1", "fid": 10.0}
    run = store.connect().get_run(first["run_id"])
    assert len(run.outputs.model_outputs) == 1


@pytest.mark.parametrize(
    ("fid_a", "fid_b", "expected"),
    [
        (10.0, 8.0, [("1", "champion"), ("2", "champion"), ("1", "challenger")]),
        (10.0, 12.0, [("1", "champion"), ("2", "challenger"), ("1", "champion")]),
    ],
)
def test_a_b_a_agrees_after_each(
    pipeline: Pipeline, fid_a: float, fid_b: float, expected: list[tuple[str, str]]
) -> None:
    for (seed, fid), (version, alias) in zip([(1, fid_a), (2, fid_b), (1, fid_a)], expected, strict=True):
        result = pipeline.all(seed, fid)
        assert (result["version"], result["alias"], result["fid"]) == (version, alias, fid)
        assert aliases()[alias] == version
        assert store.connect().get_model_version(NAME, version).tags["ganflow.fid"] == str(fid)
    best = "1" if fid_a < fid_b else "2"
    assert aliases() == {"champion": best, "challenger": "2" if best == "1" else "1"}


def test_model_that_fails_the_gate_has_no_version_but_is_kept_with_its_run(pipeline: Pipeline) -> None:
    result = pipeline.all(1, 60.0)
    assert (result["version"], result["alias"]) == (None, None)
    assert "FID 60 exceeds register.max_fid 50" in result["reason"]
    run = store.connect().get_run(result["run_id"])
    assert len(run.outputs.model_outputs) == 1
    assert run.data.tags["ganflow.registered_model"] == "none"
    assert aliases() == {}


def test_narrower_gate_takes_the_challenger_off_but_not_the_champion(pipeline: Pipeline) -> None:
    pipeline.all(1, 10.0)
    pipeline.all(2, 12.0)
    narrow = dataclasses.replace(pipeline.params.register, max_fid=5.0)
    pipeline.params = dataclasses.replace(pipeline.params, register=narrow)
    result = pipeline.register()
    assert (result["version"], result["alias"]) == ("2", None)
    assert aliases() == {"champion": "1"}
    result = pipeline.all(1, 10.0)
    assert (result["version"], result["alias"]) == ("1", "champion")
    assert "would refuse it now" in result["reason"]


def test_champion_of_another_protocol_is_measured_again(pipeline: Pipeline, params: Params) -> None:
    pipeline.all(1, 0.001)  # a number that would win, but that another protocol gave
    pipeline.params = dataclasses.replace(
        params,
        evaluate=dataclasses.replace(params.evaluate, images=80),
        register=dataclasses.replace(params.register, max_fid=1e9),
    )
    own = pipeline.measure()["fid"]
    pipeline.train(2)
    pipeline.measure()
    pipeline.change("metrics.json", fid=own / 2, discriminator_accuracy=0.6)
    pipeline.log()
    result = pipeline.register()
    assert result["champion"]["fid"] == pytest.approx(own, rel=1e-3)
    assert (result["version"], result["alias"]) == ("2", "champion")
    tags = store.connect().get_model_version(NAME, "1").tags
    assert tags["ganflow.fid"] == "0.001"
    assert sorted(key for key in tags if key.startswith("ganflow.fid.")) == sorted(
        f"ganflow.fid.{digest[7:19]}" for digest in (tags["ganflow.protocol"], result["protocol_digest"])
    )


def test_champion_that_cannot_be_loaded_is_left_to_a_person(
    pipeline: Pipeline, params: Params, repository: Path
) -> None:
    pipeline.all(1, 10.0)
    shutil.rmtree(next((repository / "mlartifacts").glob("*/models")))
    client = store.connect()
    for key in [key for key in client.get_model_version(NAME, "1").tags if key.startswith("ganflow.fid.")]:
        client.delete_model_version_tag(NAME, "1", key)
    result = pipeline.all(2, 5.0)
    assert (result["version"], result["alias"]) == ("2", "challenger")
    assert "could not be measured" in result["reason"]
    assert result["champion"] == {"version": "1", "fid": None}


def test_failure_leaves_no_registration_that_lies(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    result = pipeline.all(1, 10.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="does not answer"):
        pipeline.register()
    assert not (pipeline.out / "registration.json").exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert store.connect().get_run(result["run_id"]).info.status == "FINISHED"


def test_evaluation_on_other_data_is_refused(pipeline: Pipeline) -> None:
    pipeline.train(1)
    pipeline.evaluate(10.0)
    pipeline.change("protocol.json", data_digest="sha256:other")
    with pytest.raises(UserError, match="measured on other data"):
        pipeline.register()


def test_evaluation_of_other_weights_is_refused(pipeline: Pipeline) -> None:
    """Trained again, and not evaluated again: the old numbers are not those of the new weights."""
    first = pipeline.all(1, 10.0)
    pipeline.train(2)
    with pytest.raises(
        UserError, match=r"was measured with other weights than those in .*run `ganflow evaluate` again"
    ):
        pipeline.register()
    assert not (pipeline.out / "registration.json").exists()
    assert aliases() == {"champion": "1"}
    assert len(store.connect().get_run(first["run_id"]).outputs.model_outputs) == 1

    pipeline.train(1)
    assert pipeline.register()["version"] == "1"
    (pipeline.evaluated / "measured.json").unlink()
    with pytest.raises(UserError, match=r"measured\.json: there is no such file; run `ganflow evaluate` first"):
        pipeline.register()


# The best checkpoint


def at_best(params: Params) -> Params:
    return dataclasses.replace(params, evaluate=dataclasses.replace(params.evaluate, checkpoint="best"))


def test_the_checkpoint_that_was_measured_is_registered(pipeline: Pipeline) -> None:
    last = pipeline.all(1, 10.0)
    pipeline.params = at_best(pipeline.params)
    with pytest.raises(UserError, match="measured with other weights"):
        pipeline.register()
    pipeline.evaluate(8.0)
    best = pipeline.register()

    assert (last["checkpoint"], best["checkpoint"]) == ("last", "best")
    assert last["weights_digest"] == weights_digest(pipeline.trained / GENERATORS["ema"])
    assert best["weights_digest"] == weights_digest(pipeline.trained / "best" / GENERATORS["ema"])
    assert (best["version"], best["alias"], best["run_id"]) == ("2", "champion", last["run_id"])
    client = store.connect()
    tags = [client.get_model_version(NAME, version).tags for version in ("1", "2")]
    assert [each["ganflow.checkpoint"] for each in tags] == ["last", "best"]
    assert [each["ganflow.weights_digest"] for each in tags] == [last["weights_digest"], best["weights_digest"]]
    latents = torch.randn(3, 4)
    for version, folder in (("1", pipeline.trained), ("2", pipeline.trained / "best")):
        registered = registry.load_registered(f"models:/{NAME}/{version}").generator(latents)
        trained = load_game(folder, "ema", torch.device("cpu")).generator(latents)
        torch.testing.assert_close(registered, trained, atol=1e-6, rtol=0)


def test_a_best_checkpoint_that_is_not_there(pipeline: Pipeline) -> None:
    pipeline.train(1)
    pipeline.evaluate(10.0)
    pipeline.params = at_best(pipeline.params)
    shutil.rmtree(pipeline.trained / "best")
    with pytest.raises(UserError, match=r"evaluate\.checkpoint: .* holds no best checkpoint"):
        pipeline.register()
    assert aliases() == {}


def test_cautions_go_with_the_version(pipeline: Pipeline) -> None:
    result = pipeline.all(1, 10.0)
    client = store.connect()
    assert result["caution"] is None
    assert client.get_model_version(NAME, "1").tags["ganflow.caution"] == "none"

    pipeline.change("protocol.json", reals=60, fakes=60)
    result = pipeline.register()
    assert result["caution"].startswith("60 pictures are too few for 64 features")
    assert client.get_model_version(NAME, "1").tags["ganflow.caution"] == result["caution"]


def test_lost_training_run_is_linked(pipeline: Pipeline) -> None:
    first = pipeline.all(1, 10.0)
    client = store.connect()
    client.delete_run(first["run_id"])
    second = pipeline.register()
    assert second["run_id"] != first["run_id"]
    assert (second["version"], second["alias"]) == ("1", "champion")
    assert client.get_run(second["run_id"]).data.tags["ganflow.trained_by"] == first["run_id"]


def test_through_a_server(pipeline: Pipeline, server: MlflowServer) -> None:
    result = pipeline.all(1, 10.0)
    assert result["tracking_uri"] == server.uri
    client = MlflowClient(server.uri)
    assert client.get_model_version_by_alias(NAME, "champion").run_id == result["run_id"]
    assert client.get_run(result["run_id"]).info.status == "FINISHED"
    assert registry.load_registered(f"models:/{NAME}@champion").generator(torch.zeros(3, 4)).shape == (3, 1, 8, 8)
