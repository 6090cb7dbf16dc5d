"""A server of Kubeflow Pipelines that is not there, refuses us, or is not the one meant: one message, nothing sent."""

import copy
import json
import logging
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kfp_server import (
    LOGIN_PAGE,
    TO_LOGIN_PAGE,
    Answer,
    KfpServer,
    Reply,
    Trouble,
    refusal,
    running,
    self_signed,
    told,
)

from pipelines.__main__ import main

TOKEN = "eyJhbGciOi.secret.token"
CRON = "0 0 3 * * *"


@pytest.fixture
def kubeflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    with running(tmp_path, monkeypatch) as server:
        yield server


# The server of these tests is as strict as it says.

SPEC: dict[str, Any] = {
    "pipelineInfo": {"name": "tiny"},
    "schemaVersion": "2.1.0",
    "root": {
        "dag": {"tasks": {}},
        "inputDefinitions": {
            "parameters": {
                "count": {"parameterType": "NUMBER_INTEGER", "defaultValue": 1.0},
                "share": {"parameterType": "NUMBER_DOUBLE", "defaultValue": 0.5},
                "name": {"parameterType": "STRING"},
                "flag": {"parameterType": "BOOLEAN", "isOptional": True},
                "many": {"parameterType": "LIST", "defaultValue": []},
            }
        },
    },
    "deploymentSpec": {"executors": {"exec-a": {"container": {"image": "ganflow"}}}},
}
PLATFORM = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-a": {"imagePullPolicy": "Always"}}}}}}
RUN: dict[str, Any] = {
    "display_name": "mine",
    "pipeline_spec": {"pipeline_spec": SPEC, "platform_spec": PLATFORM},
    "runtime_config": {"parameters": {"count": 3, "share": 1, "name": "n", "flag": True, "many": ["x"]}},
}
SCHEDULE = {**RUN, "max_concurrency": "1", "mode": "ENABLE", "trigger": {"cron_schedule": {"cron": CRON}}}
WHOLE = ("pipeline_spec", "pipeline_spec")
KUBERNETES = ("pipeline_spec", "platform_spec", "platforms", "kubernetes")
GIVEN = ("runtime_config", "parameters")


@pytest.fixture
def strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    """A server with an experiment, to which requests that do not fit are sent on purpose."""
    with running(tmp_path, monkeypatch, fits=False) as server:
        server.experiments.append({"experiment_id": "e1", "display_name": "ganflow", "namespace": ""})
        yield server


def ask(server: KfpServer, method: str, target: str, content: bytes | None = None) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"} if content is not None else {}
    request = urllib.request.Request(f"{server.uri}/apis/v2beta1/{target}", content, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def changed(body: Mapping[str, Any], place: tuple[str, ...], value: Any) -> bytes:
    tree = {**copy.deepcopy(dict(body)), "experiment_id": "e1"}
    above = tree
    for key in place[:-1]:
        above = above[key]
    above[place[-1]] = value
    return json.dumps(tree).encode()


def predicates(*found: Mapping[str, Any]) -> str:
    return urllib.request.quote(json.dumps({"predicates": found}))


EQUALS = {"operation": "EQUALS", "key": "display_name", "string_value": "ganflow"}


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "healthz"),
        ("GET", "pipelines"),
        ("GET", "runs/a/b"),
        ("GET", "experiments?page=1"),
        ("GET", "experiments?page_size=many"),
        ("GET", "experiments?page_size=1&page_size=2"),
        ("GET", "experiments?namespace=team"),
        ("GET", "experiments?filter=ganflow"),
        ("GET", f"experiments?filter={predicates(EQUALS | {'operation': 'IS'})}"),
        ("GET", f"experiments?filter={predicates(EQUALS | {'int_value': 1})}"),
        ("GET", f"experiments?filter={predicates({'operation': 'EQUALS', 'key': 'display_name'})}"),
        ("GET", f"experiments?filter={predicates(EQUALS | {'op': 'EQUALS'})}"),
        ("DELETE", "recurringruns/a?propagation_policy=NOW"),
    ],
)
def test_the_server_refuses_what_is_no_request_of_the_api(strict: KfpServer, method: str, target: str) -> None:
    status, said = ask(strict, method, target)
    assert status == 400
    assert said == {"code": 3, "message": strict.misfits[0], "details": []}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("title",), "mine"),
        (("run_id",), "r1"),
        (("display_name",), ""),
        (("display_name",), 1),
        (("pipeline_version_reference",), {"pipeline_id": "p1"}),
        (("runtime_config", "parameter"), {}),
        ((*WHOLE, "components"), []),
        ((*WHOLE, "component"), {}),
        ((*WHOLE, "deploymentSpec", "executors", "exec-a", "container", "picture"), "ganflow"),
        (("pipeline_spec", "platforms"), {}),
        (("pipeline_spec", "platform_spec", "platform"), {}),
        ((*KUBERNETES, "deploymentSpec", "executors", "exec-a", "pullPolicy"), "Always"),
        ((*KUBERNETES, "deploymentSpec", "executors", "exec-b"), {}),
        (("pipeline_spec", "platform_spec", "platforms", "nomad"), {}),
        ((*GIVEN, "other"), 1),
        ((*GIVEN, "count"), 1.0),
        ((*GIVEN, "count"), True),
        ((*GIVEN, "count"), "1"),
        ((*GIVEN, "share"), "0.5"),
        ((*GIVEN, "share"), float("nan")),
        ((*GIVEN, "name"), 1),
        ((*GIVEN, "flag"), 1),
        ((*GIVEN, "many"), "x"),
        (GIVEN, {"count": 1}),
    ],
)
def test_the_server_refuses_what_is_no_run(strict: KfpServer, place: tuple[str, ...], value: Any) -> None:
    assert ask(strict, "POST", "runs", changed(RUN, place, value))[0] == 400
    assert len(strict.misfits) == 1


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("max_concurrency",), 1),
        (("max_concurrency",), "11"),
        (("mode",), "ENABLED"),
        (("trigger",), {}),
        (("trigger", "cron_schedule"), {}),
        (("trigger", "periodic_schedule"), {"interval_second": "60"}),
        (("no_catchup",), "true"),
        (("status",), "ENABLED"),
    ],
)
def test_the_server_refuses_what_is_no_schedule(strict: KfpServer, place: tuple[str, ...], value: Any) -> None:
    assert ask(strict, "POST", "recurringruns", changed(SCHEDULE, place, value))[0] == 400
    assert len(strict.misfits) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"mine"'])
def test_the_server_refuses_another_body(strict: KfpServer, content: bytes) -> None:
    assert ask(strict, "POST", "experiments", content)[0] == 400
    assert len(strict.misfits) == 1


def test_the_server_does_what_fits(strict: KfpServer) -> None:
    status, made = ask(strict, "POST", "runs", changed(RUN, ("pipeline_spec",), SPEC))
    assert (status, made["state"]) == (200, "PENDING")
    assert ask(strict, "POST", "runs", changed(RUN, (*GIVEN, "share"), 0.25))[0] == 200
    assert ask(strict, "POST", "recurringruns", changed(SCHEDULE, ("max_concurrency",), "10"))[0] == 200
    status, listed = ask(strict, "GET", f"experiments?page_size=5&filter={predicates(EQUALS)}")
    assert (status, [each["experiment_id"] for each in listed["experiments"]]) == (200, ["e1"])
    assert strict.misfits == []


# It does not answer as it should.


def refused(server: KfpServer, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Submit where it must end with one message that names the server, and with nothing sent; give the message."""
    message = told(main(["submit", "--host", server.uri, *more]), capsys)
    assert server.uri in message
    assert TOKEN not in message
    assert server.writes == []
    return message


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        pytest.param(refusal(401, "Jwt is expired"), ["401", "Jwt is expired", "--token-file"], id="401"),
        pytest.param(Reply(401, b"Jwt is expired", "text/plain"), ["401", "--token-file"], id="401 in plain text"),
        pytest.param(refusal(403, "not yours"), ["403", "not yours", "--namespace"], id="403"),
        pytest.param(refusal(404, "Not Found"), ["404", "Not Found", "--host"], id="404"),
        pytest.param(refusal(500, "no database"), ["500", "no database", "ml-pipeline"], id="500"),
        pytest.param(refusal(503, "starting"), ["503", "starting", "ml-pipeline"], id="503"),
        pytest.param(Reply(502, b"<title>Mauvaise r\xe9ponse</title>", "text/html"), ["502"], id="502 in Latin-1"),
        pytest.param(LOGIN_PAGE, ["login", "token", "--host"], id="login page"),
        pytest.param(TO_LOGIN_PAGE, ["login", "token", "--host"], id="on to a login page"),
        pytest.param(Trouble.SILENT, ["1 s", "--host"], id="silence"),
        pytest.param(Trouble.DROPPED, ["--host"], id="dropped"),
    ],
)
def test_another_answer(
    kubeflow: KfpServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: Answer,
    parts: list[str],
) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
    kubeflow.instead = answer
    message = refused(kubeflow, capsys, "--timeout", "1")
    assert [part for part in parts if part not in message] == []
    assert len(kubeflow.requests) == 1  # it did not go on, nor ask again


def test_schedules_asks_in_the_same_way(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.instead = refusal(503, "starting")
    for more in ([], ["--stop", "mine"]):
        message = told(main(["schedules", "--host", kubeflow.uri, *more]), capsys)
        assert f"{kubeflow.uri}: answers 503 (starting)" in message
    assert kubeflow.writes == []


def test_nobody_listens(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{free.getsockname()[1]}"
    message = told(main(["submit", "--host", host]), capsys)
    assert host in message
    assert "refused" in message
    assert "--host" in message


@pytest.mark.parametrize(
    "host", ["localhost:8080", "ftp://localhost", "//localhost", "http://", "http://localhost:port", "http://[::1"]
)
def test_what_is_no_address(
    kubeflow: KfpServer, host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = told(main(["submit", "--host", host]), capsys)
    assert host in message
    assert "--host" in message
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", host)
    assert told(main(["submit"]), capsys) == message


def test_no_host(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("submit", "schedules"):
        message = told(main([command]), capsys)
        assert "--host" in message
        assert "KF_PIPELINES_ENDPOINT" in message


def test_the_host_of_the_environment(
    kubeflow: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kubeflow.uri)
    assert main(["submit"]) == 0
    assert len(kubeflow.runs) == 1
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:1")
    assert main(["submit", "--host", kubeflow.uri]) == 0
    assert len(kubeflow.runs) == 2


def test_a_host_with_a_path(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    root = kubeflow.uri
    kubeflow.prefix = "/pipeline"
    message = told(main(["submit", "--host", root]), capsys)
    assert "404" in message
    assert "--host" in message
    assert kubeflow.runs == {}
    assert main(["submit", "--host", f"{root}/pipeline/"]) == 0
    (run,) = kubeflow.runs
    assert capsys.readouterr().out == f"pipelines: {root}/pipeline/#/runs/details/{run}\n"


# HTTPS.


def test_a_certificate_of_an_unknown_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = self_signed(tmp_path)
    with running(tmp_path, monkeypatch, certificate=certificate) as server:
        message = refused(server, capsys)
        assert "--ca-certificate" in message
        assert server.requests == []
        assert main(["submit", "--host", server.uri, "--ca-certificate", str(certificate)]) == 0
        assert len(server.runs) == 1


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_what_is_no_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    given = tmp_path / "authority.pem"
    if content is not None:
        given.write_text(content)
    with running(tmp_path, monkeypatch, certificate=self_signed(tmp_path)) as server:
        message = told(main(["submit", "--host", server.uri, "--ca-certificate", str(given)]), capsys)
        assert str(given) in message
        assert server.requests == []


def test_https_where_it_is_http(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    host = kubeflow.uri.replace("http://", "https://")
    message = told(main(["submit", "--host", host]), capsys)
    assert host in message
    assert "--host" in message


# Namespaces.


def test_a_namespace_is_missing(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.namespaces = {"team"}
    assert "--namespace" in refused(kubeflow, capsys)
    message = told(main(["schedules", "--host", kubeflow.uri]), capsys)
    assert "--namespace" in message


def test_a_namespace_of_others(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    kubeflow.namespaces = {"team"}
    message = refused(kubeflow, capsys, "--namespace", "others")
    assert "403" in message
    assert "--namespace" in message


def test_a_namespace(kubeflow: KfpServer) -> None:
    kubeflow.namespaces = {"team"}
    named = ["--host", kubeflow.uri, "--namespace", "team"]
    assert main(["submit", *named, "--cron", CRON]) == 0
    assert main(["schedules", *named]) == 0
    (experiment,) = kubeflow.experiments
    assert experiment["namespace"] == "team"
    assert [each.first("namespace") for each in kubeflow.named("list_schedules")] == ["team"]


def test_a_namespace_for_a_single_user(kubeflow: KfpServer) -> None:
    """Such a server knows none: it is not told, which the server of this test checks."""
    named = ["--host", kubeflow.uri, "--namespace", "team"]
    assert main(["submit", *named, "--cron", CRON]) == 0
    assert main(["schedules", *named]) == 0
    assert len(kubeflow.schedules) == 1


# Tokens.


def headers(server: KfpServer) -> set[str | None]:
    return {request.headers.get("Authorization") for request in server.requests}


def test_no_token(kubeflow: KfpServer) -> None:
    assert main(["submit", "--host", kubeflow.uri]) == 0
    assert headers(kubeflow) == {None}


@pytest.mark.parametrize("source", ["--token-file", "KF_PIPELINES_TOKEN", "--service-account", "the file over all"])
def test_a_token(
    kubeflow: KfpServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
) -> None:
    kubeflow.token = TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    more = []
    match source:
        case "--token-file":
            more = ["--token-file", str(file)]
        case "KF_PIPELINES_TOKEN":
            monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
        case "--service-account":
            monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
            more = ["--service-account"]
        case _:
            monkeypatch.setenv("KF_PIPELINES_TOKEN", "old")
            monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "other"))
            more = ["--token-file", str(file), "--service-account"]
    assert main(["submit", "--host", kubeflow.uri, *more]) == 0
    assert headers(kubeflow) == {f"Bearer {TOKEN}"}
    assert TOKEN not in "".join(capsys.readouterr())


def test_an_expired_token(
    kubeflow: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.token = "a new one"
    monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
    from_environment = refused(kubeflow, capsys)
    assert "expired" in from_environment
    assert "--token-file" in from_environment
    (tmp_path / "token").write_text(TOKEN)
    assert refused(kubeflow, capsys, "--token-file", "token") == from_environment


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe", f"{TOKEN}\n{TOKEN}".encode()])
def test_a_file_without_a_token(
    kubeflow: KfpServer,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
) -> None:
    if content is not None:
        Path("token").write_bytes(content)
    message = told(main(["submit", "--host", kubeflow.uri, "--token-file", "token"]), capsys)
    assert message.startswith("pipelines: token: ")
    assert TOKEN not in message
    assert kubeflow.requests == []
    # Outside pytest a record of kfp's would be a second message on stderr.
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_service_account_outside_a_pod(
    kubeflow: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", "/nowhere/token")
    message = told(main(["submit", "--host", kubeflow.uri, "--service-account"]), capsys)
    assert message.startswith("pipelines: /nowhere/token: ")
    assert kubeflow.requests == []


def test_a_token_with_a_line_break_at_its_end(kubeflow: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it comes from a Secret that somebody made of a file."""
    kubeflow.token = TOKEN
    monkeypatch.setenv("KF_PIPELINES_TOKEN", f"{TOKEN}\n")
    assert main(["submit", "--host", kubeflow.uri]) == 0
    assert headers(kubeflow) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("text", [f"{TOKEN}\n{TOKEN}", f"{TOKEN} \N{EURO SIGN}"])
def test_what_is_no_token(
    kubeflow: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", text)
    message = told(main(["submit", "--host", kubeflow.uri]), capsys)
    assert "KF_PIPELINES_TOKEN" in message
    assert TOKEN not in message
    assert kubeflow.requests == []


# Schedules.


def test_many_schedules(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(150):
        kubeflow.schedules[f"id-{number}"] = {
            "recurring_run_id": f"id-{number}",
            "display_name": f"number {number}",
            "status": "DISABLED" if number % 2 else "ENABLED",
            "trigger": {"cron_schedule": {"cron": f"0 {number % 60} 3 * * *"}},
        }
    assert main(["schedules", "--host", kubeflow.uri]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[0] for words in shown] == list(kubeflow.schedules)
    assert shown[61] == ["id-61", "disabled", "0", "1", "3", "*", "*", "*", "number", "61"]
    assert shown[148][1] == "enabled"
    assert len(kubeflow.named("list_schedules")) > 1  # an answer is a page


def test_a_schedule_that_somebody_made_on_kubeflows_page(
    kubeflow: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    trigger = {"periodic_schedule": {"interval_second": "3600"}}
    kubeflow.schedules["id-1"] = {"recurring_run_id": "id-1", "display_name": "hourly", "trigger": trigger}
    assert main(["schedules", "--host", kubeflow.uri]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("id-1 ")
    assert line.endswith(" hourly")


@pytest.mark.parametrize("wrong", ["id-2", "id-1/x", "../experiments/e1", "id-1?x=1", "id 1"])
def test_a_wrong_schedule(kubeflow: KfpServer, capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    kubeflow.schedules["id-1"] = {"recurring_run_id": "id-1", "display_name": "mine"}
    message = told(main(["schedules", "--host", kubeflow.uri, "--stop", wrong]), capsys)
    assert kubeflow.uri in message
    assert wrong in message
    assert "schedules" in message  # which lists those that there are
    assert "--host" not in message  # which was right
    assert list(kubeflow.schedules) == ["id-1"]
