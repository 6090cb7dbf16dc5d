"""Runs in MLflow: one for each trained model, fed from the journal of its training.

Everything goes through MlflowClient: MLflow's fluent functions act on an active run, take it from the environment,
and end it with a status of their own when an exception passes.
"""

import logging
import os

# MLflow reads these when it is imported. It reports its use to its makers by default, which a pipeline on a closed
# cluster must not try; it prints links and bars of its own into our progress bar; and it retries for minutes, where the
# journal can wait and a person cannot.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

for _name, _level in {"alembic": "WARNING", "mlflow.store.db.utils": "CRITICAL", "urllib3": "ERROR"}.items():
    logging.getLogger(_name).setLevel(_level)  # what they report of a failure is in the one message that we give
