"""What a sweep adds to the stages: the parent run before the trials, and the choice after them."""

from kfp import dsl


def open_sweep(leaves: dict[str, object], trials: list[str]) -> str:
    """Give the id of the MLflow run that is the parent of the trials."""
    import json

    from ganflow import pod
    from ganflow.tracking import sweeps

    with pod.plain_failures():
        return sweeps.open_sweep(pod.params_of(leaves), [json.loads(trial) for trial in trials])


def choose(
    parent_run: str,
    trained: dsl.Input[list[dsl.Model]],
    evaluated: dsl.Input[list[dsl.Metrics]],
    best_trained: dsl.Output[dsl.Model],
    best_evaluated: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Pass on the model with the lowest FID, and end the parent run."""
    import json
    import shutil
    from pathlib import Path

    from ganflow import pod, report
    from ganflow.tracking import sweeps
    from ganflow.tracking.evaluations import read_metrics

    with pod.plain_failures(), sweeps.part_of_sweep(parent_run):
        models = {model.metadata["run_id"]: model for model in trained}
        metrics = {entry.metadata["trained_by"]: entry for entry in evaluated}
        trials = [
            sweeps.Trial(
                run_id,
                json.loads(model.metadata["overrides"]),
                read_metrics(Path(metrics[run_id].path)).get("fid"),
            )
            for run_id, model in models.items()
        ]
        best = sweeps.best_of(trials)
        for artifact, target in ((models[best.run_id], best_trained), (metrics[best.run_id], best_evaluated)):
            shutil.copytree(artifact.path, target.path, dirs_exist_ok=True)
            target.metadata.update(artifact.metadata)
        sweeps.close_sweep(parent_run, trials, best)
        Path(page.path).write_text(report.sweep_page(trials, best), encoding="utf-8")
