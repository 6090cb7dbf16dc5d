"""A server of Kubeflow Pipelines' REST API v2beta1: the operations that `python -m pipelines` uses, with their state.

Every request is held against a description of the API. One that does not fit is answered with 400, as by the real
server, and kept in `misfits`, so that a test fails with it even where the client goes on.
"""

import json
import os
import re
import shutil
import ssl
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import Message as Headers
from enum import Enum
from graphlib import TopologicalSorter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import jsonschema
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineDeploymentConfig, PipelineSpec, PlatformSpec

ROOT = Path(__file__).parents[1]

Schema = dict[str, Any]
_Kind = TypeVar("_Kind", bound=Message)

_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 503: 14}  # of google.rpc, by HTTP status


# The description: what a client may send. Fields that the server alone sets are left out.


def _object(*required: str, one_of: Sequence[str] = (), **properties: Schema) -> Schema:
    """Describe an object with no other fields than these; it must have the required ones, and one of `one_of`."""
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
    return schema | ({"oneOf": [{"required": [name]} for name in one_of]} if one_of else {})


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_TEXT = {"type": "string"}
_NAME = {"type": "string", "minLength": 1}
_TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}
_INT32 = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
_INT64 = {"type": "string", "pattern": r"^-?\d{1,19}$"}  # JSON's numbers cannot hold 64 bits
_OBJECT = {"type": "object"}
_COUNT = {"type": "string", "pattern": r"^\d{1,9}$"}  # an integer, in a query

_EXPERIMENT = _object("display_name", display_name=_NAME, description=_TEXT, namespace=_TEXT)
_OF_ANY_RUN: dict[str, Schema] = {
    "display_name": _NAME,
    "description": _TEXT,
    "experiment_id": _TEXT,
    "pipeline_spec": _OBJECT,
    "pipeline_version_reference": _object(pipeline_id=_TEXT, pipeline_version_id=_TEXT),
    "runtime_config": _object(parameters=_OBJECT, pipeline_root=_TEXT),
    "service_account": _TEXT,
    "plugins_input": _OBJECT,
}
_SOURCES = ("pipeline_spec", "pipeline_version_reference")
_RUN = _object("display_name", one_of=_SOURCES, **_OF_ANY_RUN)
_TRIGGER = _object(
    one_of=("cron_schedule", "periodic_schedule"),
    cron_schedule=_object("cron", cron=_NAME, start_time=_TIME, end_time=_TIME),
    periodic_schedule=_object("interval_second", interval_second=_INT64, start_time=_TIME, end_time=_TIME),
)
_RECURRING_RUN = _object(
    "display_name",
    "max_concurrency",
    "mode",
    "trigger",
    one_of=_SOURCES,
    max_concurrency={"type": "string", "pattern": r"^([1-9]|10)$"},
    mode={"enum": ["ENABLE", "DISABLE"]},
    trigger=_TRIGGER,
    no_catchup={"type": "boolean"},
    **_OF_ANY_RUN,
)
_VALUES: dict[str, Schema] = {
    "int_value": _INT32,
    "long_value": _INT64,
    "string_value": _TEXT,
    "timestamp_value": _TIME,
    "int_values": _object("values", values=_list(_INT32)),
    "long_values": _object("values", values=_list(_INT64)),
    "string_values": _object("values", values=_list(_TEXT)),
}
_COMPARISONS = ("EQUALS", "NOT_EQUALS", "GREATER_THAN", "GREATER_THAN_EQUALS", "LESS_THAN", "LESS_THAN_EQUALS")
_PREDICATE = _object(
    "operation",
    "key",
    one_of=tuple(_VALUES),
    operation={"enum": [*_COMPARISONS, "IN", "IS_SUBSTRING"]},
    key=_NAME,
    **_VALUES,
)
_FILTER = _object("predicates", predicates=_list(_PREDICATE))
_LISTING = {"page_token": _TEXT, "page_size": _COUNT, "sort_by": _TEXT, "filter": _TEXT, "namespace": _TEXT}


@dataclass(frozen=True)
class _Operation:
    name: str
    method: str
    path: str
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Schema | None = None

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """Give the parameters in a path, or None for another operation's."""
        pattern = re.sub(r"{(\w+)}", r"(?P<\1>[^/:]+)", self.path)
        found = re.fullmatch(pattern, path) if method == self.method else None
        return found and {name: unquote(value) for name, value in found.groupdict().items()}


_ROOT = "/apis/v2beta1"
_POLICIES = ["DELETE_PROPAGATION_POLICY_UNSPECIFIED", "FOREGROUND", "BACKGROUND", "ORPHAN"]
_OPERATIONS = (
    _Operation("get_health", "GET", f"{_ROOT}/healthz"),
    _Operation("list_experiments", "GET", f"{_ROOT}/experiments", _LISTING),
    _Operation("create_experiment", "POST", f"{_ROOT}/experiments", body=_EXPERIMENT),
    _Operation("create_run", "POST", f"{_ROOT}/runs", {"experiment_id": _TEXT}, _RUN),
    _Operation("get_run", "GET", f"{_ROOT}/runs/{{run_id}}", {"experiment_id": _TEXT}),
    _Operation("list_schedules", "GET", f"{_ROOT}/recurringruns", {**_LISTING, "experiment_id": _TEXT}),
    _Operation("create_schedule", "POST", f"{_ROOT}/recurringruns", body=_RECURRING_RUN),
    _Operation(
        "delete_schedule",
        "DELETE",
        f"{_ROOT}/recurringruns/{{recurring_run_id}}",
        {"propagation_policy": {"enum": _POLICIES}},
    ),
)
_OF_NAMESPACE = ("list_experiments", "list_schedules", "create_experiment")


# What a request is held against it with.


class _MisfitError(Exception):
    """A request that does not fit the description."""


@dataclass(frozen=True)
class Request:
    """A request as it came; `operation` is empty where there is no such one."""

    method: str
    path: str
    headers: Headers
    query: Mapping[str, Sequence[str]]
    content: bytes
    operation: _Operation | None
    parameters: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the operation."""
        return self.operation.name if self.operation else ""

    @property
    def body(self) -> Any:
        """The body."""
        return json.loads(self.content)

    def first(self, key: str) -> str:
        """Value of a query parameter, or nothing."""
        return self.query.get(key, [""])[0]


def _check(request: Request) -> None:
    """Raise _MisfitError where a request does not fit."""
    if request.operation is None:
        raise _MisfitError("there is no such operation")
    for key, values in request.query.items():
        if key not in request.operation.query:
            raise _MisfitError(f"there is no query parameter {key!r}")
        if len(values) > 1:
            raise _MisfitError(f"the query has {key!r} several times")
        _fit(values[0], request.operation.query[key], key)
    if request.first("filter"):
        _fit(_json(request.first("filter")), _FILTER, "filter")
    if request.operation.body is not None:
        _check_body(request, request.operation.body)
    elif request.content:
        raise _MisfitError("must have no body")


def _check_body(request: Request, schema: Schema) -> None:
    if request.headers.get("Content-Type", "").partition(";")[0] != "application/json":
        raise _MisfitError(f"the body is not called application/json but {request.headers.get('Content-Type')}")
    body = _json(request.content)
    _fit(body, schema, "body")
    if "pipeline_spec" in body:
        _check_spec(body["pipeline_spec"], body.get("runtime_config", {}).get("parameters", {}))


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise _MisfitError(f"is not JSON: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")  # Python's writer makes NaN and Infinity, which JSON does not have


def _fit(value: Any, schema: Schema, where: str) -> None:
    for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
        raise _MisfitError(f"{where}: {error.json_path}: {error.message}")


def _check_spec(given: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Hold a compiled pipeline against the protocol buffers, and its parameters against its own declarations."""
    both = "pipeline_spec" in given
    if both and set(given) - {"pipeline_spec", "platform_spec"}:
        raise _MisfitError(f"pipeline_spec has more than a pipeline_spec and a platform_spec: {sorted(given)}")
    spec = _parse(given["pipeline_spec"] if both else given, PipelineSpec(), "pipeline_spec")
    deployment = _parse(MessageToDict(spec.deployment_spec), PipelineDeploymentConfig(), "deploymentSpec")
    platform = _parse(given.get("platform_spec", {}) if both else {}, PlatformSpec(), "platform_spec")
    for name, single in platform.platforms.items():
        if name != "kubernetes":
            raise _MisfitError(f"platform_spec: {name} is no platform of Kubeflow's")
        for executor, settings in single.deployment_spec.executors.items():
            if executor not in deployment.executors:
                raise _MisfitError(f"platform_spec: the pipeline has no executor {executor}")
            _parse(MessageToDict(settings), KubernetesExecutorConfig(), f"platform_spec of {executor}")
    _check_parameters(parameters, spec)


def _parse(given: Any, message: _Kind, where: str) -> _Kind:
    try:
        parsed: _Kind = ParseDict(given, message)
    except ParseError as error:
        raise _MisfitError(f"{where}: {error}") from None
    return parsed


_TYPES: dict[str, tuple[type, ...]] = {
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (float, int),
    "STRING": (str,),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}


def _check_parameters(given: Mapping[str, Any], spec: PipelineSpec) -> None:
    declared = MessageToDict(spec.root.input_definitions).get("parameters", {})
    for name, value in given.items():
        if name not in declared:
            raise _MisfitError(f"the pipeline has no input {name!r}")
        if type(value) not in _TYPES[declared[name]["parameterType"]]:
            raise _MisfitError(f"input {name!r} is a {declared[name]['parameterType']}, not {value!r}")
    missing = [key for key, one in declared.items() if "defaultValue" not in one and not one.get("isOptional")]
    if set(missing) - set(given):
        raise _MisfitError(f"the inputs {sorted(set(missing) - set(given))} have neither a value nor a default")


# What it answers.


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    body: bytes
    kind: str = "application/json"
    location: str = ""


class Trouble(Enum):
    """What a server may do instead of answering."""

    SILENT = "accepts the connection and says nothing"
    DROPPED = "closes the connection"


Answer = Reply | Trouble

LOGIN_PAGE = Reply(200, b"<!doctype html><title>Log in</title><form method=post></form>", "text/html; charset=utf-8")
TO_LOGIN_PAGE = Reply(302, b"", "text/html; charset=utf-8", "/oauth2/start")


def refusal(status: int, message: str) -> Reply:
    """Refuse a request as the API does, with a google.rpc.Status."""
    return _answer({"code": _CODES[status], "message": message, "details": []}, status)


def _answer(body: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(body).encode())


# The runs.


@dataclass(frozen=True)
class _Node:
    """A node of Argo's workflow, of which the API tells as of a task: begins and ends at the n-th look at the run."""

    name: str
    begin: int
    end: int
    is_task: bool = False

    def state(self, look: int) -> str:
        return "SUCCEEDED" if look >= self.end else "RUNNING"


class _Workflow:
    """Unfolds a pipeline's tasks into the nodes that Argo makes of them: one task after the other, a look for each.

    A task of the pipeline is three or four nodes: its driver, itself, its executor, and an attempt of the executor
    where it may be retried. The trials of a loop overlap: each begins a look after the one before it.
    """

    def __init__(self, spec: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
        self._components = spec.get("components", {})
        declared = spec["root"].get("inputDefinitions", {}).get("parameters", {}).get("trials", {})
        self._trials = len(parameters.get("trials", declared.get("defaultValue", ())))
        self._nodes: list[_Node] = []
        end = self._unfold(spec["root"]["dag"]["tasks"], 0)
        whole = [_Node(f"{spec['pipelineInfo']['name']}-x7k2p", 0, end), _Node("root", 0, end)]
        self.nodes = [*whole, _Node("root-driver", 0, 0), *self._nodes]
        self.end = end

    def _unfold(self, tasks: Mapping[str, Any], begin: int) -> int:
        order = TopologicalSorter({name: task.get("dependentTasks", []) for name, task in tasks.items()})
        for name in order.static_order():
            loop = "parameterIterator" in tasks[name]
            begin = (self._loop if loop else self._task)(name, tasks[name], begin)
        return begin

    def _task(self, name: str, task: Mapping[str, Any], begin: int) -> int:
        executors = ["executor", *(["executor(0)"] if "retryPolicy" in task else [])]
        self._nodes += [_Node(f"{name}-driver", begin, begin), _Node(name, begin, begin + 1, is_task=True)]
        self._nodes += [_Node(executor, begin, begin + 1) for executor in executors]
        return begin + 1

    def _loop(self, name: str, task: Mapping[str, Any], begin: int) -> int:
        tasks = self._components[task["componentRef"]["name"]]["dag"]["tasks"]
        last = begin
        for trial in range(self._trials):
            first, last = begin + trial, self._unfold(tasks, begin + trial)
            self._nodes += [_Node("iteration-item-driver", first, first), _Node("iteration-item", first, last)]
            self._nodes.append(_Node(f"iteration-iterations({trial}:{trial})", first, last))
        self._nodes += [_Node("iteration-driver", begin, begin), _Node("iteration-iterations", begin, last)]
        self._nodes.append(_Node(name, begin, last))
        return last


class _Run:
    """A run, which goes on at each look at it, to its end or to `fate`: a task with which it ends, and how."""

    def __init__(self, sent: Mapping[str, Any], fate: tuple[str, str]) -> None:
        self.id = str(uuid.uuid4())
        self.sent = sent
        spec = sent["pipeline_spec"]
        workflow = _Workflow(spec.get("pipeline_spec", spec), sent.get("runtime_config", {}).get("parameters", {}))
        task, self._state = fate
        failing = next((node for node in workflow.nodes if node.is_task and node.name == task), None)
        self._end = failing.end if failing else workflow.end
        self._nodes = workflow.nodes
        self._failing = failing
        self._look = -1

    def look(self) -> dict[str, Any]:
        self._look += 1
        over = self._look >= self._end
        failed = {"error": {"code": 13, "message": "the pod's container ended with status 1"}}
        return {
            **self.told(self._state if over else "RUNNING"),
            **(failed if over and self._state == "FAILED" else {}),
            "run_details": {"task_details": self._details()},
        }

    def told(self, state: str) -> dict[str, Any]:
        return {**self.sent, "run_id": self.id, "state": state, "created_at": "2026-01-02T03:04:05Z"}

    def _details(self) -> list[dict[str, Any]]:
        begun = [node for node in self._nodes if node.begin <= self._look and node.begin <= self._end - 1]
        return [
            {
                "run_id": self.id,
                "task_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.id} {number}")),
                "display_name": node.name,
                "state": "FAILED" if self._failed(node) else node.state(self._look),
                "start_time": "2026-01-02T03:04:05Z",
            }
            for number, node in enumerate(begun)
        ]

    def _failed(self, node: _Node) -> bool:
        return self._failing is not None and self._look >= self._end and node.end >= self._end


# The server.


class KfpServer(ThreadingHTTPServer):
    """The server; its attributes are its switches and its state."""

    daemon_threads = True

    def __init__(self, certificate: Path | None = None) -> None:
        """Speak HTTPS where there is a certificate, a file with its key in it."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self._scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.prefix = ""  # path below which the API is
        self.namespaces: set[str] = set()  # of a multi-user server: those that the user may use; else empty
        self.token = ""  # that a request must bring
        self.instead: Answer | None = None  # of the right answer, to every request
        self.looks: deque[Answer | None] = deque()  # instead of the right answer, to the next requests for a run
        self.fate = ("", "SUCCEEDED")  # task with which the next run ends, and how; none: it ends by itself

        self.requests: list[Request] = []
        self.misfits: list[str] = []
        self.experiments: list[dict[str, Any]] = []
        self.runs: dict[str, _Run] = {}
        self.schedules: dict[str, dict[str, Any]] = {}

        self.closing = threading.Event()
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.server_address[1]}{self.prefix}"

    def named(self, *names: str) -> list[Request]:
        """Choose requests by the names of their operations."""
        return [request for request in self.requests if request.name in names]

    @property
    def writes(self) -> list[Request]:
        """The requests that would change something."""
        return [request for request in self.requests if request.method != "GET"]

    def submitted(self) -> Any:
        """Body of the one run that was submitted."""
        (request,) = self.named("create_run")
        return request.body

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def answer(self, method: str, target: str, headers: Headers, content: bytes) -> Answer:
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query, keep_blank_values=True)
        operation, parameters = self._operation(method, path)
        request = Request(method, path, headers, query, content, operation, parameters)
        with self._lock:
            self.requests.append(request)
            if not path.startswith(f"{self.prefix}/"):
                return Reply(404, b"default backend - 404", "text/plain")
            misfit = self._misfit(request)
            self.misfits += filter(None, [misfit])
            return self._trouble(request) or (refusal(400, misfit) if misfit else self._done(request))

    def _operation(self, method: str, path: str) -> tuple[_Operation | None, dict[str, str]]:
        for operation in _OPERATIONS:
            parameters = operation.match(method, path.removeprefix(self.prefix))
            if parameters is not None:
                return operation, parameters
        return None, {}

    def _misfit(self, request: Request) -> str:
        try:
            _check(request)
            self._check_namespace(request)
        except _MisfitError as error:
            return f"{request.method} {request.path}: {error}"
        return ""

    def _trouble(self, request: Request) -> Answer | None:
        if self.instead:
            return self.instead
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return refusal(401, "Request unauthenticated: the token is not valid")
        return self.looks.popleft() if request.name == "get_run" and self.looks else None

    def _done(self, request: Request) -> Reply:
        if self._namespace(request) not in self.namespaces | {""}:
            return refusal(403, f"the user is not authorized to use the namespace {self._namespace(request)}")
        handle: Callable[[Request], Reply] = getattr(self, f"_{request.name}")
        return handle(request)

    @staticmethod
    def _namespace(request: Request) -> str:
        if request.name not in _OF_NAMESPACE:
            return ""
        return request.first("namespace") if request.method == "GET" else request.body.get("namespace", "")

    def _check_namespace(self, request: Request) -> None:
        named = bool(self._namespace(request))
        if named and not self.namespaces:
            raise _MisfitError("there are no namespaces in single-user mode")
        if request.name in _OF_NAMESPACE and self.namespaces and not named:
            raise _MisfitError("the namespace cannot be empty in multi-user mode")

    def _get_health(self, _: Request) -> Reply:
        return _answer({"multi_user": bool(self.namespaces), "pipeline_store": "database"})

    def _list_experiments(self, request: Request) -> Reply:
        found = [each for each in self.experiments if each["namespace"] == request.first("namespace")]
        for predicate in json.loads(request.first("filter") or '{"predicates": []}')["predicates"]:
            assert predicate["operation"] == "EQUALS", "no other comparison is played here"
            found = [each for each in found if each[predicate["key"]] == predicate["string_value"]]
        return self._page(request, "experiments", found)

    def _create_experiment(self, request: Request) -> Reply:
        sent = {"namespace": "", **request.body}
        if any(sent["display_name"] == each["display_name"] for each in self.experiments):
            return refusal(409, f"Already exist error: experiment {sent['display_name']}")
        self.experiments.append({**sent, "experiment_id": str(uuid.uuid4()), "storage_state": "AVAILABLE"})
        return _answer(self.experiments[-1])

    def _create_run(self, request: Request) -> Reply:
        if not self._has_experiment(request):
            return refusal(404, "there is no such experiment")
        run = _Run(request.body, self.fate)
        self.runs[run.id] = run
        return _answer(run.told("PENDING"))

    def _get_run(self, request: Request) -> Reply:
        run = self.runs.get(request.parameters["run_id"])
        return _answer(run.look()) if run else refusal(404, f"Run {request.parameters['run_id']} not found")

    def _create_schedule(self, request: Request) -> Reply:
        cron = request.body["trigger"].get("cron_schedule", {}).get("cron", "@hourly")
        if len(cron.split()) not in {5, 6} and not cron.startswith("@"):
            return refusal(400, f"Schedule cron is not a supported format. Error: expected 5 to 6 fields, found {cron}")
        if not self._has_experiment(request):
            return refusal(404, "there is no such experiment")
        made = {**request.body, "recurring_run_id": str(uuid.uuid4()), "status": f"{request.body['mode']}D"}
        self.schedules[made["recurring_run_id"]] = made
        return _answer(made)

    def _list_schedules(self, request: Request) -> Reply:
        return self._page(request, "recurringRuns", list(self.schedules.values()))

    def _delete_schedule(self, request: Request) -> Reply:
        identity = request.parameters["recurring_run_id"]
        if self.schedules.pop(identity, None) is None:
            return refusal(404, f"Job {identity} not found")
        return _answer({})

    def _has_experiment(self, request: Request) -> bool:
        return request.body.get("experiment_id") in {each["experiment_id"] for each in self.experiments}

    @staticmethod
    def _page(request: Request, key: str, found: Sequence[Any]) -> Reply:
        begin, size = int(request.first("page_token") or 0), int(request.first("page_size") or 20)
        more = {"next_page_token": str(begin + size)} if begin + size < len(found) else {}
        return _answer({key: found[begin : begin + size], "total_size": len(found), **more})


def self_signed(folder: Path) -> Path:
    """Make a certificate that nobody has signed, in a file with its key, for a server at 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubeflow.team.example")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    path = folder / "server.pem"
    path.write_bytes(
        made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: a second one would wait 40 ms for the first to be acknowledged
    server: KfpServer

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.answer(self.command, self.path, self.headers, content)
        if answer is Trouble.SILENT:
            self.server.closing.wait()
        if isinstance(answer, Trouble):
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.location:
            self.send_header("Location", answer.location)
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815

    def log_message(self, format: str, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def running(
    folder: Path, patch: pytest.MonkeyPatch, *, certificate: Path | None = None, fits: bool = True
) -> Iterator[KfpServer]:
    """Run a server for a test, whose requests must fit the API, and make `folder` the test's checkout.

    Settings of the person who runs the tests, for another server, are put away.
    """
    for name in [name for name in os.environ if name.startswith("KF_PIPELINES_")]:
        patch.delenv(name)
    for name in ("params.yaml", "cluster.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    patch.chdir(folder)
    with KfpServer(certificate) as server:
        yield server
    assert not fits or server.misfits == []


def told(status: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Give the one message of a command that must have ended with status 2 and said nothing else."""
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("pipelines: ")
    assert err.count("\n") == 1
    return err
