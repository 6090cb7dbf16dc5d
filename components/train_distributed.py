"""train on several nodes or GPUs: a TrainJob that this pod launches, follows and cleans up."""

from kfp import dsl


def train_distributed(
    leaves: dict[str, object],
    trial: str,
    nodes: int,
    gpus: int,
    code: str,
    prepared: dsl.Input[dsl.Dataset],
    trained: dsl.Output[dsl.Model],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Train on `nodes` machines with `gpus` GPUs each, on what of the volume for checkpoints is this training's."""
    from pathlib import Path

    from ganflow import pod
    from ganflow.tracking.sweeps import part_of_sweep
    from ganflow.trainjob import train_on_nodes

    with pod.plain_failures("train", code), part_of_sweep(pod.parent_run(trial)):
        params = pod.params_of(leaves, prepared.metadata["params"], trial=trial)
        out = Path(trained.path)
        train_on_nodes(params, Path(prepared.path), out, pod.states(), pod.parent_run(trial), nodes, gpus)
        pod.send_rest()
        trained.metadata.update(pod.about_training(params, out, trial))
        Path(page.path).write_text(pod.training_page(params, out), encoding="utf-8")
