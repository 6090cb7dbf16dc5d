"""The API of Kubeflow Pipelines: submit, follow, schedule; a failure of it is one clear message.

kfp.Client has no time limit on its requests and asks a dead server five times before it says so; here are the
generated calls below it, each with a limit.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import kfp_server_api as kfp_api
import urllib3
from google.protobuf.json_format import MessageToDict
from kfp.client.token_credentials_base import TokenCredentialsBase
from kfp.dsl.base_component import BaseComponent
from urllib3.exceptions import NewConnectionError

from ganflow.errors import UserError

SUCCEEDED: Final = "SUCCEEDED"
_ENDS = {SUCCEEDED, "FAILED", "CANCELED", "SKIPPED"}
_REASONS = {
    401: "the token is missing, wrong or has expired; give a new one with --token-file",
    403: "the token's user may not do this in the namespace; ask for the role kubeflow-edit there, or correct "
    "--namespace",
    404: "there is no such thing at this address; correct --host, which may need a path such as /pipeline",
}


class Api:
    """One server of Kubeflow Pipelines."""

    def __init__(
        self,
        host: str,
        namespace: str = "",
        *,
        token: str = "",
        credentials: TokenCredentialsBase | None = None,
        ca_certificate: str = "",
        timeout: int = 30,
    ) -> None:
        """`host` is a URL; `timeout` is in seconds, for a single request."""
        if not host.startswith(("http://", "https://")):
            raise UserError(f"--host {host}: must begin with http:// or https://")
        configuration = kfp_api.Configuration(host=host.rstrip("/"))
        configuration.retries = False
        configuration.ssl_ca_cert = ca_certificate or None
        if token or credentials:
            configuration.api_key["authorization"] = token
            configuration.api_key_prefix["authorization"] = "Bearer"
        if credentials:
            configuration.refresh_api_key_hook = credentials.refresh_api_key_hook
        self.host = configuration.host
        self._namespace = namespace
        self._timeout = timeout
        client = kfp_api.ApiClient(configuration)
        self._health = kfp_api.HealthzServiceApi(client)
        self._experiments = kfp_api.ExperimentServiceApi(client)
        self._runs = kfp_api.RunServiceApi(client)
        self._recurring = kfp_api.RecurringRunServiceApi(client)

    def check(self) -> None:
        """Ask whether the server is there, and lets us in. Raises UserError where it does not."""
        health, _, headers = self._call(self._health.healthz_service_get_healthz_with_http_info)
        if "json" not in headers.get("Content-Type", ""):
            raise UserError(
                f"{self.host}: is not Kubeflow Pipelines, or shows a login page; correct --host or the token"
            )
        if health.multi_user and not self._namespace:
            raise UserError(f"{self.host}: has a namespace for each user; name yours with --namespace")
        if not health.multi_user:
            self._namespace = ""  # such a server refuses to filter by it
        self._call(self._experiments.experiment_service_list_experiments, page_size=1, **self._of_namespace())

    def submit(
        self, pipeline: BaseComponent, parameters: Mapping[str, Any], name: str, experiment: str, service_account: str
    ) -> str:
        """Start a run, and give its id."""
        run = kfp_api.V2beta1Run(
            display_name=name,
            experiment_id=self._experiment(experiment),
            pipeline_spec=_spec(pipeline),
            runtime_config=kfp_api.V2beta1RuntimeConfig(parameters=dict(parameters)),
            service_account=service_account or None,
        )
        return str(self._call(self._runs.run_service_create_run, run).run_id)

    def schedule(  # noqa: PLR0917
        self,
        pipeline: BaseComponent,
        parameters: Mapping[str, Any],
        name: str,
        experiment: str,
        service_account: str,
        cron: str,
    ) -> str:
        """Start a run again and again, by a cron expression of six fields, seconds first; give the schedule's id."""
        recurring = kfp_api.V2beta1RecurringRun(
            display_name=name,
            experiment_id=self._experiment(experiment),
            pipeline_spec=_spec(pipeline),
            runtime_config=kfp_api.V2beta1RuntimeConfig(parameters=dict(parameters)),
            service_account=service_account or None,
            max_concurrency="1",
            no_catchup=True,
            mode=kfp_api.RecurringRunMode.ENABLE,
            trigger=kfp_api.V2beta1Trigger(cron_schedule=kfp_api.V2beta1CronSchedule(cron=cron)),
        )
        made = self._call(self._recurring.recurring_run_service_create_recurring_run, recurring)
        return str(made.recurring_run_id)

    def schedules(self) -> Iterator[tuple[str, str, str, str]]:
        """List the schedules: id, name, cron expression, and whether it is on."""
        token = ""
        while True:
            page = self._call(
                self._recurring.recurring_run_service_list_recurring_runs,
                page_size=100,
                page_token=token,
                **self._of_namespace(),
            )
            for entry in page.recurring_runs or ():
                cron = entry.trigger.cron_schedule.cron if entry.trigger and entry.trigger.cron_schedule else ""
                yield entry.recurring_run_id, entry.display_name, cron, entry.status or "?"
            token = page.next_page_token or ""
            if not token:
                return

    def stop_schedule(self, schedule_id: str) -> None:
        """End a schedule. Runs that it has started go on."""
        self._call(self._recurring.recurring_run_service_delete_recurring_run, schedule_id)

    def address(self, run_id: str) -> str:
        """Address of a run's page."""
        return f"{self.host}/#/runs/details/{run_id}"

    def follow(
        self,
        run_id: str,
        say: Callable[[str], None],
        pause: float = 5.0,
        patience: float = 600.0,
    ) -> str:
        """Wait for a run to end, saying when a task changes its state, and give the state of the run.

        A server that does not answer for less than `patience` seconds is waited for: the run goes on without us.
        """
        shown: dict[str, str] = {}
        answered = time.monotonic()
        while True:
            try:
                run = self._call(self._runs.run_service_get_run, run_id)
                answered = time.monotonic()
            except UserError as error:
                if not isinstance(error, _OutageError) or time.monotonic() - answered > patience:
                    raise
                say(f"{error}; asking again")
            else:
                for task, state in _states(run).items():
                    if shown.get(task) != state:
                        say(f"{task}: {state.lower()}")
                shown |= _states(run)
                if run.state in _ENDS:
                    if run.error and run.error.message:
                        say(f"the run: {run.error.message}")
                    return str(run.state)
            time.sleep(pause)

    def _experiment(self, name: str) -> str:
        predicate = {"operation": "EQUALS", "key": "display_name", "string_value": name}
        found = self._call(
            self._experiments.experiment_service_list_experiments,
            filter=json.dumps({"predicates": [predicate]}),
            **self._of_namespace(),
        ).experiments
        if not found:
            new = kfp_api.V2beta1Experiment(display_name=name, namespace=self._namespace or None)
            found = [self._call(self._experiments.experiment_service_create_experiment, new)]
        return str(found[0].experiment_id)

    def _of_namespace(self) -> dict[str, str]:
        return {"namespace": self._namespace} if self._namespace else {}

    def _call(self, call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        with self._explained():
            return call(*arguments, _request_timeout=self._timeout, **more)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except kfp_api.ApiException as error:
            raise self._refusal(error) from None
        except urllib3.exceptions.HTTPError as error:
            if isinstance(error, urllib3.exceptions.TimeoutError) and not isinstance(error, NewConnectionError):
                said = f"does not answer within {self._timeout} s"
            else:
                said = f"cannot be reached ({str(error).rpartition(': ')[2]})"
            raise _OutageError(f"{self.host}: {said}; is --host right, and is the server up?") from None
        except OSError as error:  # a token's or a certificate's file
            raise UserError(f"{error.filename or self.host}: cannot be used ({error.strerror or error})") from None

    def _refusal(self, error: kfp_api.ApiException) -> UserError:
        try:
            said = json.loads(error.body)["message"]
        except (ValueError, TypeError, KeyError):
            said = error.reason
        kind = _OutageError if error.status >= 500 else UserError
        advice = _REASONS.get(error.status, "see the log of ml-pipeline" if error.status >= 500 else "")
        return kind(f"{self.host}: answers {error.status} ({str(said)[:300]})" + (f"; {advice}" if advice else ""))


class _OutageError(UserError):
    """Something that may pass by itself."""


def _spec(pipeline: BaseComponent) -> dict[str, Any]:
    return {
        "pipeline_spec": MessageToDict(pipeline.pipeline_spec),
        "platform_spec": MessageToDict(pipeline.platform_spec),
    }


def _states(run: Any) -> dict[str, str]:
    """State of each task by its name, without the drivers that Kubeflow starts before each of them."""
    details = (run.run_details and run.run_details.task_details) or ()
    return {
        detail.display_name: detail.state
        for detail in details
        if detail.display_name and detail.state and not detail.display_name.endswith(("driver", "executor", "root"))
    }
