"""`python -m pipelines compile | run | submit | schedules`, from the repository's root."""

import argparse
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganflow.errors import UserError

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

    from ganflow.params import Params
    from pipelines.api import Api
    from pipelines.cluster import Cluster
    from pipelines.training import Site

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 2 for a mistake of the user's, 1 for a run that failed."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except UserError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pipelines: stopped", file=sys.stderr)
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description="ganflow's stages as Kubeflow pipelines.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    what = argparse.ArgumentParser(add_help=False)
    what.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="params.yaml")
    what.add_argument(
        "-S", dest="overrides", metavar="KEY.PATH=VALUE", action="append", default=[], help="override one parameter"
    )
    what.add_argument(
        "--sweep",
        metavar="KEY.PATH=V1,V2,...",
        action="append",
        default=[],
        help="train once for each value, or each combination of several --sweep, and register the best",
    )
    what.add_argument(
        "--parallel", type=_positive, default=0, metavar="N", help="trainings of a sweep at once (here 1, there 4)"
    )
    what.add_argument("--data-version", default="", metavar="TEXT", help="change it when the pictures in data.root did")

    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--cluster", type=Path, default=Path("cluster.yaml"), metavar="FILE", help="cluster.yaml")
    where.add_argument("--image", type=_text, help="image of the tasks, in place of cluster.yaml's")
    where.add_argument("--gpus", type=_positive, default=0, metavar="N", help="GPUs of each node of the training")
    where.add_argument("--nodes", type=_positive, default=1, metavar="N", help="nodes of the training")
    where.add_argument(
        "--from-dvc", action="store_true", help="pull the prepared data that dvc.lock names, in place of preparing"
    )
    where.add_argument("--dvc-remote", default="", metavar="URL", help="remote to pull from (the repository's default)")

    server = argparse.ArgumentParser(add_help=False)
    server.add_argument(
        "--host",
        default=os.environ.get("KF_PIPELINES_ENDPOINT", ""),
        help="address of Kubeflow Pipelines, with https://",
    )
    server.add_argument("--namespace", default="", help="your namespace, where Kubeflow has one for each user")
    server.add_argument("--token-file", type=Path, metavar="FILE", help="file with a bearer token")
    server.add_argument(
        "--service-account",
        action="store_true",
        help="in a pod: take the token that Kubernetes mounts for it",
    )
    server.add_argument("--ca-certificate", default="", metavar="FILE", help="certificate of the server's authority")
    server.add_argument("--timeout", type=_positive, default=30, metavar="SECONDS", help="longest wait for an answer")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str, *parents: Any) -> Any:
        added = commands.add_parser(name, help=text, description=text, parents=parents)
        added.set_defaults(command=command)
        return added

    compile_ = add("compile", _compile, "write the pipeline as YAML, for Kubeflow's upload page", what, where)
    compile_.add_argument("--out", type=Path, default=Path("pipeline.yaml"), metavar="FILE", help="pipeline.yaml")
    add("run", _run, "run the pipeline on this machine, each task as a process", what)
    submit = add("submit", _submit, "run the pipeline on a cluster", what, where, server)
    submit.add_argument("--experiment", default="", help="experiment in Kubeflow (that of tracking.experiment)")
    submit.add_argument("--name", default="", help="name of the run")
    submit.add_argument("--wait", action="store_true", help="show the tasks until the run ends; status 1 if it fails")
    submit.add_argument("--cron", type=_text, metavar="EXPRESSION", help='run again and again, as in "0 0 3 * * *"')
    schedules = add("schedules", _schedules, "list what --cron started, or stop it", server)
    schedules.add_argument("--stop", type=_text, metavar="ID", help="the schedule to stop")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}")
    return int(text)


def _text(text: str) -> str:
    """An empty one is a variable that was not set: not to be taken for no option at all."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text.strip()


def _compile(options: argparse.Namespace) -> int:
    from kfp import compiler

    params = _params(options)
    pipeline, arguments = _pipeline(options, params, _site(options, params))
    try:
        compiler.Compiler().compile(pipeline, str(options.out), pipeline_parameters=arguments)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {options.out}: cannot be written: {error}") from None
    print(f"pipelines: wrote {options.out}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from ganflow.tracking.store import connect
    from pipelines import local
    from pipelines.training import Site

    params = _params(options)
    connect()  # the first task that needs MLflow may come late
    pipeline, arguments = _pipeline(options, params, Site())
    if not options.data_version:
        arguments["data_version"] = local.data_version(params)
    return 0 if local.run(pipeline, arguments) else 1


def _submit(options: argparse.Namespace) -> int:
    from pipelines.api import SUCCEEDED, Order

    if options.cron and len(options.cron.split()) == 5:
        raise UserError(
            f"--cron {options.cron!r}: has five fields; to Kubeflow the first of six is the seconds: '0 {options.cron}'"
        )
    if options.cron and options.wait:
        raise UserError("--wait: a schedule has no end to wait for; leave it out with --cron")
    params = _params(options)
    site = _site(options, params)
    pipeline, arguments = _pipeline(options, params, site)
    server = _server(options)
    server.check()
    order = Order(
        pipeline=pipeline,
        arguments=arguments,
        name=options.name or f"{pipeline.name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
        experiment=options.experiment or params.tracking.experiment,
        service_account=site.cluster.service_account if site.cluster else "",
    )
    if options.cron:
        schedule = server.schedule(order, options.cron)
        print(f"pipelines: schedule {schedule} runs {pipeline.name} at {options.cron!r}; `schedules --stop` ends it")
        return 0
    run = server.submit(order)
    print(f"pipelines: {server.address(run)}", flush=True)
    if not options.wait:
        return 0
    try:
        state = server.follow(run, pipeline, lambda text: print(f"pipelines: {text}", flush=True))
    except KeyboardInterrupt:
        print(f"pipelines: no longer waiting; the run goes on: {server.address(run)}", file=sys.stderr)
        return _INTERRUPTED
    print(f"pipelines: the run {state.lower()}: {server.address(run)}")
    return 0 if state == SUCCEEDED else 1


def _schedules(options: argparse.Namespace) -> int:
    server = _server(options)
    server.check()
    if options.stop:
        server.stop_schedule(options.stop)
        print(f"pipelines: stopped {options.stop}; runs that it started go on")
        return 0
    for schedule, name, cron, status in server.schedules():
        print(f"{schedule}  {status.lower():8}  {cron:20}  {name}")
    return 0


def _params(options: argparse.Namespace) -> "Params":
    from ganflow import params

    return params.load(options.params, options.overrides)


def _pipeline(options: argparse.Namespace, params: "Params", site: "Site") -> tuple["BaseComponent", dict[str, Any]]:
    """Make the pipeline, and the arguments to run it with: all parameters, so that Kubeflow's pages show them."""
    from pipelines import sweeps
    from pipelines.dvc_lock import pushed_data
    from pipelines.leaves import leaves_of, require_passable
    from pipelines.training import sweep_pipeline, training_pipeline

    arguments: dict[str, Any] = {leaf.name: leaf.value for leaf in leaves_of(params)}
    arguments["data_version"] = options.data_version
    if getattr(options, "from_dvc", False):
        pushed = pushed_data(params, Path.cwd(), options.dvc_remote)
        arguments |= {"dvc_remote": pushed.remote, "dvc_md5": pushed.md5}
    for name, value in arguments.items():
        require_passable(name, value)
    if not options.sweep:
        return training_pipeline(params, site), arguments
    trials = sweeps.trials(params, options.sweep)
    for trial in trials:
        _require_divisible(sweeps.with_trial(params, trial), site)
    arguments["trials"] = [json.dumps(trial) for trial in trials]
    return sweep_pipeline(params, trials, options.parallel or (4 if site.cluster else 1), site), arguments


def _site(options: argparse.Namespace, params: "Params") -> "Site":
    from pipelines.cluster import load_cluster
    from pipelines.training import Site

    cluster: Cluster = load_cluster(options.cluster, options.image)
    site = Site(cluster, options.gpus, options.nodes, _commit())
    if site.processes > 1 and not cluster.checkpoints.claim:
        raise UserError(f"{options.cluster}: checkpoints.claim is empty, but several processes need a volume to share")
    _require_divisible(params, site)
    return site


def _require_divisible(params: "Params", site: "Site") -> None:
    if params.train.batch_size % site.processes:
        raise UserError(
            f"train.batch_size: {params.train.batch_size} cannot be divided by the {site.processes} processes of "
            f"--nodes {site.nodes} with --gpus {site.gpus}"
        )


def _commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _server(options: argparse.Namespace) -> "Api":
    from pipelines.api import Api

    if not options.host:
        raise UserError("--host: is missing; give the address of Kubeflow Pipelines, or set KF_PIPELINES_ENDPOINT")
    return Api(
        options.host,
        options.namespace,
        token=_token(options),
        ca_certificate=_certificate(options.ca_certificate),
        timeout=options.timeout,
    )


def _token(options: argparse.Namespace) -> Callable[[], str] | None:
    """Give what reads the token: from a file again and again, since a pod's is renewed."""
    from kfp import client

    from pipelines.api import checked_token, token_in

    if options.token_file:
        return partial(token_in, options.token_file)
    if options.service_account:
        path = os.environ.get(client.KF_PIPELINES_SA_TOKEN_ENV) or client.KF_PIPELINES_SA_TOKEN_PATH
        return partial(token_in, Path(path))
    text = os.environ.get("KF_PIPELINES_TOKEN")
    return partial(checked_token, text, "KF_PIPELINES_TOKEN") if text else None


def _certificate(path: str) -> str:
    if path:
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:  # ssl.SSLError among them
            raise UserError(f"--ca-certificate {path}: is no certificate ({error.strerror or error})") from None
    return path


if __name__ == "__main__":
    sys.exit(main())
