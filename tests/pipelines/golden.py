"""What the pipelines compile to, kept as files: a change of them is to be seen. `make golden` writes them anew."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from kfp import compiler
from repositories import ROOT

from ganflow import params
from pipelines.cluster import load_cluster
from pipelines.training import Site, sweep_pipeline, training_pipeline

FOLDER = Path(__file__).parent / "golden"
NAMES = ("training-gpu", "training-nodes", "sweep")


def compiled(name: str) -> str:
    """Compile one of the pipelines; the digests of the code, which change with every edit, are left out."""
    loaded = params.load(ROOT / "params.yaml")
    cluster = load_cluster(ROOT / "cluster.yaml")
    if name == "sweep":
        pipeline = sweep_pipeline(loaded, [["seed=1"], ["seed=2"]], 2, Site(cluster))
    elif name == "training-gpu":
        pipeline = training_pipeline(loaded, Site(cluster, gpus=1))
    else:
        pipeline = training_pipeline(loaded, Site(cluster, nodes=2))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        return re.sub(r"\d+\.\d+\.\d+\S*\+[0-9a-f]{12}", "CODE", path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in NAMES:
        (FOLDER / f"{each}.yaml").write_text(compiled(each), encoding="utf-8")
