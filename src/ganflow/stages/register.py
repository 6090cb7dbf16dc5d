"""The last stage: an evaluated model through the quality gate and into the registry."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from mlflow.entities import Run, RunTag

from ganflow import __version__, registry
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation.protocol import Protocol
from ganflow.evaluation.sampling import Generated
from ganflow.home import locked
from ganflow.models.game import Game
from ganflow.models.inputs import InputSpec
from ganflow.params import Params
from ganflow.registry import Champion, Decision
from ganflow.stages.evaluate import FAKES_SEED, judge_of
from ganflow.tracking import evaluations, runs, store
from ganflow.training.device import pick_device
from ganflow.training.weights import GENERATORS, folder_of, load_game, weights_digest
from ganflow.urls import public

REGISTRATION_FILE = "registration.json"

_log = logging.getLogger("ganflow")


def register(  # noqa: PLR0917 (the folders of all stages)
    params: Params, prepared: Path, trained: Path, evaluated: Path, out: Path, states: Path
) -> dict[str, Any]:
    """Decide about the model in `trained` by its metrics in `evaluated`; register it, and write registration.json.

    The weights are those that were evaluated: the last ones or the best, as `evaluate.checkpoint` says. `states` keeps
    the features of real pictures, for a champion that has to be measured again.

    The averaged generator is kept with its run in any case; a version and an alias it gets by the decision. The same
    weights have the same version however often this runs. A failure leaves no registration.json in `out`, and the
    run of the training as it was. Raises UserError.
    """
    report = out / REGISTRATION_FILE
    report.unlink(missing_ok=True)
    packed = PackedData(prepared)
    metrics, protocol = evaluations.read_metrics(evaluated), evaluations.read_protocol(evaluated)
    if protocol.data_digest != packed.card.digest:
        raise UserError(f"{evaluated}: was measured on other data than {prepared} holds; run `ganflow evaluate` again")
    checkpoint = folder_of(trained, params.evaluate.checkpoint)
    weights = weights_digest(checkpoint / GENERATORS["ema"])
    if evaluations.measured_weights(evaluated) != weights:
        raise UserError(
            f"{evaluated}: was measured with other weights than those in {checkpoint}; run `ganflow evaluate` again"
        )
    game = load_game(checkpoint, "ema", torch.device("cpu"))
    name = params.data.registered_model

    client = store.connect()
    with store.explained(client.tracking_uri), locked("register"):  # two must not beat the same champion
        training = evaluations.training_run(client, params, packed.card, trained)
        judged = _judged_run(client, evaluated) or training
        candidate = _Candidate(params, game.inputs, metrics, protocol, weights, training, judged)
        metadata = _metadata(params, packed, weights, game)
        model_id = registry.log_generator(client, training, game, weights, metadata)
        registry.link_metrics(client, judged, model_id)
        champion = registry.find_champion(
            client, name, weights, protocol, lambda rival: _measure(rival, params, packed, protocol, states)
        )
        decision = registry.decide(metrics, params.register, champion)
        version = _apply(client, name, model_id, decision, candidate)
        _note_on_run(client, f"{name}/{version}" if version else "none", decision, candidate)
    result = {
        "model": name,
        "version": version,
        "alias": decision.alias,
        "reason": decision.reason,
        "fid": metrics.get("fid"),
        "caution": "; ".join(protocol.cautions) or None,
        "checkpoint": params.evaluate.checkpoint,
        "champion": _before(champion, metrics),
        "run_id": training.info.run_id,
        "weights_digest": weights,
        "protocol_digest": protocol.digest,
        "data_digest": protocol.data_digest,
        "tracking_uri": public(client.tracking_uri),
    }
    _write(report, result)
    _log.info("%s: %s", f"{name} version {version}" if version else name, decision.reason)
    return result


@dataclass(frozen=True)
class _Candidate:
    """What is known of the model that is to be registered."""

    params: Params
    inputs: InputSpec
    metrics: dict[str, float | None]
    protocol: Protocol
    weights: str
    training: Run
    judged: Run

    def tags(self, decision: Decision) -> dict[str, str]:
        """Say where the model comes from, how good it is, and what was decided."""
        fid = repr(self.metrics.get("fid"))
        return {
            registry.TAG_WEIGHTS: self.weights,
            registry.TAG_FID: fid,
            registry.fid_tag(self.protocol): fid,
            evaluations.TAG_PROTOCOL: self.protocol.digest,
            runs.TAG_DATA_DIGEST: self.protocol.data_digest,
            "ganflow.git_commit": self.training.data.tags.get(runs.TAG_COMMIT, "unknown"),
            "ganflow.run_id": self.training.info.run_id,
            "ganflow.evaluation_run_id": self.judged.info.run_id,
            "ganflow.family": self.params.model.family,
            "ganflow.checkpoint": self.params.evaluate.checkpoint,
            evaluations.TAG_CAUTION: "; ".join(self.protocol.cautions) or "none",
            "ganflow.noise": self.params.model.noise,
            "ganflow.latent_dim": str(self.params.model.latent_dim),
            "ganflow.version": __version__,
            **self.decision_tags(decision),
        }

    def decision_tags(self, decision: Decision) -> dict[str, str]:
        """Say what was decided, and by which gate."""
        gate = {f"register.{key}": str(value) for key, value in asdict(self.params.register).items()}
        return {"ganflow.decision": decision.reason, **gate}

    def description(self, decision: Decision) -> str:
        """Say in the registry what the model is, and how it is used."""
        controls = ", ".join(f"{of.name} ({of.least:g} to {of.most:g})" for of in self.inputs.controls)
        beside = f", the last columns being {controls}" if controls else ""
        return (
            f"{self.params.model.family}, FID {self.metrics.get('fid')}. Takes {self.inputs.noise} latents, "
            f"float32 (n, {self.inputs.width}){beside}, and gives pictures (n, c, h, w) in [-1, 1]. "
            f"Decision: {decision.reason}."
        )


def _judged_run(client: MlflowClient, evaluated: Path) -> Run | None:
    """Find the run of the evaluation, which has one of its own under changed parameters."""
    ref = runs.read_run(evaluated)
    return store.find_run(client, ref.run_id if ref else None)


def _metadata(params: Params, packed: PackedData, digest: str, game: Game) -> dict[str, Any]:
    return {
        "family": params.model.family,
        "noise": params.model.noise,
        "latent_dim": params.model.latent_dim,
        "controls": [asdict(control) for control in game.inputs.controls],
        "channels": packed.card.channels,
        "resolution": packed.card.resolution,
        "data_digest": packed.card.digest,
        "weights_digest": digest,
        "ganflow_version": __version__,
    }


def _measure(rival: Game, params: Params, packed: PackedData, protocol: Protocol, states: Path) -> float:
    """Measure the FID of another generator as this evaluation measured its own."""
    device = pick_device(params.train.device)
    judge = judge_of(params, packed, device, protocol.reals, states)
    if judge.protocol.extractor_digest != protocol.extractor_digest:
        raise UserError("the extractor is another than that of the evaluation; run `ganflow evaluate` again")
    return judge.fid(Generated(rival, FAKES_SEED))


def _apply(client: MlflowClient, name: str, model_id: str, decision: Decision, candidate: _Candidate) -> str | None:
    """Carry the decision out, and give the version, if there is one."""
    description, tags = candidate.description(decision), candidate.tags(decision)
    if decision.alias is None:
        version = registry.find_version(client, name, candidate.weights)
        if version is not None:
            registry.update_version(client, name, version, description, tags)
    else:
        version = registry.register_version(client, name, model_id, description, tags)
    if version is not None:
        registry.set_aliases(client, name, version, decision.alias)
    return version


def _note_on_run(client: MlflowClient, registered: str, decision: Decision, candidate: _Candidate) -> None:
    """Tag the run: the gate may change from one registration to the next, which parameters of MLflow may not."""
    tags = {
        **candidate.decision_tags(decision),
        "ganflow.registered_model": registered,
        "ganflow.alias": decision.alias or "none",
    }
    client.log_batch(candidate.judged.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _before(champion: Champion | None, metrics: dict[str, float | None]) -> dict[str, Any] | None:
    if champion is None:
        return None
    return {"version": champion.version, "fid": metrics.get("fid") if champion.is_candidate else champion.fid}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    new.replace(path)
