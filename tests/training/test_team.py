"""Several processes that train as one: over real gloo connections, started by torchrun."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ganflow import cli, params
from ganflow.data.batches import Batches
from ganflow.data.format import Format
from ganflow.data.packing import pack
from ganflow.data.sources import open_source
from ganflow.errors import UserError
from ganflow.training import checkpoint, loop
from ganflow.training.journal import Journal
from ganflow.training.match import Match
from ganflow.training.team import ALONE, Team, joined_team

CPU = torch.device("cpu")
PROCESSES = 2
BIN = Path(sys.executable).parent
TRAINED = Path("artifacts/train")
TREE: dict[str, Any] = {
    "seed": 3,
    "data": {"resolution": 8},
    "model": {"family": "vanilla", "hidden_units": 4, "latent_dim": 4},
    "train": {
        "images": 1000,
        "batch_size": 8,
        "device": "cpu",
        "tick_every_images": 200,
        "sample_every_images": 400,
        "checkpoint_every_images": 400,
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "vanilla": {"family": "vanilla", "hidden_units": 4, "latent_dim": 4},  # with dropout
    "dcgan": {"family": "dcgan", "width": 4, "latent_dim": 4, "discriminator_norm": "batch"},
}
MATCH = {
    "images": 160,
    "batch_size": 8,
    "precision": "float32",
    "translation": 1,
    "flip": True,
    "tick_every_images": 40,
}


def torchrun(*command: str | Path) -> subprocess.Popen[str]:
    """Start the processes of a team in the working directory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    with Path("team.log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            [BIN / "torchrun", "--nproc-per-node", str(PROCESSES), *command],
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
        )


def ended(team: subprocess.Popen[str], within: float = 60) -> int:
    try:
        return team.wait(within)
    finally:
        team.terminate()


# The batch


@pytest.mark.parametrize("size", [1, 2, 4])
def test_shares_are_disjoint_and_together_the_batch(size: int) -> None:
    """Also where a batch goes over from one epoch to the next."""
    images, numbers = np.zeros((50, 1, 8, 8), np.uint8), np.arange(50)
    whole = Batches(images, numbers, 8, 0, CPU)
    parts = [Batches(images, numbers, 8, 0, CPU, Team(rank, size).share) for rank in range(size)]
    for position in range(0, 160, 8):
        found = [part.batch(position).labels.tolist() for part in parts]  # type: ignore[union-attr]
        assert [len(share) for share in found] == [8 // size] * size
        assert sorted(itertools.chain(*found)) == sorted(whole.batch(position).labels.tolist())  # type: ignore[union-attr]


def test_pictures_and_labels_of_a_share_belong_together() -> None:
    images = np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    batch = Batches(images, np.arange(50), 8, 0, CPU, Team(1, 2).share).batch(48)
    assert batch.labels is not None
    torch.testing.assert_close((batch.images[:, 0, 0, 0] + 1) * 127.5, batch.labels.float(), rtol=0, atol=1e-4)


# Joining


@pytest.mark.parametrize("size", [None, "1", "3"])
def test_without_torchrun_a_process_is_alone(size: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with joined_team(CPU, 7) as team:
        assert team is ALONE
    assert ALONE.leads
    assert not torch.distributed.is_initialized()


def test_only_the_first_leads() -> None:
    assert [Team(rank, 3).leads for rank in range(3)] == [True, False, False]


def test_a_batch_that_cannot_be_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"^train.batch_size: 8 cannot be divided by 3 processes"), joined_team(CPU, 8):
        pytest.fail("joined")


# Latents of one's own


def trained_alone(images: int, state: Path, family: str = "vanilla") -> None:
    """Leave the checkpoint of a process that trained alone until then."""
    match = new_match(family)
    state.mkdir(parents=True)
    inputs = match.game.draw_inputs(loop.SAMPLES, torch.Generator().manual_seed(0))
    with suppress(loop.InterruptedTraining):
        loop.train(match, inputs, state, Journal(state), lambda: match.images >= images)


def new_match(family: str, team: Team = ALONE) -> Match:
    parsed = params.parse({"model": MODELS[family], "train": MATCH})
    torch.manual_seed(0)
    pictures = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8), dtype=np.uint8)
    batches = Batches(pictures, None, parsed.train.batch_size, 0, CPU, team.share)
    return Match(parsed.model.build(1, 8), batches, parsed.train, CPU, team)


def test_each_process_draws_its_own_latents_and_others_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_alone(80, tmp_path / "at_80")
    trained_alone(120, tmp_path / "at_120")
    monkeypatch.setattr(Match, "images", MATCH["images"])  # there is nothing left to play
    drawn = [tuple(new_match("vanilla").game.draw_inputs(1).flatten().tolist())]
    for seed in (0, 1):
        for rank in (1, 2):
            for state in ("none", "at_80", "at_120"):
                match = new_match("vanilla", Team(rank, 1))  # with a rank, and yet nobody to wait for
                loop.assist(match, tmp_path / state, seed)
                drawn.append(tuple(match.game.draw_inputs(1).flatten().tolist()))
    assert len(set(drawn)) == len(drawn) == 13


# Together

PLAYS = """
import shutil, time
from dataclasses import replace
from pathlib import Path
import torch
from torch.nn.functional import softplus
from test_team import CPU, MODELS, new_match, write_found
from ganflow.training import checkpoint, loop
from ganflow.training.journal import Journal
from ganflow.training.team import ALONE, Team, joined_team

def gradients_of(network):
    named = network.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}

def gradients(team):
    found = {}
    for name, member in (("whole", ALONE), ("share", team)):
        match = new_match("dcgan", member)
        network = match.game.discriminator.eval()  # without statistics of the batch, and without augmentation
        torch.manual_seed(1)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 0, 0.2)  # for gradients of a size at which a difference shows
        softplus(-network(match.batches.batch(48).images)).mean().backward()
        found[name] = gradients_of(network)
    team.average_gradients(network)
    return found | {"averaged": gradients_of(network)}

def grouped(team):
    # Batch norm in training: the statistics are those of a share.
    def of_share(rank):
        match = new_match("dcgan", Team(rank, team.size))
        network = match.game.discriminator
        torch.manual_seed(1)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 0, 0.2)
        torch.manual_seed(rank)  # of the augmentation
        softplus(-network(match.batches.batch(48).images)).mean().backward()
        return network
    groups = [gradients_of(of_share(rank)) for rank in range(team.size)]
    mean = {name: sum(group[name] for group in groups) / team.size for name in groups[0]}
    network = of_share(team.rank)
    team.average_gradients(network)
    return {"mean": mean, "averaged": gradients_of(network)}

def penalty(network, images):
    images = images.requires_grad_()
    (slope,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
    return 10 * slope.square().sum((1, 2, 3)).mean()

def penalised(team):
    found = {}
    for name, member in (("whole", ALONE), ("share", team)):
        match = new_match("vanilla", member)
        network = match.game.discriminator.eval()
        penalty(network, match.batches.batch(48).images).backward()
        found[name] = gradients_of(network)
    team.average_gradients(network)
    found["averaged"] = gradients_of(network)
    match = new_match("vanilla", team)
    discriminator, generator = match.players
    def play(batch):
        outcome = discriminator.play(batch)
        return outcome._replace(loss=outcome.loss + penalty(match.game.discriminator, batch.images))
    match.players = replace(discriminator, play=play), generator
    for _ in range(20):
        match.play_round()
    return found | {"played": weights(match)}

def weights(match):
    return {name: parameter.detach().clone() for name, parameter in match.game.named_parameters()}

def play(team, family, state):
    match = new_match(family, team)
    first = weights(match)
    if team.leads:
        inputs = match.game.draw_inputs(loop.SAMPLES, torch.Generator().manual_seed(0))
        loop.train(match, inputs, state, Journal(state), lambda: False)
    else:
        loop.assist(match, state, 0)
    found = {"first": first, "last": weights(match), "images": match.images, "latents": match.game.draw_inputs(2)}
    match.team = ALONE
    match.play_round()
    return found | {"apart": weights(match)}

def wait_and_play(team, state):
    # The leader's turn comes late, and finds the checkpoint moved on.
    noted = state / "restored"
    if team.leads:
        deadline = time.monotonic() + 1
        while not noted.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        (state / checkpoint.FILE).write_bytes((state / "later").read_bytes())
    else:
        restore = checkpoint.restore
        checkpoint.restore = lambda match, folder: (restore(match, folder), noted.touch())
    try:
        return play(team, "vanilla", state)
    except RuntimeError as error:  # the leader came to its end
        return {"error": str(error)}

def go_back(team, state):
    # The last checkpoint is damaged, which the leader finds out late, and puts it aside.
    restore, noted = checkpoint.restore, state / "restored"
    if team.leads:
        deadline = time.monotonic() + 1
        while not noted.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    else:
        checkpoint.restore = lambda match, folder: (noted.touch(), restore(match, folder))
    found = play(team, "vanilla", state)
    checkpoint.restore = restore
    return found | {"aside": (state / "checkpoint.damaged-1").exists(), "noted": not team.leads or noted.exists()}

def disagree(team, state):
    # Folders that should be one are two, as with a path that is no shared volume on one of the nodes.
    match = new_match("vanilla", team)
    try:
        loop._restore(match, state if team.leads else state.with_name("elsewhere"))
    except RuntimeError as error:
        return {"error": str(error)}
    return {}

def finish(team, state):
    # Nothing is left to play, and the leader has put the state away when another comes to read it.
    match = new_match("vanilla", team)
    if team.leads:
        inputs = match.game.draw_inputs(loop.SAMPLES, torch.Generator().manual_seed(0))
        loop.train(match, inputs, state, Journal(state), lambda: False)
        shutil.rmtree(state)
    else:
        restore = checkpoint.restore
        checkpoint.restore = lambda match, folder: (time.sleep(0.5), restore(match, folder))
        try:
            loop.assist(match, state, 0)
        except RuntimeError as error:
            return {"error": str(error)}
    return {"last": weights(match)}

with joined_team(CPU, 8) as team:
    found = {"gradients": gradients(team), "grouped": grouped(team), "penalised": penalised(team)}
    for family in MODELS:
        for start in ("fresh", "resumed"):
            found[f"{family} {start}"] = play(team, family, Path(f"{family} {start}"))
    found["moved on"] = wait_and_play(team, Path("moved on"))
    found["damaged"] = go_back(team, Path("damaged"))
    found["apart"] = disagree(team, Path("apart"))
    found["finished"] = finish(team, Path("finished"))
write_found(found, Path(f"rank{team.rank}.safetensors"))
"""


def write_found(found: dict[str, Any], path: Path) -> None:
    """Write nested dictionaries of tensors, numbers and texts; `read_found` reads them."""
    tensors, texts = {}, {}

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}/")
            elif isinstance(value, str):
                texts[prefix + key] = value
            else:
                tensors[prefix + key] = torch.as_tensor(value).contiguous()

    walk(found, "")
    save_file(tensors, path, texts)


def read_found(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()} | (file.metadata() or {})  # noqa: SIM118
    found: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split("/")
        below = found
        for section in sections:
            below = below.setdefault(section, {})
        below[last] = value
    return found


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process of a team found: gradients of one batch, and matches from the start and from a checkpoint."""
    folder = tmp_path_factory.mktemp("played")
    for family in MODELS:
        trained_alone(80, folder / f"{family} resumed", family)
    trained_alone(80, folder / "moved on")
    trained_alone(120, folder / "later")
    trained_alone(160, folder / "finished")
    trained_alone(80, folder / "damaged")
    (folder / "damaged" / checkpoint.FILE).rename(folder / "damaged" / checkpoint.PREVIOUS)
    (folder / "damaged" / checkpoint.FILE).write_bytes(b"damaged")
    trained_alone(80, folder / "apart")
    (folder / "later" / checkpoint.FILE).rename(folder / "moved on" / "later")
    (folder / "plays.py").write_text(PLAYS)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        status = ended(torchrun("plays.py"))
    assert status == 0, (folder / "team.log").read_text()
    return [read_found(folder / f"rank{rank}.safetensors") for rank in range(PROCESSES)]


def test_the_mean_of_the_shares_is_the_gradient_of_the_whole_batch(played: list[dict[str, Any]]) -> None:
    for found in (rank["gradients"] for rank in played):
        torch.testing.assert_close(found["averaged"], found["whole"], rtol=0, atol=1e-6)
        for name, gradient in found["whole"].items():
            assert not torch.allclose(found["share"][name], gradient, rtol=0, atol=1e-4), "a share is not the whole"
    torch.testing.assert_close(played[0]["gradients"]["averaged"], played[1]["gradients"]["averaged"], rtol=0, atol=0)


def test_with_batch_norm_the_mean_is_that_of_the_same_groups_in_one_process(played: list[dict[str, Any]]) -> None:
    for found in (rank["grouped"] for rank in played):
        torch.testing.assert_close(found["averaged"], found["mean"], rtol=0, atol=1e-6)


def test_gradient_penalties_are_averaged_and_do_not_deadlock(played: list[dict[str, Any]]) -> None:
    for found in (rank["penalised"] for rank in played):
        torch.testing.assert_close(found["averaged"], found["whole"], rtol=0, atol=1e-6)
        assert max(gradient.abs().max() for gradient in found["whole"].values()) > 1e-3
    torch.testing.assert_close(*(rank["penalised"]["played"] for rank in played), rtol=0, atol=0)


@pytest.mark.parametrize("start", ["fresh", "resumed"])
@pytest.mark.parametrize("family", MODELS)
def test_processes_with_latents_of_their_own_stay_one_model(
    family: str, start: str, played: list[dict[str, Any]]
) -> None:
    one, other = (rank[f"{family} {start}"] for rank in played)
    assert one["images"] == other["images"] == MATCH["images"]
    torch.testing.assert_close(one["last"], other["last"], rtol=0, atol=0)
    assert not torch.equal(one["latents"], other["latents"])
    for name, weight in one["last"].items():
        assert not torch.equal(weight, one["first"][name])
        assert not torch.equal(one["apart"][name], other["apart"][name]), "without the mean they would part"


def test_all_go_on_from_the_checkpoint_that_the_leader_finds(played: list[dict[str, Any]]) -> None:
    """Though it was moved on while the leader waited: by a pod that was being deleted, say."""
    one, other = (rank["moved on"] for rank in played)
    assert "error" not in other
    torch.testing.assert_close(one["last"], other["last"], rtol=0, atol=0)


def test_all_go_back_to_the_same_checkpoint_for_damage(played: list[dict[str, Any]]) -> None:
    one, other = (rank["damaged"] for rank in played)
    assert one["aside"]
    torch.testing.assert_close(one["last"], other["last"], rtol=0, atol=0)


def test_processes_with_different_checkpoints_do_not_train(played: list[dict[str, Any]]) -> None:
    for rank in played:
        assert "the processes found different checkpoints" in rank["apart"]["error"]


def test_a_checkpoint_of_a_finished_training_ends_all_processes_well(played: list[dict[str, Any]]) -> None:
    """As after a kill between the last checkpoint and the weights."""
    one, other = (rank["finished"] for rank in played)
    assert "error" not in other
    torch.testing.assert_close(one["last"], other["last"], rtol=0, atol=0)


# The stage

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from ganflow import cli
from ganflow.training.match import Match

WHAT, RANK = sys.argv[1], int(os.environ["RANK"])
play_round = Match.play_round

def play_round_until_it_happens(match):
    if match.images == 600 and (WHAT, RANK) == ("dies", 1):
        Path("died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    if match.images == 600 and (WHAT, RANK) == ("is stopped", 0):
        os.kill(os.getppid(), signal.SIGTERM)
    play_round(match)

Match.play_round = play_round_until_it_happens
sys.exit(cli.main(["train"]))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits at 8 pixels, without a classifier, which training does not need."""
    folder = tmp_path_factory.mktemp("prepared")
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.2}
    source = open_source("digits", folder)
    pack(source, folder, name="digits", source_name="digits", packed_format=Format(1, 8), seed=0, **fractions)
    return folder


@pytest.fixture
def ready(repository: Path, prepared: Path) -> Path:
    """A repository whose data is prepared."""
    (repository / "params.yaml").write_text(json.dumps(TREE))
    shutil.copytree(prepared, repository / "artifacts" / "prepare")
    (repository / "script.py").write_text(SCRIPT)
    return repository


def state_of(repository: Path) -> Path:
    (state,) = (path for path in (repository / ".ganflow" / "train").iterdir() if path.is_dir())
    return state


def journal(state: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (state / "journal.jsonl").read_text().splitlines()]


def images_of(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="pt") as file:
        return int(file.metadata()["rounds"]) * 8


def test_the_stage_refuses_a_batch_that_cannot_be_divided(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "ganflow: train.batch_size: 8 cannot be divided by 3 processes\n"
    assert not (ready / ".ganflow" / "train").exists()


@pytest.mark.slow
def test_one_that_dies_ends_all_and_the_same_command_goes_on(ready: Path) -> None:
    """With one run in MLflow for both, and nothing told twice."""
    from mlflow import MlflowClient  # the processes of a team import this module too, and need no MLflow

    assert ended(torchrun("script.py", "dies")) != 0
    assert time.time() - float((ready / "died").read_text()) < 60
    state = state_of(ready)
    assert images_of(state / "checkpoint.safetensors") == 400
    run_id = json.loads((state / "run.json").read_text())["run_id"]
    assert not TRAINED.exists()

    assert ended(torchrun("--no-python", "ganflow", "train")) == 0, (ready / "team.log").read_text()
    assert not state.exists()
    assert json.loads((TRAINED / "run.json").read_text())["run_id"] == run_id
    client = MlflowClient(f"sqlite:///{ready}/mlflow.db")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    points = client.get_metric_history(run_id, "train/generator_loss")
    assert [point.step for point in points] == [200, 400, 600, 800, 1000]
    for name in ("generator", "generator_live", "discriminator"):
        assert all(torch.isfinite(weight).all() for weight in load_file(TRAINED / f"{name}.safetensors").values())
    assert [path.stem for path in sorted((TRAINED / "samples").iterdir())] == [f"{n:09d}" for n in (0, 400, 800, 1000)]


@pytest.mark.slow
def test_torchrun_that_is_stopped_leaves_a_checkpoint(ready: Path) -> None:
    """As when a pod is deleted: torchrun passes the signal on to all processes at once."""
    tree = {**TREE, "train": {**TREE["train"], "images": 1_000_000}}
    (ready / "params.yaml").write_text(json.dumps(tree))
    assert ended(torchrun("script.py", "is stopped")) != 0
    state = state_of(ready)
    last = journal(state)[-1]
    assert last["status"] == "KILLED"
    assert last["images"] > 600
    assert images_of(state / "checkpoint.safetensors") == last["images"]
