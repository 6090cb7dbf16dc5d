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
    from ganflow.trainjob import JobSettings, train_on_nodes

    with pod.plain_failures("train", code), part_of_sweep(pod.parent_run(trial)):
        params = pod.params_of(leaves, prepared.metadata["params"], trial=trial)
        data, out = Path(prepared.path), Path(trained.path)
        work = pod.job_folder(params, data)
        train_on_nodes(params, data, out, work, pod.parent_run(trial), nodes, gpus, JobSettings.from_environment())
        trained.metadata.update(pod.about_training(params, out, trial))
        Path(page.path).write_text(pod.training_page(params, out), encoding="utf-8")
