"""A trial is alone in its folder, and says what was wrong; what it keeps and goes on with, the quality's tests show."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from noise_folder import fill_with_noise

from ganflow.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import trials

    return trials


def test_a_plan_is_the_overlay_with_the_overrides(trials: ModuleType, tmp_path: Path) -> None:
    trial = trials.plan("digits-mlp", tmp_path / "one", ["train.images=5000", "seed=3"])

    assert (trial.params.model.family, trial.params.train.images, trial.params.seed) == ("vanilla", 5000, 3)
    assert trial.params.train.translation == 1  # of the overlay
    with pytest.raises(UserError, match="widht"):
        trials.plan("digits-dcgan", tmp_path / "two", ["model.widht=3"])


def test_a_command_that_fails_ends_it_with_a_word(trials: ModuleType, tmp_path: Path) -> None:
    trial = trials.plan("digits-mlp", tmp_path / "trial", [*fill_with_noise(tmp_path / "raw"), "data.root=nowhere"])

    with pytest.raises(SystemExit, match="`ganflow prepare` ended with status 2"):
        trials.run(trial)


# A benchmark that dies as soon as it has started a command.
_KILLED = """
import os, subprocess, sys, trials
subprocess.Popen.wait = lambda process: os._exit(9)
folder = trials.Path(sys.argv[1])
with trials._alone(folder) as lock:
    trials._ganflow(folder, lock, "schema")
"""


def test_a_command_that_outlives_its_benchmark_is_waited_for(
    trials: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT / 'src'}"}
    command = [sys.executable, "-c", _KILLED, tmp_path]
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 9

    with trials._alone(tmp_path):
        assert "waiting for its end" in capsys.readouterr().out
    with trials._alone(tmp_path):
        assert capsys.readouterr().out == ""  # nobody is there any more
