"""Where MLflow keeps the runs: found, made and opened; a failure of it is one clear message."""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ganflow.errors import UserError
from ganflow.home import home, locked
from ganflow.urls import public

REFUSED_CONTENT = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}
_REFUSED_ACCESS = {"PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"}
_STORE_PACKAGES = {"mlflow", "sqlalchemy", "sqlite3", "requests", "urllib3", "botocore", "boto3", "google", "azure"}
_PROBE_SECONDS = 10.0


def tracking_uri() -> str:
    """Name the MLflow store: MLFLOW_TRACKING_URI, else mlflow.db at home. A relative sqlite path starts at home."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    scheme, _, path = uri.partition(":///")
    if scheme == "sqlite" and path and not path.startswith(("/", ":")):
        # SQLAlchemy decodes the path: a folder whose name holds a percent or question mark would be another folder.
        root = str(home()).replace("%", "%25").replace("?", "%3F")
        return f"sqlite:///{root}/{path}"
    return uri


def connect(uri: str | None = None) -> MlflowClient:
    """Give a client of the store, which is made first where it is a missing local one.

    Raises UserError, within about ten seconds, where it cannot be used.
    """
    uri = uri or tracking_uri()
    with explained(uri):
        if _is_server(uri):
            _knock(uri)
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
        with locked("store"):
            if "://" in uri:
                _open_database(uri)
            return MlflowClient(uri)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn a failure of the store into one UserError that names it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not _is_the_stores(error):
            raise
        raise UserError(_explanation(uri, error)) from error


def experiment_id(client: MlflowClient, name: str) -> str:
    """Find the experiment, or make it. Raises UserError where it was deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(client, name)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # somebody else was faster
    if found is None or found.lifecycle_stage == "deleted":
        number = "ID" if found is None else found.experiment_id
        raise UserError(
            f"tracking.experiment: {name!r} was deleted in MLflow ({public(client.tracking_uri)}); restore it with "
            f"`mlflow experiments restore --experiment-id {number}`, or choose another name"
        )
    return str(found.experiment_id)


def find_run(client: MlflowClient, run_id: str | None) -> Run | None:
    """Find a run in this store; None where it is unknown or was deleted."""
    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in REFUSED_CONTENT:
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _knock(uri: str) -> None:
    """Ask a server for anything at all, which it may refuse: silence alone is an error."""
    parts = urlsplit(public(uri))
    if not parts.hostname:
        raise UserError(f"MLFLOW_TRACKING_URI: {public(uri)!r} names no host; it would be http://HOST:PORT")
    try:
        with urllib.request.urlopen(f"{parts.geturl().rstrip('/')}/health", timeout=_PROBE_SECONDS):
            pass
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if "CERTIFICATE" in str(reason):
            return  # MLflow has settings of its own for certificates
        raise UserError(
            f"{public(uri)}: the MLflow server does not answer ({reason}); start it or correct MLFLOW_TRACKING_URI "
            "(without it, runs go to mlflow.db in the repository)"
        ) from None


def _open_database(uri: str) -> None:
    """Connect once, as MLflow would: it tries ten times over two minutes before it says that it cannot."""
    path = sqlalchemy.make_url(uri).database
    if uri.startswith("sqlite:") and path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _artifact_location(client: MlflowClient, experiment: str) -> str | None:
    """Keep the artifacts of a local store at home; a server has a place of its own."""
    if _is_server(client.tracking_uri):
        return None
    return (home() / "mlartifacts" / re.sub(r"[^\w.-]+", "-", experiment)).as_uri()


def _is_the_stores(error: Exception) -> bool:
    return isinstance(error, OSError | ImportError) or type(error).__module__.partition(".")[0] in _STORE_PACKAGES


def _explanation(uri: str, error: Exception) -> str:
    message = public(" ".join(str(error).split("\n(Background on this error")[0].split()))[:400]
    if isinstance(error, MlflowException) and message.endswith("Permission denied"):
        return (
            f"{public(uri)}: this account may not do that in MLflow ({message}); ask the owner of the experiment or of "
            "the registered model, or an administrator, for the permission EDIT"
        )
    if isinstance(error, MlflowException) and error.error_code in _REFUSED_ACCESS:
        advice = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; "
            "a server that refuses the host name is to be started with --allowed-hosts"
        )
        return f"{public(uri)}: the MLflow server refuses access ({message}); {advice}"
    return (
        f"{public(uri)}: MLflow cannot use this store ({message}); correct MLFLOW_TRACKING_URI, or unset it for "
        "mlflow.db in the repository"
    )
