"""Against MLflow as a team runs it: with accounts, its runs in PostgreSQL, its artifacts passed on to S3."""

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import mlflow
import numpy as np
import pytest
from repositories import ROOT, TINY
from servers import PostgresServer, S3Server, TeamServer, postgres_binaries

from ganflow.errors import UserError
from ganflow.tracking import store

MODEL = "digits-8px"
WRONG = "a-wrong-password"
PNG = b"\x89PNG"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeamServer]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: there is no folder with initdb and postgres")
    # Pytest's own folders are closed to the account of PostgreSQL, where that is another.
    with TemporaryDirectory(prefix="postgres-") as folder, ExitStack() as running:
        postgres = PostgresServer(Path(folder), binaries)
        s3 = S3Server(tmp_path_factory.mktemp("s3"))
        team = TeamServer(tmp_path_factory.mktemp("team"), postgres, s3)
        for server in (postgres, s3, team):
            running.callback(server.kill)
            server.start()
        for name in ("ann", "bob"):
            team.add_user(name)
        yield team


def sign_in(monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def run_pipeline(repository: Path, *more: str) -> tuple[int, str]:
    """Give the exit status of `python -m pipelines run`, and all that it says."""
    (repository / "params.yaml").write_text("model: {family: vanilla}\n")
    overrides = [part for override in TINY for part in ("-S", override)]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "run", *overrides, *more],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def ask(team: TeamServer, host: str, headers: Mapping[str, str]) -> int:
    """Give the status of an answer to a request that names this host."""
    with closing(http.client.HTTPConnection(urlsplit(team.uri).netloc, timeout=30)) as connection:
        connection.request("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host, **headers})
        return connection.getresponse().status


def test_pipeline_of_one_user_in_the_experiment_and_registered_model_of_another(
    team: TeamServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, team.settings("ann"))
    client = store.connect()  # asks in the name of whoever is signed in
    experiment = store.experiment_id(client, "ganflow")
    client.create_registered_model(MODEL)

    sign_in(monkeypatch, team.settings("bob"))
    status, said = run_pipeline(repository)
    assert status == 0, said
    assert team.settings("bob")["MLFLOW_TRACKING_PASSWORD"] not in said

    (run,) = client.search_runs([experiment])
    metrics = run.data.metrics
    assert run.info.status == "FINISHED"
    assert {"train/generator_loss", "train/discriminator_loss", "evaluate/fid"} <= metrics.keys()

    counted = "SELECT key, count(*) FROM metrics WHERE run_uuid = %s GROUP BY key"
    points = dict(team.postgres.query("runs", counted, run.info.run_id))
    assert points.keys() == metrics.keys()
    assert points["train/generator_loss"] == 4  # of 2000 images, one each 500
    assert ("bob",) in team.postgres.query("accounts", "SELECT username FROM users")

    keys = team.s3.keys()
    folder = f"artifacts/{experiment}/{run.info.run_id}/artifacts"
    samples = [key for key in keys if key.startswith(f"{folder}/images/samples") and key.endswith(".png")]
    assert samples
    for key in (*samples, f"{folder}/evaluation/samples.png", f"{folder}/evaluation/real_and_generated.png"):
        assert team.s3.read(key).startswith(PNG), key
    measured = json.loads(team.s3.read(f"{folder}/evaluation/metrics.json"))
    assert measured["fid"] == pytest.approx(metrics["evaluate/fid"])

    champion = client.get_model_version_by_alias(MODEL, "champion")
    assert champion.run_id == run.info.run_id
    model = str(champion.source).removeprefix("models:/")
    assert f"artifacts/{experiment}/models/{model}/artifacts/MLmodel" in keys

    sign_in(monkeypatch, team.settings("ann"))
    generator = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion")
    pictures = generator.predict(np.zeros((3, int(run.data.params["model.latent_dim"])), np.float32))
    assert pictures.shape == (3, 1, 8, 8)
    assert np.isfinite(pictures).all()


def test_wrong_password_is_refused_with_what_to_set(
    team: TeamServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, {**team.settings("ann"), "MLFLOW_TRACKING_PASSWORD": WRONG})
    advice = "refuses access .*set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    with pytest.raises(UserError, match=f"^{re.escape(team.uri)}: .*{advice}") as caught:
        store.connect()
    assert WRONG not in str(caught.value)

    status, said = run_pipeline(repository)
    assert status == 2
    assert said == f"pipelines: {caught.value}\n"
    assert WRONG not in said


def test_server_answers_to_its_own_names_alone(
    team: TeamServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = {"Authorization": team.authorization("ann")}
    names = (team.host, f"{team.host}:443", "127.0.0.1", urlsplit(team.uri).netloc)
    assert {name: ask(team, name, signed) for name in names} == dict.fromkeys(names, 200)
    assert {name: ask(team, name, {}) for name in names} == dict.fromkeys(names, 401)
    assert ask(team, "evil.example", signed) == 403

    sign_in(monkeypatch, team.settings("ann"))
    with pytest.raises(UserError, match=r"Invalid Host header.*--allowed-hosts"):
        store.connect(team.uri.replace("127.0.0.1", "localhost"))
