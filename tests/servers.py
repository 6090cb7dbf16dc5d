"""Real servers for tests, as processes that can die and come back."""

import base64
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar

import psycopg2

_LOCAL = "127.0.0.1"
_FOREIGN = ("MLFLOW_", "AWS_")  # settings for other servers, of the person who runs the tests


class _Server(ABC):
    """A process with a port and a log of its own."""

    _end: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self, log: Path) -> None:
        self._log = log
        with socket.socket() as free:
            free.bind((_LOCAL, 0))
            self._port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _answers(self) -> bool:
        """Say whether it takes requests."""

    def _launch(self, command: Sequence[str | Path], environment: Mapping[str, str], **options: Any) -> None:
        """Start the process and wait until it answers."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**inherited, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
                **options,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._answers():
                return
            time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"{command[0]} does not start:\n{self._log.read_text()}")

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):  # it has died by itself
                os.killpg(self._process.pid, self._end)
            self._process.wait()
            self._process = None


class MlflowServer(_Server):
    """`mlflow server` on a database in a file and a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "server.log")
        self.uri = f"http://{_LOCAL}:{self._port}"
        self._folder = folder
        self._store = f"sqlite:///{folder}/mlflow.db"
        self._artifacts = str(folder / "artifacts")
        self._options: list[str] = []
        self._environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", _LOCAL, "--port", str(self._port)]
        places = ["--backend-store-uri", self._store, "--artifacts-destination", self._artifacts]
        self._launch([*command, *places, "--workers", "1", *self._options], self._environment, cwd=self._folder)

    def _answers(self) -> bool:
        return _opens(f"{self.uri}/health")


def postgres_binaries() -> Path | None:
    """Find the folder that holds initdb and postgres: through PATH, else where Debian keeps them."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((each for each in folders if (each / "initdb").is_file() and (each / "postgres").is_file()), None)


def unprivileged() -> dict[str, Any]:
    """Give the options of a process for PostgreSQL, which refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class PostgresServer(_Server):
    """PostgreSQL that asks for a password, with two empty databases, in a folder that any account can reach."""

    databases = ("runs", "accounts")
    _end = signal.SIGQUIT  # its children are in sessions of their own: it ends them itself

    def __init__(self, folder: Path, binaries: Path) -> None:
        super().__init__(folder / "postgres.log")
        self._folder = folder
        self._binaries = binaries
        self._password = secrets.token_urlsafe()

    def uri(self, database: str) -> str:
        return f"postgresql+psycopg2://team:{self._password}@{_LOCAL}:{self._port}/{database}"

    def start(self) -> None:
        data = self._folder / "data"
        is_new = not data.exists()
        if is_new:
            self._initialise(data)
        address = ["-h", _LOCAL, "-p", str(self._port), "-c", "unix_socket_directories=", "-c", "fsync=off"]
        self._launch([self._binaries / "postgres", "-D", data, *address], {}, cwd=self._folder, **unprivileged())
        if is_new:
            for database in self.databases:
                self.query("postgres", f"CREATE DATABASE {database}")

    def query(self, database: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(self._connect(database)) as connection:
            connection.autocommit = True  # CREATE DATABASE allows no transaction
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []

    def _connect(self, database: str) -> Any:
        return psycopg2.connect(host=_LOCAL, port=self._port, user="team", password=self._password, dbname=database)

    def _initialise(self, data: Path) -> None:
        account, password = unprivileged(), self._folder / "password"
        password.write_text(self._password)
        if account:
            for path in (self._folder, password):
                os.chown(path, account["user"], account["group"])
        initdb: list[str | Path] = [self._binaries / "initdb", "-D", data, "--username", "team", "--pwfile", password]
        settings = ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"]
        done = subprocess.run([*initdb, *settings], cwd=self._folder, capture_output=True, check=False, **account)
        if done.returncode:
            raise RuntimeError(f"initdb fails:\n{done.stderr.decode()}")

    def _answers(self) -> bool:
        try:
            self._connect("postgres").close()
        except psycopg2.OperationalError:
            return False
        return True


class S3Server(_Server):
    """An S3 endpoint with one bucket, all in memory."""

    bucket = "team"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "s3.log")
        self._uri = f"http://{_LOCAL}:{self._port}"
        self.environment = {
            "MLFLOW_S3_ENDPOINT_URL": self._uri,
            "AWS_ACCESS_KEY_ID": "team",
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(),
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        self._launch([sys.executable, "-m", "moto.server", "-H", _LOCAL, "-p", str(self._port)], {})
        self._client().create_bucket(Bucket=self.bucket)

    def keys(self) -> list[str]:
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        content: bytes = self._client().get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return content

    def _client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self._uri,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
        )

    def _answers(self) -> bool:
        return _opens(f"{self._uri}/moto-api/")


class TeamServer(MlflowServer):
    """`mlflow server` as a team has it: accounts, runs in PostgreSQL, artifacts passed on to S3."""

    host = "mlflow.team.example"  # a name for it, beside its address

    def __init__(self, folder: Path, postgres: PostgresServer, s3: S3Server) -> None:
        super().__init__(folder)
        self.postgres, self.s3 = postgres, s3
        self._passwords = {"admin": secrets.token_urlsafe()}
        hosts = ",".join(f"{name},{name}:*" for name in (_LOCAL, self.host))
        accounts = folder / "accounts.ini"
        runs_database, accounts_database = map(postgres.uri, postgres.databases)
        self._store, self._artifacts = runs_database, f"s3://{s3.bucket}/artifacts"
        self._options = ["--app-name", "basic-auth", "--allowed-hosts", hosts]
        self._environment |= {
            **s3.environment,
            "MLFLOW_AUTH_CONFIG_PATH": str(accounts),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(),
        }
        # MLflow's own default, READ, lets nobody add a run to an experiment that somebody else made. The cache saves
        # hashing the password several times in each request, which takes longer than all the rest of it.
        accounts.write_text(
            "[mlflow]\n"
            "default_permission = EDIT\n"
            "auth_cache_ttl_seconds = 60\n"
            f"database_uri = {accounts_database}\n"
            "admin_username = admin\n"
            f"admin_password = {self._passwords['admin']}\n"
        )

    def add_user(self, name: str) -> None:
        """Make an ordinary account."""
        self._passwords[name] = secrets.token_urlsafe()
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/users/create",
            json.dumps({"username": name, "password": self._passwords[name]}).encode(),
            {"Content-Type": "application/json", "Authorization": self.authorization("admin")},
        )
        with urllib.request.urlopen(request):
            pass

    def settings(self, user: str) -> dict[str, str]:
        """Give the environment variables of somebody who works with this server."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": self._passwords[user],
        }

    def authorization(self, user: str) -> str:
        """Give the header of a request."""
        return "Basic " + base64.b64encode(f"{user}:{self._passwords[user]}".encode()).decode()


def _opens(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False
