"""train: the two-player game, on one machine."""

from kfp import dsl


def train(
    leaves: dict[str, object],
    trial: str,
    code: str,
    prepared: dsl.Input[dsl.Dataset],
    trained: dsl.Output[dsl.Model],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Train, or go on from the checkpoint of a pod that was deleted or evicted.

    `trial` is JSON: what this training changes in a sweep, and the sweep's run in MLflow; {} outside of one.
    """
    from pathlib import Path

    from ganflow import pod
    from ganflow.stages.train import train as train_players
    from ganflow.tracking.sweeps import part_of_sweep

    with pod.plain_failures("train", code), part_of_sweep(pod.parent_run(trial)):
        params = pod.params_of(leaves, prepared.metadata["params"], trial=trial)
        out = Path(trained.path)
        train_players(params, Path(prepared.path), out, pod.states(), parent_run=pod.parent_run(trial))
        pod.send_rest()
        trained.metadata.update(pod.about_training(params, out, trial))
        Path(page.path).write_text(pod.training_page(params, out), encoding="utf-8")
