"""prepare: raw pictures to packed arrays with a data card, or these arrays from the DVC remote."""

from kfp import dsl


def prepare(
    leaves: dict[str, object],
    code: str,
    data_version: str,
    dvc_remote: str,
    dvc_md5: str,
    prepared: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Pack the pictures, or pull what `dvc repro` packed where `dvc_md5` names it.

    `data_version` is only there to be changed when the pictures were: Kubeflow's cache cannot see them.
    """
    from pathlib import Path

    from ganflow import pod, report
    from ganflow.dvc_remote import pull
    from ganflow.stages.prepare import prepare as prepare_data

    with pod.plain_failures("prepare", code):
        params = pod.params_of(leaves)
        out = Path(prepared.path)
        card = pull(dvc_remote, dvc_md5, out) if dvc_md5 else prepare_data(params, out)
        prepared.metadata.update(name=card.name, digest=card.digest, params=pod.sections(params, "data"))
        Path(summary.path).write_text(report.data_summary(card), encoding="utf-8")
