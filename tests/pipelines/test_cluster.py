from pathlib import Path

import pytest
from repositories import ROOT

from ganflow.errors import UserError
from pipelines.cluster import load_cluster


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_repositorys_own_is_valid() -> None:
    cluster = load_cluster(ROOT / "cluster.yaml")
    assert cluster.checkpoints.path == "/checkpoints"
    assert cluster.gpu.tolerations[0].key == "nvidia.com/gpu"


def test_two_lines_are_enough(tmp_path: Path) -> None:
    cluster = load_cluster(write(tmp_path, "image: a\nmlflow_secret: b\n"))
    assert (cluster.image, cluster.training.memory, cluster.retries) == ("a", "8Gi", 10)


def test_another_image_takes_the_place_of_the_one_in_the_file(tmp_path: Path) -> None:
    assert load_cluster(write(tmp_path, "image: a\nmlflow_secret: b\n"), "c@sha256:1").image == "c@sha256:1"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("imagee: x", "imagee: "),
        ("retries: -1", "retries: "),
        ("retries: '3'", "retries: "),
        ("user: 0", "user: "),
        ("training: {memory: 8 GB}", "training.memory: "),
        ("training: {memory: ''}", "training.memory: "),
        ("training: {memory: 1.5Gi}", "training.memory: "),
        ("training: {cpu: 2Gi}", "training.cpu: "),
        ("training: {cpu: ''}", "training.cpu: "),
        ("shared_memory: ''", "shared_memory: "),
        ("gpu: {resource: ''}", "gpu.resource: "),
        ("retries: 1000000000000", "retries: "),
        ("training: {cpus: '2'}", "training.cpus: "),
        ("checkpoints: {claim: A_B, path: /xy}", "checkpoints.claim: "),
        ("checkpoints: {claim: a, path: relative}", "checkpoints.path: "),
        ("gpu: {tolerations: [{operator: Is}]}", "gpu.tolerations.0.operator: "),
        ("image_pull_policy: Sometimes", "image_pull_policy: "),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path, f"image: a\nmlflow_secret: b\n{line}\n")
    with pytest.raises(UserError) as caught:
        load_cluster(path)
    first, *problems = str(caught.value).splitlines()
    assert first == f"{path}: 1 to put right:"
    assert problems[0].strip().startswith(said)


def test_what_has_to_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 to put right:\n +image: .*\n +mlflow_secret: "):
        load_cluster(write(tmp_path, "user: 5\n"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cluster\.yaml: there is no such file; .* give --cluster"):
        load_cluster(tmp_path / "cluster.yaml")
