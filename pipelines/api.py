"""The API of Kubeflow Pipelines: submit, follow, schedule; a failure of it is one clear message.

kfp.Client has no time limit on its requests and asks a dead server five times before it says so; here are the
generated calls below it, each with a limit.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import kfp_server_api as kfp_api
import urllib3
from google.protobuf.json_format import MessageToDict
from kfp.dsl.base_component import BaseComponent
from urllib3.exceptions import NewConnectionError

from ganflow.errors import UserError

SUCCEEDED: Final = "SUCCEEDED"
_ENDS = {SUCCEEDED, "FAILED", "CANCELED", "SKIPPED"}
_NO_SUCH_ADDRESS = "there is no such thing at this address; correct --host, which may need a path such as /pipeline"
_REASONS = {
    401: "the token is missing, wrong or has expired; give a new one with --token-file",
    403: "the token's user may not do this in the namespace; ask for the role kubeflow-edit there, or correct "
    "--namespace",
}
_LOGIN = "is not Kubeflow Pipelines, or sends us to a login page; correct --host or the token, with --token-file"


@dataclass(frozen=True, kw_only=True)
class Order:
    """A pipeline to run, with which arguments, and under which names."""

    pipeline: BaseComponent
    arguments: Mapping[str, Any]
    name: str
    experiment: str
    service_account: str


class Api:
    """One server of Kubeflow Pipelines."""

    def __init__(
        self,
        host: str,
        namespace: str = "",
        *,
        token: Callable[[], str] | None = None,
        ca_certificate: str = "",
        timeout: int = 30,
    ) -> None:
        """`host` is a URL; `token` is asked for one at each request; `timeout` is in seconds, for a single request."""
        _require_address(host)
        configuration = kfp_api.Configuration(host=host.rstrip("/"))
        configuration.retries = False
        configuration.ssl_ca_cert = ca_certificate or None
        if token:
            configuration.api_key["authorization"] = ""
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.refresh_api_key_hook = lambda own: own.api_key.update(authorization=token())
        self.host = configuration.host
        self._namespace = namespace
        self._timeout = timeout
        self._client = client = kfp_api.ApiClient(configuration)
        self._health = kfp_api.HealthzServiceApi(client)
        self._experiments = kfp_api.ExperimentServiceApi(client)
        self._runs = kfp_api.RunServiceApi(client)
        self._recurring = kfp_api.RecurringRunServiceApi(client)

    def check(self) -> None:
        """Ask whether the server is there, and lets us in. Raises UserError where it does not."""
        health = self._call(self._health.healthz_service_get_healthz)
        if health.multi_user and not self._namespace:
            raise UserError(f"{self.host}: has a namespace for each user; name yours with --namespace")
        if not health.multi_user:
            self._namespace = ""  # such a server refuses to filter by it
        self._call(self._experiments.experiment_service_list_experiments, page_size=1, **self._of_namespace())

    def submit(self, order: Order) -> str:
        """Start a run, and give its id."""
        run = kfp_api.V2beta1Run(**self._fields(order))
        return str(self._call(self._runs.run_service_create_run, run).run_id)

    def schedule(self, order: Order, cron: str) -> str:
        """Start a run again and again, by a cron expression of six fields, seconds first; give the schedule's id."""
        recurring = kfp_api.V2beta1RecurringRun(
            **self._fields(order),
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
        missing = f"there is no schedule {schedule_id}; `schedules` lists those that there are"
        self._call(self._recurring.recurring_run_service_delete_recurring_run, schedule_id, missing=missing)

    def address(self, run_id: str) -> str:
        """Address of a run's page."""
        return f"{self.host}/#/runs/details/{run_id}"

    def follow(
        self,
        run_id: str,
        pipeline: BaseComponent,
        say: Callable[[str], None],
        pause: float = 5.0,
        patience: float = 600.0,
    ) -> str:
        """Wait for a run to end, saying when a task changes its state, and give the state of the run.

        A server that does not answer for less than `patience` seconds is waited for: the run goes on without us.
        """
        shown: dict[str, tuple[str, str]] = {}
        tasks = _tasks(pipeline)
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
                states = _states(run, tasks)
                for task, (name, state) in states.items():
                    if shown.get(task) != (name, state):
                        say(f"{name}: {state.lower()}")
                shown |= states
                if run.state in _ENDS:
                    if run.error and run.error.message:
                        say(f"the run: {run.error.message}")
                    return str(run.state)
            time.sleep(pause)

    def _fields(self, order: Order) -> dict[str, Any]:
        """What a run and a schedule of runs have in common."""
        return {
            "display_name": order.name,
            "experiment_id": self._experiment(order.experiment),
            "pipeline_spec": _spec(order.pipeline),
            "runtime_config": kfp_api.V2beta1RuntimeConfig(parameters=dict(order.arguments)),
            "service_account": order.service_account or None,
        }

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

    def _call(self, call: Callable[..., Any], *arguments: Any, missing: str = _NO_SUCH_ADDRESS, **more: Any) -> Any:
        with self._explained(missing):
            answer = call(*arguments, _request_timeout=self._timeout, **more)
        if "json" not in (self._client.last_response.getheader("Content-Type") or ""):
            raise UserError(f"{self.host}: {_LOGIN}")
        return answer

    @contextmanager
    def _explained(self, missing: str) -> Iterator[None]:
        try:
            yield
        except kfp_api.ApiException as error:
            raise self._refusal(error, missing) from None
        except (AttributeError, UnicodeDecodeError) as error:  # the generated client decodes what need not be UTF-8
            if not isinstance(error.__context__, kfp_api.ApiException):
                raise
            raise self._refusal(error.__context__, missing) from None
        except urllib3.exceptions.HTTPError as error:
            if isinstance(error, urllib3.exceptions.TimeoutError) and not isinstance(error, NewConnectionError):
                said = f"does not answer within {self._timeout} s"
            else:
                said = f"cannot be reached ({str(error).rpartition(': ')[2]})"
            raise _OutageError(f"{self.host}: {said}; is --host right, and is the server up?") from None

    def _refusal(self, error: kfp_api.ApiException, missing: str) -> UserError:
        if error.status == 0:  # TLS, which alone the generated client reports in this way
            reason = str(error.reason).splitlines()[-1]
            return UserError(
                f"{self.host}: no secure connection ({reason}); is --host right? Name the certificate of an authority "
                "of your own with --ca-certificate"
            )
        if 300 <= error.status < 400:
            return UserError(f"{self.host}: {_LOGIN}")
        try:
            said = json.loads(error.body)["message"]
        except (ValueError, TypeError, KeyError):  # UnicodeDecodeError is a ValueError
            said = error.reason
        kind = _OutageError if error.status >= 500 else UserError
        reasons = _REASONS | {404: missing}
        advice = reasons.get(error.status, "see the log of ml-pipeline" if error.status >= 500 else "")
        return kind(f"{self.host}: answers {error.status} ({str(said)[:300]})" + (f"; {advice}" if advice else ""))


class _OutageError(UserError):
    """Something that may pass by itself."""


def token_in(path: Path) -> str:
    """Read a bearer token from a file. Raises UserError."""
    try:
        return checked_token(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); it must hold a bearer token") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text; it must hold a bearer token") from None


def checked_token(text: str, where: str) -> str:
    """Take a token out of a text. Raises UserError, whose message does not show it."""
    token = text.strip()
    if not token.isascii() or not token.isprintable() or len(token.split()) != 1:
        raise UserError(f"{where}: must hold a bearer token, which is one word of ASCII characters")
    return token


def _require_address(host: str) -> None:
    try:
        address = urlsplit(host)
        usable = address.scheme in {"http", "https"} and bool(address.hostname) and address.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"--host {host}: must be an address such as https://kubeflow.example.com/pipeline")


def _tasks(pipeline: BaseComponent) -> frozenset[str]:
    """Names of the tasks that run a component of ours."""
    spec = pipeline.pipeline_spec
    dags = [spec.root.dag, *(component.dag for component in spec.components.values())]
    return frozenset(
        name
        for dag in dags
        for name, task in dag.tasks.items()
        if spec.components[task.component_ref.name].executor_label
    )


def _spec(pipeline: BaseComponent) -> dict[str, Any]:
    return {
        "pipeline_spec": MessageToDict(pipeline.pipeline_spec),
        "platform_spec": MessageToDict(pipeline.platform_spec),
    }


def _states(run: Any, tasks: frozenset[str]) -> dict[str, tuple[str, str]]:
    """Name and state of each task by its id, without the nodes that Kubeflow adds; a loop has tasks of one name."""
    details = (run.run_details and run.run_details.task_details) or ()
    shown = (each for each in details if each.display_name in tasks and each.state)
    return {each.task_id: (each.display_name, each.state) for each in shown}
