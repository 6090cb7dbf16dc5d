"""The containers of the overlay `local`, with their own commands and environments: server, database, store, jobs."""

import base64
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import psycopg2
import pytest
import requests
from botocore.exceptions import ClientError
from manifests import Containers, Process, clean_environment, find, render
from servers import postgres_binaries, unprivileged

HOST = "127.0.0.1"
ALLOWED = [
    "mlflow",
    "mlflow.ganflow",
    "mlflow.ganflow.svc",
    "mlflow.ganflow.svc.cluster.local",
    "localhost",
    "127.0.0.1",
]
EXPERIMENTS = "/api/2.0/mlflow/experiments/search?max_results=5"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def free_port() -> int:
    """Find a port; weed opens the one 10,000 above it, too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind((HOST, 0))
            port: int = first.getsockname()[1]
            if port > 55000:
                port -= 20000
            try:
                second.bind((HOST, port + 10000))
            except OSError:
                continue
            return port


class Deployed:
    """All of k8s/overlays/local that is a server, on this machine."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("postgres", "object-store", "mlflow")}
        services = {
            "postgres:5432": f"{HOST}:{self.ports['postgres']}",
            "object-store:8333": f"{HOST}:{self.ports['object-store']}",
            "mlflow:5000": f"{HOST}:{self.ports['mlflow']}",
        }
        self.resources = render("local")
        self.containers = Containers(self.resources, folder, services)
        self.uri = f"http://{HOST}:{self.ports['mlflow']}"
        self._path = f"{Path(sys.executable).parent}{os.pathsep}{binaries}{os.pathsep}{os.environ['PATH']}"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def secret(self, name: str, key: str) -> str:
        return base64.b64decode(find(self.resources, "Secret", name, "ganflow")["data"][key]).decode()

    def start(
        self, workload: str, name: str, replaced: dict[str, str], more: Sequence[str] = (), **options: Any
    ) -> None:
        process = self.containers.process(workload, name)
        command = [replaced.get(word, word) for word in process.command] + list(more)
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                env=self._environment(process) | {"PGPORT": str(self.ports["postgres"])},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **options,
            )

    def run(self, workload: str, name: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a job to its end."""
        process = self.containers.process(workload, name, **more)
        environment = self._environment(process)
        if "PGHOST" in environment:
            environment |= {"PGHOST": HOST, "PGPORT": str(self.ports["postgres"])} | more
        return subprocess.run(
            process.command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False
        )

    def start_store(self) -> None:
        port = self.ports["object-store"]
        inner = [f"-{part}.port={free_port()}" for part in ("master", "volume", "filer")]
        outer = {"-s3.ip.bind=0.0.0.0": f"-s3.ip.bind={HOST}", "-s3.port=8333": f"-s3.port={port}"}
        self.start("Deployment/object-store", "seaweedfs", outer, inner)
        self.wait("seaweedfs", lambda: requests.get(f"http://{HOST}:{port}/status", timeout=5).ok)

    def start_mlflow(self) -> None:
        port = str(self.ports["mlflow"])
        self.start("Deployment/mlflow", "server", {"0.0.0.0": HOST, "5000": port})
        self.wait("server", lambda: self.ask("/health", host=f"{HOST}:{port}") == 200)

    def wait(self, name: str, answers: Any) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._running[name].poll() is None:
            with suppress(OSError, psycopg2.Error):
                if answers():
                    return
            time.sleep(0.2)
        raise AssertionError(f"{name} does not start:\n{(self.folder / f'{name}.log').read_text()[-4000:]}")

    def stop(self, name: str, number: signal.Signals, patience: float = 30.0) -> float:
        """Send a signal to the container's first process, and give the seconds until it has gone."""
        process = self._running.pop(name)
        started = time.monotonic()
        process.send_signal(number)
        process.wait(timeout=patience)
        return time.monotonic() - started

    def kill(self) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def ask(self, path: str, *, host: str, account: str = "", password: str = "") -> int:
        headers = {"Host": host}
        if account:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{account}:{password}".encode()).decode()
        with closing(http.client.HTTPConnection(HOST, self.ports["mlflow"], timeout=30)) as connection:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status

    def query(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        settings = {"host": HOST, "port": self.ports["postgres"], "user": "mlflow", "dbname": database}
        secret = self.secret("postgres", "PGPASSWORD")
        with closing(psycopg2.connect(password=secret, **settings)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    def _environment(self, process: Process) -> dict[str, str]:
        return clean_environment() | process.environment | {"PATH": self._path}


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: there is no folder with initdb and postgres")
    # Below /tmp, since the account of PostgreSQL is another, and cannot enter pytest's own folders.
    with TemporaryDirectory(prefix="ganflow-k8s-") as folder:
        account = unprivileged()
        Path(folder).chmod(0o755)
        claims = Path(folder) / "claims" / "postgres"
        claims.mkdir(parents=True)
        sockets = Path(folder) / "volumes" / "tmp"
        sockets.mkdir(parents=True)
        if account:
            for path in (claims, sockets):
                os.chown(path, account["user"], account["group"])
        deployed = Deployed(Path(folder), binaries)
        try:
            deployed.start(
                "StatefulSet/postgres", "postgres", {"listen_addresses=*": f"listen_addresses={HOST}"}, **account
            )
            deployed.start_store()
            deployed.wait("postgres", lambda: deployed.query("accounts", "SELECT 1"))
            made = deployed.run("Deployment/mlflow", "bucket")
            assert made.returncode == 0, made.stderr
            deployed.start_mlflow()
            account_made = deployed.run("Job/mlflow-account", "account")
            assert account_made.returncode == 0, account_made.stderr
            yield deployed
        finally:
            deployed.kill()


def password(deployed: Deployed) -> str:
    return deployed.secret("ganflow-mlflow", "MLFLOW_TRACKING_PASSWORD")


def test_it_answers_to_its_names_in_the_cluster_and_to_no_others(deployed: Deployed) -> None:
    names = [*ALLOWED, *(f"{name}:5000" for name in ALLOWED)]
    signed = {"account": "pipelines", "password": password(deployed)}
    assert {name: deployed.ask(EXPERIMENTS, host=name, **signed) for name in names} == dict.fromkeys(names, 200)
    assert {name: deployed.ask(EXPERIMENTS, host=name) for name in names} == dict.fromkeys(names, 401)
    others = [
        "evil.example",
        "mlflow.kubeflow",
        "mlflow.ganflow.svc.evil.example:5000",
        "10.0.0.7:5000",
        "mlflow-server",
    ]
    assert {name: deployed.ask(EXPERIMENTS, host=name, **signed) for name in others} == dict.fromkeys(others, 403)
    assert deployed.ask("/health", host="10.0.0.7:5000") == 200  # a probe has the pod's own address


@pytest.mark.parametrize("account", ["pipelines", "admin", "nobody"])
def test_a_wrong_password_is_refused(deployed: Deployed, account: str) -> None:
    assert deployed.ask(EXPERIMENTS, host="localhost", account=account, password="wrong") == 401


def test_the_pipelines_account_is_no_administrator(deployed: Deployed) -> None:
    listed = "/api/2.0/mlflow/users/get?username=admin"
    assert deployed.ask(listed, host="localhost", account="pipelines", password=password(deployed)) == 403
    admin = deployed.secret("mlflow-admin", "MLFLOW_AUTH_ADMIN_PASSWORD")
    assert deployed.ask(listed, host="localhost", account="admin", password=admin) == 200


def test_the_account_is_made_once_and_keeps_its_password(deployed: Deployed) -> None:
    again = deployed.run("Job/mlflow-account", "account")
    assert (again.returncode, again.stderr) == (0, "")
    assert "the account pipelines is there" in again.stdout
    changed = deployed.run("Job/mlflow-account", "account", ACCOUNT="ann", ACCOUNT_PASSWORD="first-password-1")
    assert changed.returncode == 0, changed.stderr
    changed = deployed.run("Job/mlflow-account", "account", ACCOUNT="ann", ACCOUNT_PASSWORD="second-password-2")
    assert changed.returncode == 0, changed.stderr
    assert deployed.ask(EXPERIMENTS, host="localhost", account="ann", password="second-password-2") == 200
    refused = deployed.run("Job/mlflow-account", "account", MLFLOW_TRACKING_PASSWORD="wrong-password")
    assert refused.returncode == 1
    assert "401" in refused.stderr


def test_the_bucket_is_made_once_and_refused_keys_are_named(deployed: Deployed) -> None:
    again = deployed.run("Deployment/mlflow", "bucket")
    assert (again.returncode, again.stderr) == (0, "")
    assert "the bucket mlflow is there" in again.stdout
    refused = deployed.run("Deployment/mlflow", "bucket", AWS_SECRET_ACCESS_KEY="wrong")
    assert refused.returncode == 1
    assert "its keys are those of the Secret object-store" in refused.stderr


def objects(deployed: Deployed) -> dict[str, bytes]:
    store = boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}:{deployed.ports['object-store']}",
        aws_access_key_id=deployed.secret("object-store", "AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=deployed.secret("object-store", "AWS_SECRET_ACCESS_KEY"),
        region_name="us-east-1",
    )
    listed = store.list_objects_v2(Bucket="mlflow").get("Contents", [])
    return {entry["Key"]: store.get_object(Bucket="mlflow", Key=entry["Key"])["Body"].read() for entry in listed}


def objects_after_a_start(deployed: Deployed) -> dict[str, bytes]:
    """Read all objects as soon as the store does: on a busy machine it answers before it has found its volumes."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return objects(deployed)
        except ClientError as error:
            if error.response["Error"]["Code"] != "InternalError" or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def log_run(deployed: Deployed, name: str) -> str:
    """Log a run with an artifact as the pipelines' account does, in a process of its own; give its id."""
    script = (
        "import mlflow, sys\n"
        f"mlflow.set_experiment({name!r})\n"
        "with mlflow.start_run() as run:\n"
        "    mlflow.log_metric('fid', 7.5)\n"
        f"    mlflow.log_text({name!r}, 'note.txt')\n"
        "print(run.info.run_id)\n"
    )
    environment = clean_environment() | {
        "MLFLOW_TRACKING_URI": deployed.uri,
        "MLFLOW_TRACKING_USERNAME": "pipelines",
        "MLFLOW_TRACKING_PASSWORD": password(deployed),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=deployed.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_artifacts_pass_through_the_server_into_the_bucket(deployed: Deployed) -> None:
    run = log_run(deployed, "passed-on")
    ((key, content),) = ((key, content) for key, content in objects(deployed).items() if run in key)
    assert re.fullmatch(rf"artifacts/\d+/{run}/artifacts/note\.txt", key)
    assert content == b"passed-on"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_store_loses_nothing(deployed: Deployed, number: signal.Signals) -> None:
    run = log_run(deployed, f"before-{number.name}")
    assert deployed.stop("seaweedfs", number) < 20  # well within the 30 s that Kubernetes gives
    deployed.start_store()
    (content,) = (content for key, content in objects_after_a_start(deployed).items() if run in key)
    assert content == f"before-{number.name}".encode()
    log_run(deployed, f"after-{number.name}")


def test_the_store_gives_nothing_to_strangers(deployed: Deployed) -> None:
    log_run(deployed, "kept")
    for path in ("", "mlflow", f"mlflow/{next(iter(objects(deployed)))}"):
        assert requests.get(f"http://{HOST}:{deployed.ports['object-store']}/{path}", timeout=10).status_code == 403


def test_the_database_lets_in_the_servers_account_alone(deployed: Deployed) -> None:
    for user, secret in (
        ("mlflow", "wrong"),
        ("postgres", ""),
        ("postgres", deployed.secret("postgres", "PGPASSWORD")),
    ):
        with pytest.raises(psycopg2.OperationalError):
            psycopg2.connect(host=HOST, port=deployed.ports["postgres"], user=user, password=secret, dbname="mlflow")
    assert deployed.query("mlflow", "SHOW data_checksums") == [("on",)]
    assert deployed.query("mlflow", "SELECT rolsuper FROM pg_roles WHERE rolname = 'mlflow'") == [(False,)]


def test_migrate_leaves_the_present_schema_alone(deployed: Deployed) -> None:
    before = deployed.query("mlflow", "SELECT version_num FROM alembic_version")
    migrated = deployed.run("CronJob/migrate", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    assert deployed.query("mlflow", "SELECT version_num FROM alembic_version") == before


def test_a_backup_brings_back_what_was_there(deployed: Deployed) -> None:
    kept = log_run(deployed, "before")
    saved = deployed.run("CronJob/back-up", "database")
    assert saved.returncode == 0, saved.stderr
    (name,) = re.findall(r"/(\d{8}T\d{6}Z):", saved.stdout)
    log_run(deployed, "after")

    refused = deployed.run("CronJob/restore", "database", PATIENCE="1")
    assert refused.returncode == 2
    assert "scale deployment mlflow --replicas 0" in refused.stderr
    assert deployed.stop("server", signal.SIGTERM) < 20  # well within the 30 s that Kubernetes gives

    absent = deployed.run("CronJob/restore", "database", BACKUP="20200101T000000Z")
    assert absent.returncode == 2
    assert name in absent.stderr
    restored = deployed.run("CronJob/restore", "database")
    assert restored.returncode == 0, restored.stderr
    assert f"{name} is in place" in restored.stdout

    deployed.start_mlflow()
    names = {row[0] for row in deployed.query("mlflow", "SELECT name FROM experiments")}
    assert "before" in names
    assert "after" not in names
    assert deployed.query("mlflow", f"SELECT status FROM runs WHERE run_uuid = '{kept}'") == [("FINISHED",)]
    assert deployed.ask(EXPERIMENTS, host="localhost", account="pipelines", password=password(deployed)) == 200
    databases = {row[0] for row in deployed.query("postgres", "SELECT datname FROM pg_database")}
    (replaced,) = (database for database in databases if database.startswith("mlflow_before_"))
    assert ("after",) in deployed.query(replaced, "SELECT name FROM experiments")
    log_run(deployed, "later")


def test_only_the_newest_backups_are_kept(deployed: Deployed) -> None:
    folder = deployed.folder / "claims" / "backups"
    for old in ("20200101T000000Z", "20210101T000000Z"):
        (folder / old).mkdir(parents=True)
    (folder / ".20220101T000000Z.new").mkdir()
    saved = deployed.run("CronJob/back-up", "database", KEEP="2")
    assert saved.returncode == 0, saved.stderr
    left = sorted(path.name for path in folder.iterdir())
    assert len(left) == 2
    assert not {"20200101T000000Z", "20210101T000000Z", ".20220101T000000Z.new"} & set(left)


def test_data_of_another_postgresql_are_not_touched(deployed: Deployed, tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("9\n")
    process = deployed.containers.process("StatefulSet/postgres", "postgres", PGDATA=str(tmp_path))
    done = subprocess.run(
        process.command, env=deployed._environment(process), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "the data are of PostgreSQL 9, this image has" in done.stderr


def test_the_check_says_what_a_run_would_find(deployed: Deployed, tmp_path: Path) -> None:
    found = deployed.run("CronJob/ganflow-check", "check", MLFLOW_TRACKING_URI=deployed.uri)
    assert found.returncode == 0, found.stdout + found.stderr
    assert len(re.findall("can be written by user", found.stdout)) == 2
    assert f"{deployed.uri}: answers to pipelines" in found.stdout

    wrong = deployed.run(
        "CronJob/ganflow-check", "check", MLFLOW_TRACKING_URI=deployed.uri, MLFLOW_TRACKING_PASSWORD="wrong"
    )
    assert wrong.returncode == 1
    assert "refuses access" in wrong.stdout
    assert "Traceback" not in wrong.stderr

    process = deployed.containers.process("CronJob/ganflow-check", "check", MLFLOW_TRACKING_URI=deployed.uri)
    (tmp_path / "no-folder").touch()
    command = [sys.executable, process.command[1], str(tmp_path / "no-folder")]
    environment = clean_environment() | process.environment
    unusable = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert unusable.returncode == 1
    assert f"{tmp_path}/no-folder: cannot be written by user {os.getuid()}" in unusable.stdout
