"""`ganflow ...`: a thin shell over the stages. Heavy imports wait until a command needs them."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ganflow import __version__
from ganflow.errors import UserError

ARTIFACTS = Path("artifacts")
PREPARED, TRAINED, EVALUATED, REGISTERED = (ARTIFACTS / stage for stage in ("prepare", "train", "evaluate", "register"))
SCORED = ARTIFACTS / "scores"

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 2 for a mistake of the user's, 1 for a training that failed."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("ganflow").setLevel(logging.INFO)
    command: Callable[[argparse.Namespace], int | None] = options.command
    try:
        return command(options) or 0
    except UserError as error:
        print(f"ganflow: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ganflow: stopped", file=sys.stderr)
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ganflow", description="Train generative adversarial networks as a reproducible pipeline."
    )
    parser.add_argument("--version", action="version", version=f"ganflow {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    overrides = argparse.ArgumentParser(add_help=False)
    overrides.add_argument(
        "-S", dest="overrides", metavar="KEY.PATH=VALUE", action="append", default=[], help="override one parameter"
    )
    params_file = argparse.ArgumentParser(add_help=False)
    params_file.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="params.yaml")
    with_params = argparse.ArgumentParser(add_help=False, parents=[overrides, params_file])
    with_data = argparse.ArgumentParser(add_help=False, parents=[with_params])
    with_data.add_argument(
        "--prepared", default=str(PREPARED), metavar="PLACE", help=f"prepared data, a folder or a URL ({PREPARED})"
    )

    def add(
        name: str, command: Callable[[argparse.Namespace], int | None], text: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=parents)
        added.set_defaults(command=command)
        return added

    prepare = add("prepare", _prepare, f"pack the data set into {PREPARED}", with_params)
    prepare.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="how many processes read and pack pictures (one a CPU, if they are many)",
    )
    training = add("train", _train, f"train the two players; weights, history and samples go to {TRAINED}", with_data)
    training.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="go on from the last checkpoint in a folder below .ganflow/train, with the present parameters",
    )
    measure = add("evaluate", _evaluate, f"measure FID and the discriminator's accuracy into {EVALUATED}", with_data)
    measure.add_argument(
        "--images", type=Path, metavar="FOLDER", help="measure the pictures in a folder instead, made by anything"
    )
    measure.add_argument("--out", type=Path, metavar="FOLDER", help=f"with --images: {SCORED}/NAME")
    add("register", _register, "put the model through the quality gate and into the registry", with_data)

    sample = add("sample", _sample, "generate pictures from the trained weights or a registered model", with_params)
    sample.add_argument("--model", metavar="URI", help="a registered model, as in models:/digits-16px@champion")
    sample.add_argument("-n", type=int, default=64, metavar="N", help="how many pictures (64)")
    sample.add_argument("--seed", type=int, default=0, help="seed of the latents (0)")
    sample.add_argument("--label", type=int, metavar="CLASS", help="class of all pictures, of a family that takes one")
    sample.add_argument(
        "--truncation", type=float, metavar="PSI", help="0 (all alike) to 1 (none), of a family that can be truncated"
    )
    sample.add_argument(
        "--out", type=Path, default=Path("samples.png"), help="a grid as PNG, or with --single a folder"
    )
    sample.add_argument("--single", action="store_true", help="write single PNG files into the folder --out")

    summary = add("summary", _summary, "mean and deviation over the runs that differ in their seed alone", params_file)
    summary.add_argument(
        "--experiment", metavar="NAME", help="the MLflow experiment (tracking.experiment of params.yaml)"
    )
    summary.add_argument(
        "-S",
        dest="conditions",
        metavar="KEY.PATH=VALUE",
        action="append",
        default=[],
        help="only runs with this parameter",
    )
    summary.add_argument("--json", type=Path, metavar="FILE", help="write it all to a file, unrounded")

    sync = add("sync", _sync, "send MLflow what it has not had yet of any training's journal")
    sync.add_argument("--states", type=Path, metavar="FOLDER", help="where trainings keep their state (.ganflow)")
    experiment = add("experiment", _experiment, "write params.yaml from experiments/NAME.yaml", overrides)
    experiment.add_argument("name", metavar="NAME")
    add("schema", _schema, "print the JSON Schema of params.yaml")
    return parser


def _prepare(options: argparse.Namespace) -> None:
    from ganflow import params
    from ganflow.stages.prepare import prepare

    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: must be at least 1")
    prepare(params.load(options.params, options.overrides), PREPARED, options.workers)


def _train(options: argparse.Namespace) -> int:
    from ganflow import params
    from ganflow.home import state_folder
    from ganflow.stages.prepared import prepared_folder
    from ganflow.stages.train import train
    from ganflow.training.loop import DivergedError, InterruptedTraining

    parsed = params.load(options.params, options.overrides)
    try:
        states = state_folder()
        train(parsed, prepared_folder(options.prepared, states), TRAINED, states, resume=options.resume)
    except InterruptedTraining as error:
        _say_how_to_resume(error, options, error.state, ["-S", "KEY.PATH=VALUE"], "goes on with another value")
        return _INTERRUPTED
    except DivergedError as error:
        rates = {key: getattr(parsed.train, key) / 2 for key in ("generator_lr", "discriminator_lr")}
        lower = [part for key, rate in rates.items() for part in ("-S", f"train.{key}={rate:g}")]
        _say_how_to_resume(error, options, error.state, lower, "goes on from the checkpoint with half the rates")
        return 1
    return 0


def _say_how_to_resume(
    error: Exception, options: argparse.Namespace, state: Path | None, changes: list[str], what: str
) -> None:
    """Say how a training ended, and the command that goes on with other parameters from the checkpoint it left."""
    import shlex

    print(f"ganflow: {error}", file=sys.stderr)
    if state is not None:
        folder = state.relative_to(Path.cwd()) if state.is_relative_to(Path.cwd()) else state
        command = ["ganflow", "train", "--resume", str(folder)]
        if options.params != Path("params.yaml"):
            command += ["--params", str(options.params)]
        command += [part for override in options.overrides for part in ("-S", override)]
        print(f"ganflow: `{shlex.join([*command, *changes])}` {what}", file=sys.stderr)


def _evaluate(options: argparse.Namespace) -> None:
    from ganflow import params
    from ganflow.home import state_folder
    from ganflow.stages.evaluate import evaluate, evaluate_folder
    from ganflow.stages.prepared import prepared_folder

    parsed, states = params.load(options.params, options.overrides), state_folder()
    if options.images is None:
        if options.out is not None:
            raise UserError(f"--out: goes with --images alone; without it, {EVALUATED} is written")
        evaluate(parsed, prepared_folder(options.prepared, states), TRAINED, EVALUATED, states)
    else:
        out = options.out or SCORED / options.images.resolve().name
        metrics = evaluate_folder(parsed, prepared_folder(options.prepared, states), options.images, out, states)
        for name, value in metrics.items():
            if value is not None:  # no discriminator comes with pictures
                print(f"{name:24} {value:.6g}")


def _register(options: argparse.Namespace) -> None:
    from ganflow import params
    from ganflow.home import state_folder
    from ganflow.stages.prepared import prepared_folder
    from ganflow.stages.register import register

    parsed, states = params.load(options.params, options.overrides), state_folder()
    register(parsed, prepared_folder(options.prepared, states), TRAINED, EVALUATED, REGISTERED, states)


def _sample(options: argparse.Namespace) -> None:
    from ganflow import params
    from ganflow.stages.sample import Order, sample, sample_registered
    from ganflow.training.weights import folder_of

    chosen = {name: value for name in ("label", "truncation") if (value := getattr(options, name)) is not None}
    order = Order(n=options.n, seed=options.seed, chosen=chosen)
    if options.model is None:
        parsed = params.load(options.params, options.overrides)
        weights = folder_of(TRAINED, parsed.evaluate.checkpoint)
        sample(weights, parsed.train.device, order, options.out, single=options.single)
    else:
        sample_registered(options.model, order, options.out, single=options.single)


def _summary(options: argparse.Namespace) -> None:
    from ganflow import params
    from ganflow.tracking import summary

    experiment = options.experiment or params.load(options.params).tracking.experiment
    runs = summary.select(summary.read_runs(experiment), options.conditions)
    shown = summary.configurations(runs)
    if options.json:
        summary.write(options.json, experiment, shown)
    print(summary.render(shown))


def _sync(options: argparse.Namespace) -> None:
    from ganflow.home import state_folder
    from ganflow.tracking import delivery

    print(f"ganflow: {delivery.sync(options.states or state_folder())} journal lines sent")


def _experiment(options: argparse.Namespace) -> None:
    from ganflow.experiments import switch
    from ganflow.home import state_folder

    kept = switch(options.name, options.overrides, Path("params.yaml"), state_folder() / "params")
    print(f"ganflow: params.yaml is now the experiment {options.name}" + (f"; yours is kept as {kept}" if kept else ""))


def _schema(_: argparse.Namespace) -> None:
    import json

    from ganflow.params import json_schema

    print(json.dumps(json_schema(), indent=2))
