"""register: the quality gate, the model registry and its aliases."""

from kfp import dsl


def register(
    leaves: dict[str, object],
    code: str,
    prepared: dsl.Input[dsl.Dataset],
    trained: dsl.Input[dsl.Model],
    evaluated: dsl.Input[dsl.Metrics],
    registration: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Decide, register, and say why; never from the cache, since the registry may have moved on."""
    from pathlib import Path

    from ganflow import pod, report
    from ganflow.stages.register import register as register_model

    with pod.plain_failures("register", code):
        # The training's device may be one that this pod has not.
        params = pod.params_of(
            {**leaves, "train.device": "auto"}, trained.metadata["params"], evaluated.metadata["params"]
        )
        result = register_model(
            params,
            Path(prepared.path),
            Path(trained.path),
            Path(evaluated.path),
            Path(registration.path),
            pod.states(),
        )
        registration.metadata.update({key: value for key, value in result.items() if isinstance(value, str)})
        Path(summary.path).write_text(report.registration_summary(result), encoding="utf-8")
