import os
import subprocess
import sys
from pathlib import Path

import pytest

from ganflow import __version__, cli

COMMANDS = ("prepare", "train", "evaluate", "register", "sample", "sync", "experiment", "schema")
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
