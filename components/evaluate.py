"""evaluate: FID between its floor and its ceiling, and the discriminator's accuracy."""

from kfp import dsl


def evaluate(
    leaves: dict[str, object],
    trial: str,
    code: str,
    prepared: dsl.Input[dsl.Dataset],
    trained: dsl.Input[dsl.Model],
    evaluated: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
) -> None:
    """Measure the trained model; the folder of the artifact holds metrics.json, protocol.json and pictures."""
    from pathlib import Path

    from ganflow import pod, report
    from ganflow.stages.evaluate import evaluate as evaluate_model
    from ganflow.tracking.sweeps import part_of_sweep

    with pod.plain_failures("evaluate", code), part_of_sweep(pod.parent_run(trial)):
        # The training's device may be one that this pod has not.
        params = pod.params_of({**leaves, "train.device": "auto"}, trained.metadata["params"])
        out = Path(evaluated.path)
        metrics = evaluate_model(params, Path(prepared.path), Path(trained.path), out, pod.states())
        for name, value in metrics.items():
            if value is not None:
                evaluated.log_metric(name, value)
        evaluated.metadata.update(trained_by=trained.metadata["run_id"], params=pod.sections(params, "evaluate"))
        title = f"{params.data.registered_model}, {params.model.family}"
        Path(page.path).write_text(report.evaluation_page(out, title), encoding="utf-8")
