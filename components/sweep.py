"""What a sweep adds to the stages: the parent run before the trials, and the choice after them."""

from kfp import dsl


def open_sweep(leaves: dict[str, object], trials: list[str]) -> list[str]:
    """Open the MLflow run that is the parent of the trials, and give each trial with its id, as JSON.

    The id goes with the loop's items since kfp.local 2.17 puts the item in the place of any other task's output that is
    used inside of the loop.
    """
    import json

    from ganflow import pod
    from ganflow.tracking import sweeps

    with pod.plain_failures():
        overrides = [json.loads(trial) for trial in trials]
        parent_run = sweeps.open_sweep(pod.params_of(leaves), overrides)
        return [json.dumps({"overrides": each, "parent_run": parent_run}) for each in overrides]


def choose(
    trained: dsl.Input[list[dsl.Model]],
    evaluated: dsl.Input[list[dsl.Metrics]],
    best_trained: dsl.Output[dsl.Model],
    best_evaluated: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Pass on the model with the lowest FID, and end the parent run."""
    import shutil
    from pathlib import Path

    from ganflow import pod, report
    from ganflow.tracking import sweeps
    from ganflow.tracking.evaluations import read_metrics

    parent_run = pod.parent_run(trained[0].metadata["trial"])
    with pod.plain_failures(), sweeps.part_of_sweep(parent_run):
        models = {model.metadata["run_id"]: model for model in trained}
        metrics = {entry.metadata["trained_by"]: entry for entry in evaluated}
        trials = [
            sweeps.Trial(
                run_id,
                pod.overrides(model.metadata["trial"]),
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
