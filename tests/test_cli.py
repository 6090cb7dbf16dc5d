import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ganflow import __version__, cli

COMMANDS = ("prepare", "train", "evaluate", "register", "sample", "summary", "sync", "experiment", "schema")
HEAVY = ("torch", "mlflow", "numpy", "sklearn", "pydantic", "PIL")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_help_is_quick_because_it_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
from ganflow.cli import main
try:
    main(["--help"])
finally:
    print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    text, _, imported = done.stdout.rpartition("imported:")
    assert imported.strip() == ""
    assert done.stderr == ""
    assert set(COMMANDS) <= set(text.split())


def test_the_installed_command(tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "ganflow"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == f"ganflow {__version__}\n"
    done = subprocess.run([command, "nonsense"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'nonsense'" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: ganflow {command} [-h]")
    assert any(len(line) > 30 and line[0].islower() and not line.startswith("usage") for line in lines if line)
    if command in {"prepare", "train", "evaluate", "register"}:
        assert any("--params FILE" in line for line in lines)
        assert any("-S KEY.PATH=VALUE" in line for line in lines)


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end with status 2 and one message, and give the message."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ganflow: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate", "register"])
def test_without_a_params_file(command: str, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = "ganflow: params.yaml: there is no such file; run from the repository's root or give --params\n"
    assert told([command], capsys) == expected
    assert told([command, "--params", "mine.yaml"], capsys).startswith("ganflow: mine.yaml: there is no such file")
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "evaluate", "register"])
def test_without_prepared_data(command: str, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty / "params.yaml").write_text("model: {family: vanilla}\n")
    message = told([command], capsys)
    assert message == "ganflow: artifacts/prepare/card.json: there is no data card; run `ganflow prepare` first\n"


def test_overrides_reach_the_parameters(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty / "mine.yaml").write_text("model: {family: vanilla}\n")
    assert cli.main(["train", "--params", "mine.yaml", "-S", "seed=x", "-S", "train.images=0"]) == 2
    assert capsys.readouterr().err == (
        "ganflow: mine.yaml: 2 to put right:\n"
        "  seed: should be a valid integer, not 'x'\n"
        "  train.images: should be greater than or equal to 1, not 0\n"
    )


@pytest.mark.parametrize("number", ["0", "-3"])
def test_no_workers(empty: Path, capsys: pytest.CaptureFixture[str], number: str) -> None:
    assert told(["prepare", "--workers", number], capsys) == f"ganflow: --workers {number}: must be at least 1\n"


def test_ctrl_c(empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_prepare", interrupted)
    assert cli.main(["prepare"]) == 130
    assert capsys.readouterr().err == "ganflow: stopped\n"


def test_schema_is_the_committed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    committed = Path(__file__).parents[1] / "params.schema.json"
    assert capsys.readouterr().out == committed.read_text(encoding="utf-8")


def test_sync_with_nothing_to_send(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sync"]) == 0
    assert capsys.readouterr().out == "ganflow: 0 journal lines sent\n"


# Several seeds


@pytest.fixture
def two_seeds(repository: Path) -> list[str]:
    """Two runs with evaluations in the store, and their ids."""
    from mlflow import MlflowClient

    (repository / "params.yaml").write_text("model: {family: dcgan}\ntracking: {experiment: mine}\n")
    client = MlflowClient(f"sqlite:///{repository}/mlflow.db")
    experiment = client.create_experiment("mine")
    made = []
    for seed, fid in enumerate([6.0, 7.0]):
        run = client.create_run(experiment, tags={"ganflow.kind": "training", "ganflow.protocol": "sha256:0123456789"})
        values = {
            "seed": seed,
            "data.name": "",
            "data.source": "digits",
            "data.resolution": 16,
            "model.family": "dcgan",
        }
        for key, value in values.items():
            client.log_param(run.info.run_id, key, value)
        client.log_metric(run.info.run_id, "evaluate/fid", fid)
        client.set_terminated(run.info.run_id)
        made.append(run.info.run_id)
    return made


def test_summary(two_seeds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", "--json", "summary.json"]) == 0
    assert capsys.readouterr().out == (
        "digits-16px-dcgan\n"
        "2 runs, seeds 0, 1; protocol 01234567\n"
        "\n"
        "  metric        mean ± deviation  n\n"
        "  evaluate/fid  6.50 ± 0.71       2\n"
    )
    tree = json.loads(Path("summary.json").read_text(encoding="utf-8"))
    assert tree["experiment"] == "mine"
    assert tree["configurations"][0]["runs"] == {"0": two_seeds[0], "1": two_seeds[1]}


@pytest.mark.usefixtures("two_seeds")
def test_summary_of_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", "-S", "seed=1", "--experiment", "mine", "--params", "none.yaml"]) == 0
    assert "1 run, seed 1;" in capsys.readouterr().out
    assert "no evaluated run has this; there is seed=0, 1\n" in told(["summary", "-S", "seed=2"], capsys)
    assert "which has mine, Default" in told(["summary", "--experiment", "theirs"], capsys)
    assert "nowhere/x.json: cannot be written" in told(["summary", "--json", "nowhere/x.json"], capsys)


def test_summary_without_params_or_store(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(["summary"], capsys).startswith("ganflow: params.yaml: there is no such file")
    assert "mlflow.db: there is no such store of runs yet" in told(["summary", "--experiment", "mine"], capsys)
    assert list(empty.iterdir()) == []


@pytest.fixture
def made_with(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs make with stand-ins for dvc and ganflow, and gives its exit status and what they were called with."""
    commands = tmp_path / "environment" / "bin"
    commands.mkdir(parents=True)
    (commands / "ganflow").write_text('#!/bin/sh\necho ganflow "$@" >> calls\n')
    # As DVC does, it writes the seed into params.yaml and changes the way in which the rest of it is written.
    (commands / "dvc").write_text(
        '#!/bin/sh\necho dvc "$@" "with" $(cat params.yaml) >> calls\n'
        'case "$*" in *seed=*) echo "seed: changed" > params.yaml ;; esac\n'
        'case "$*" in *seed=13) exit 3 ;; *seed=14) kill -TERM $PPID ;; esac\n'
    )
    for command in commands.iterdir():
        command.chmod(0o755)
    (tmp_path / "params.yaml").write_text('seed: 5 # "five"\n')
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    (tmp_path / "environment" / ".ready").touch()

    def make(*arguments: str) -> tuple[int, str]:
        makefile = Path(__file__).parents[1] / "Makefile"
        environment = {name: value for name, value in os.environ.items() if name not in {"SEEDS", "SET", "EXPERIMENT"}}
        done = subprocess.run(
            ["make", "-f", makefile, "VENV=environment", "repro", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,
        )
        calls = tmp_path / "calls"
        return done.returncode, calls.read_text() if calls.exists() else ""

    return make


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


@needs_make
def test_repro_runs_dvc_alone(made_with: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    assert made_with() == (0, 'dvc repro with seed: 5 # "five"\n')
    assert not (tmp_path / ".ganflow").exists()


@needs_make
def test_repro_with_seeds_ends_with_the_summary_and_the_old_params(
    made_with: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    assert made_with("SEEDS=0 11", "SET=a.b=1") == (
        0,
        "ganflow experiment digits-dcgan -S a.b=1\n"
        'dvc exp run -S seed=0 with seed: 5 # "five"\n'
        "dvc exp run -S seed=11 with seed: changed\n"
        "ganflow summary\n",
    )
    assert (tmp_path / "params.yaml").read_text() == 'seed: 5 # "five"\n'
    assert list((tmp_path / ".ganflow").iterdir()) == []


@needs_make
@pytest.mark.parametrize("seed", [13, 14])
def test_repro_with_a_seed_that_fails_or_is_stopped(
    made_with: Callable[..., tuple[int, str]], tmp_path: Path, seed: int
) -> None:
    status, calls = made_with(f"SEEDS=0 {seed} 2")
    assert status == 2
    assert [line.split(" with")[0] for line in calls.splitlines()] == [
        "dvc exp run -S seed=0",
        f"dvc exp run -S seed={seed}",
    ]
    assert (tmp_path / "params.yaml").read_text() == 'seed: 5 # "five"\n'
