"""The model registry: the one form in which a generator is kept, the quality gate, and the aliases.

A version has the alias `champion` if it passed the gate and beat the champion before it under the same protocol.
`challenger` is the version that passed last without beating the champion, or the champion that was beaten last.
"""

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, cast

import mlflow
import mlflow.artifacts
import mlflow.pytorch
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from ganflow.errors import UserError
from ganflow.evaluation.protocol import Protocol
from ganflow.models.game import Game, Player
from ganflow.models.inputs import Control, InputSpec
from ganflow.params import RegisterParams
from ganflow.tracking.store import connect, explained

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
TAG_WEIGHTS = "ganflow.weights_digest"
TAG_FID = "ganflow.fid"

_MODEL_NAME = "generator"
_EXAMPLES = 4  # torch.export takes a batch of one for a constant
_VERSIONS_TAG = "mlflow.modelVersions"  # what links MLflow's page of a logged model to its versions

Alias = Literal["champion", "challenger"]

_log = logging.getLogger(__name__)


# The decision


@dataclass(frozen=True)
class Champion:
    """The version that holds the alias before a decision."""

    version: str
    is_candidate: bool
    """It has the very weights that are to be registered."""
    fid: float | None
    """Its FID under the candidate's protocol; None if it could not be measured."""
    why_unknown: str = ""


@dataclass(frozen=True)
class Decision:
    """Which alias a model gets, and why."""

    alias: Alias | None
    reason: str


def decide(metrics: Mapping[str, float | None], limits: RegisterParams, champion: Champion | None) -> Decision:
    """Put a model through the gate, and compare it with the champion.

    A champion stays one until a better version comes, also where the gate was made narrower since. One that cannot
    be measured is not replaced: it may be out of reach for a moment, and only a person can tell.
    """
    faults = _faults(metrics, limits)
    if champion is not None and champion.is_candidate:
        but = f"; the gate would refuse it now: {'; '.join(faults)}" if faults else ""
        return Decision(CHAMPION, f"is the champion already, version {champion.version}{but}")
    if faults:
        return Decision(None, "; ".join(faults))
    fid = cast(float, metrics["fid"])
    passed = f"passed the gate with FID {fid:.4g}"
    if metrics.get("discriminator_accuracy") is None:
        passed += " (the family has no discriminator accuracy)"
    if champion is None:
        return Decision(CHAMPION, f"{passed}; there was no champion")
    if champion.fid is None:
        return Decision(
            CHALLENGER,
            f"{passed}, but the champion, version {champion.version}, could not be measured under the same protocol "
            f"({champion.why_unknown}); to replace it all the same, move the alias in MLflow",
        )
    if fid < champion.fid:
        return Decision(CHAMPION, f"{passed}, better than the {champion.fid:.4g} of version {champion.version}")
    return Decision(
        CHALLENGER, f"{passed}, not better than the champion: {champion.fid:.4g}, version {champion.version}"
    )


def _faults(metrics: Mapping[str, float | None], limits: RegisterParams) -> list[str]:
    faults = []
    fid, accuracy = metrics.get("fid"), metrics.get("discriminator_accuracy")
    if fid is None or not math.isfinite(fid):
        faults.append(f"FID has no value ({fid})")
    elif fid > limits.max_fid:
        faults.append(f"FID {fid:.4g} exceeds register.max_fid {limits.max_fid:g}")
    low, high = limits.min_discriminator_accuracy, limits.max_discriminator_accuracy
    if accuracy is not None and not low <= accuracy <= high:  # also where it is not a number
        faults.append(f"the discriminator's accuracy {accuracy:.3f} lies outside {low:g} to {high:g}")
    return faults


# The exported form


class RegisteredGame(Game):
    """A generator from the registry as a game, so that it is sampled like one; it cannot be trained."""

    discriminator: None
    no_discriminator = "a registered model is a generator alone"

    def __init__(self, exported: nn.Module, inputs: InputSpec) -> None:
        super().__init__()
        self.generator = _Exported(exported)
        self.discriminator = None
        self.inputs = inputs

    @property
    def players(self) -> tuple[Player, ...]:
        """Nobody moves."""
        return ()

    def draw_inputs(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draw inputs (n, width) on the CPU, as the trained game drew them."""
        return self.inputs.draw(n, torch.device("cpu"), rng)


class _Exported(nn.Module):
    """Hides an exported network from `eval`, which it refuses: it was exported in eval mode."""

    def __init__(self, exported: nn.Module) -> None:
        super().__init__()
        self._call: Callable[[Tensor], Tensor] = exported.forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self._call(inputs)


def save_generator(game: Game, folder: Path, mlflow_model: Model, metadata: Mapping[str, Any]) -> None:
    """Export the generator on the CPU, for any batch size, as an MLflow model in a new folder."""
    generator = game.generator.cpu().eval()
    example = game.draw_inputs(_EXAMPLES, torch.Generator().manual_seed(0)).cpu()
    with torch.no_grad():
        pictures = generator(example)
    mlflow.pytorch.save_model(
        generator,
        folder,
        mlflow_model=mlflow_model,
        signature=ModelSignature(inputs=_any_number_of(example), outputs=_any_number_of(pictures)),
        input_example=example.numpy(),
        serialization_format="pt2",
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"],
        metadata={**metadata, "value_range": [-1, 1]},
    )
    # Without a device, pyfunc loads onto a GPU where there is one, and fails: an export stays on its device.
    mlflow_model.flavors["python_function"]["config"] = {"device": "cpu"}
    mlflow_model.save(str(folder / "MLmodel"))


def log_generator(client: MlflowClient, run: Run, game: Game, digest: str, metadata: Mapping[str, Any]) -> str:
    """Keep the generator with its run as a model of MLflow, and give its id; the same weights are kept once."""
    for logged in _models_of(client, run):
        if logged.tags.get(TAG_WEIGHTS) == digest and logged.status == LoggedModelStatus.READY:
            return str(logged.model_id)
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=_MODEL_NAME,
        source_run_id=run.info.run_id,
        tags={TAG_WEIGHTS: digest},
        params=run.data.params,
        model_type="generator",
    )
    model = Model(
        artifact_path=logged.artifact_location,
        run_id=run.info.run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )
    with TemporaryDirectory() as folder:
        save_generator(game, Path(folder) / "model", model, metadata)
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return str(logged.model_id)


def link_metrics(client: MlflowClient, run: Run, model_id: str) -> None:
    """Show the evaluation of a run with the model too: the same points, now with the model's id."""
    points = [
        Metric(last.key, last.value, last.timestamp, last.step, model_id=model_id, run_id=run.info.run_id)
        for name in run.data.metrics
        if name.startswith("evaluate/")
        for last in client.get_metric_history(run.info.run_id, name)[-1:]
    ]
    client.log_batch(run.info.run_id, metrics=points)


def load_registered(uri: str) -> RegisteredGame:
    """Load a generator by `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Raises UserError where there is none."""
    named = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if named is None:
        raise UserError(f"{uri}: does not name a registered model, as models:/digits-16px@champion does")
    name, alias, number = named.groups()
    client = connect()
    with explained(client.tracking_uri):
        try:
            version = number or client.get_model_version_by_alias(name, alias).version
            return load_version(client, name, str(version))
        except MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
            raise UserError(f"{uri}: there is no such model in the registry ({error.message})") from None


def load_version(client: MlflowClient, name: str, version: str) -> RegisteredGame:
    """Load a version of a registered model."""
    location = client.get_model_version_download_uri(name, version)
    with TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(location, dst_path=folder, tracking_uri=client.tracking_uri)
        metadata = Model.load(path).metadata or {}
        if not {"noise", "latent_dim"} <= metadata.keys():
            raise UserError(f"models:/{name}/{version}: was not registered by ganflow: its metadata names no noise")
        exported = mlflow.pytorch.load_model(path)
    controls = tuple(Control(**control) for control in metadata.get("controls", ()))
    return RegisteredGame(exported, InputSpec(metadata["noise"], int(metadata["latent_dim"]), controls))


def _any_number_of(batch: Tensor) -> Schema:
    return Schema([TensorSpec(np.dtype(np.float32), (-1, *batch.shape[1:]))])


def _models_of(client: MlflowClient, run: Run) -> list[LoggedModel]:
    models = []
    for output in run.outputs.model_outputs if run.outputs else ():
        try:
            models.append(client.get_logged_model(output.model_id))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return models


# Versions and aliases


def find_champion(
    client: MlflowClient,
    name: str,
    digest: str,
    protocol: Protocol,
    measure: Callable[[RegisteredGame], float],
) -> Champion | None:
    """Find the champion, and its FID under this protocol, which is measured where no evaluation has given it yet."""
    number = aliases(client, name).get(CHAMPION)
    if number is None:
        return None
    version = client.get_model_version(name, number)
    if version.tags.get(TAG_WEIGHTS) == digest:
        return Champion(number, True, None)
    known = version.tags.get(fid_tag(protocol))
    if known is not None:
        return Champion(number, False, float(known))
    try:
        fid = measure(load_version(client, name, number))
    except Exception as error:  # whatever keeps a model from being loaded or run
        return Champion(number, False, None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    client.set_model_version_tag(name, number, fid_tag(protocol), repr(fid))
    return Champion(number, False, fid)


def fid_tag(protocol: Protocol) -> str:
    """Name the tag that holds a version's FID under one protocol."""
    return f"{TAG_FID}.{protocol.digest.removeprefix('sha256:')[:12]}"


def find_version(client: MlflowClient, name: str, digest: str) -> str | None:
    """Find the version that has these weights."""
    found = client.search_model_versions(f"name = '{name}' and tag.`{TAG_WEIGHTS}` = '{digest}'")
    return str(max(int(version.version) for version in found)) if found else None


def register_version(client: MlflowClient, name: str, model_id: str, description: str, tags: Mapping[str, str]) -> str:
    """Register a logged model as a version; weights that have one keep it, with new tags."""
    _make_registered_model(client, name)
    number = find_version(client, name, tags[TAG_WEIGHTS])
    if number is not None:
        update_version(client, name, number, description, tags)
        return number
    with _as_default_store(client):
        version: ModelVersion = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=client.get_logged_model(model_id).source_run_id,
            tags=dict(tags),
            description=description,
            model_id=model_id,
        )
    linked = json.dumps([{"name": name, "version": str(version.version)}])
    client.set_logged_model_tags(model_id, {_VERSIONS_TAG: linked})
    return str(version.version)


def update_version(client: MlflowClient, name: str, version: str, description: str, tags: Mapping[str, str]) -> None:
    """Note on a version what was found out about it last."""
    client.update_model_version(name, version, description)
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


def set_aliases(client: MlflowClient, name: str, version: str, alias: Alias | None) -> None:
    """Give a version its alias. A champion that is beaten becomes the challenger, to go back to."""
    before = aliases(client, name)
    if alias == CHAMPION:
        if before.get(CHAMPION, version) != version:
            client.set_registered_model_alias(name, CHALLENGER, before[CHAMPION])
        elif before.get(CHALLENGER) == version:
            _drop_challenger(client, name)
        client.set_registered_model_alias(name, CHAMPION, version)
    elif alias == CHALLENGER:
        client.set_registered_model_alias(name, CHALLENGER, version)
    elif before.get(CHALLENGER) == version:
        _drop_challenger(client, name)


def _drop_challenger(client: MlflowClient, name: str) -> None:
    """Take the alias away, where this account may: MLflow lets its users set aliases who may not delete them."""
    try:
        client.delete_registered_model_alias(name, CHALLENGER)
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        _log.warning("%s: the alias %s stays where it is; to delete it, this account needs MANAGE", name, CHALLENGER)


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """List the aliases of a registered model and their versions; none where there is no such model."""
    try:
        found = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {alias: str(version) for alias, version in found.items()}


@contextmanager
def _as_default_store(client: MlflowClient) -> Iterator[None]:
    """Make the client's store MLflow's default one: a local registry looks a source `models:/ID` up in that."""
    before = os.environ.get("MLFLOW_TRACKING_URI")  # where set_tracking_uri, too, leaves what it was given
    mlflow.set_tracking_uri(client.tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it


def _make_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description="Generators trained by ganflow: latents in, pictures out.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
