from pathlib import Path

import pytest
from packed_noise import pack_noise

from ganflow import cli
from ganflow.data.card import DataCard
from ganflow.stages.prepared import prepared_folder


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """Prepared data in another place than the repository, with a classifier beside it."""
    folder = tmp_path / "origin"
    folder.mkdir()
    pack_noise(folder, 40)
    (folder / "extractor.json").write_text("{}")
    (folder / "extractor.safetensors").write_bytes(b"weights")
    return folder


def test_a_folder_stays_where_it_is(tmp_path: Path) -> None:
    assert prepared_folder("artifacts/prepare", tmp_path) == Path("artifacts/prepare")
    assert list(tmp_path.iterdir()) == []


def test_a_url_is_copied_with_the_classifier(origin: Path, tmp_path: Path) -> None:
    folder = prepared_folder(origin.as_uri(), tmp_path / "states")
    assert folder.parent == tmp_path / "states" / "prepared"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in origin.iterdir()
    }


def test_training_from_a_url(origin: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["model.family=vanilla", "model.hidden_units=8", "data.resolution=8", "train.images=64"]
    (repository / "params.yaml").write_text("model: {family: vanilla}\n")
    overrides = [part for setting in settings for part in ("-S", setting)]
    assert cli.main(["train", "--prepared", origin.as_uri(), *overrides]) == 0
    assert (repository / "artifacts" / "train" / "run.json").exists()
    assert not (repository / "artifacts" / "prepare").exists()
    digest = DataCard.load(origin / "card.json").digest.removeprefix("sha256:")
    assert (repository / ".ganflow" / "prepared" / digest / "train_images-00000.npy").exists()

    capsys.readouterr()
    for command in ("train", "evaluate", "register"):
        assert cli.main([command, "--prepared", "file:///no/where"]) == 2
        assert capsys.readouterr().err.startswith("ganflow: file:///no/where: there is no card.json (")
