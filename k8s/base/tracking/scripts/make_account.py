"""Make the MLflow account ACCOUNT with ACCOUNT_PASSWORD, or give it that password, once the server answers."""

import os
import sys
import time

import requests

PATIENCE = 600.0  # seconds
_USERS = "/api/2.0/mlflow/users"


def main() -> None:
    """Exit with 1 and the server's own words where it refuses, or does not answer in time."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    admin = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
    account, password = os.environ["ACCOUNT"], os.environ["ACCOUNT_PASSWORD"]

    deadline = time.monotonic() + PATIENCE
    while not _answers(uri):
        if time.monotonic() > deadline:
            sys.exit(f"{uri}: does not answer; is the pod of mlflow ready?")
        print(f"{uri}: not yet", flush=True)
        time.sleep(3)

    named = {"username": account}
    found = requests.get(f"{uri}{_USERS}/get", params=named, auth=admin, timeout=30)
    if found.status_code == 404:
        made = requests.post(f"{uri}{_USERS}/create", json={**named, "password": password}, auth=admin, timeout=30)
    else:
        _require(found)
        content = {**named, "password": password}
        made = requests.patch(f"{uri}{_USERS}/update-password", json=content, auth=admin, timeout=30)
    _require(made)
    print(f"{uri}: the account {account} is there")


def _answers(uri: str) -> bool:
    try:
        return bool(requests.get(f"{uri}/health", timeout=5))
    except requests.RequestException:
        return False


def _require(answer: requests.Response) -> None:
    if not answer.ok:
        sys.exit(f"{answer.url}: {answer.status_code}: {answer.text.strip()[:300]}")


if __name__ == "__main__":
    main()
