from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation import classifier
from ganflow.evaluation.classes import ClassTally, modes
from ganflow.evaluation.extractor import load_extractor, load_labeller

CPU = torch.device("cpu")


def test_the_data_sets_own_classifier(packed: PackedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_LEAST_IMAGES", 128)
    monkeypatch.setattr(classifier, "_PASSES", 1)
    classifier.train_classifier(packed, 0, packed.folder)
    images = torch.from_numpy(packed.images("test")[:].copy())

    state = torch.get_rng_state()
    extractor = load_extractor("classifier", "", packed.folder, CPU)

    assert torch.equal(torch.get_rng_state(), state)
    network, digest = classifier.load_classifier(packed.folder)
    assert (extractor.name, extractor.digest, extractor.dim) == ("classifier", digest, 64)
    assert torch.equal(extractor.features(images), network.features(images))
    assert not extractor.features(images).requires_grad
    assert (extractor.resize, extractor.device) == ("none", CPU)
    torch.testing.assert_close(extractor.logits(extractor.features(images)), network(images))
    assert not extractor.logits(extractor.features(images)).requires_grad


def test_the_labeller_is_the_same_classifier(
    tmp_path: Path, write_packed: Callable[..., PackedData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "_LEAST_IMAGES", 128)
    monkeypatch.setattr(classifier, "_PASSES", 1)
    packed = write_packed(tmp_path, classes=3)
    assert load_labeller(packed.folder, CPU) is None
    classifier.train_classifier(packed, 0, packed.folder)
    images = torch.from_numpy(packed.images("test")[:].copy())

    label = load_labeller(packed.folder, CPU)

    assert label is not None
    network, _ = classifier.load_classifier(packed.folder)
    assert label(images).shape == (40, 3)
    assert torch.equal(label(images), network(images))
    assert not label(images).requires_grad


def test_channels_that_are_pictures_of_their_own(packed_channels: PackedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_LEAST_IMAGES", 2_000)
    monkeypatch.setattr(classifier, "_PASSES", 1)
    classifier.train_classifier(packed_channels, 0, packed_channels.folder)
    images = torch.from_numpy(packed_channels.images("test")[:].copy())

    extractor = load_extractor("classifier", "", packed_channels.folder, CPU)
    label = load_labeller(packed_channels.folder, CPU)

    features = extractor.features(images)
    assert features.shape == (60, extractor.dim) == (60, 192)
    assert label is not None
    torch.testing.assert_close(extractor.logits(features), label(images))
    tally = ClassTally()
    tally.update(label(images))
    true = torch.from_numpy(packed_channels.labels("test").copy())
    assert abs(modes(tally.counts) - len(true.unique())) <= 1
    assert len(tally.counts) == 27


def test_without_labels_inception_is_recommended(tmp_path: Path, write_packed: Callable[..., PackedData]) -> None:
    packed = write_packed(tmp_path, classes=None)

    with pytest.raises(UserError, match=r"no labels.*set evaluate\.extractor: inception.* train\.fid_extractor"):
        load_extractor("classifier", "", packed.folder, CPU)


def test_without_inception_weights(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pth")

    with pytest.raises(UserError, match=r"evaluate\.inception_weights: there is no file .*missing\.pth"):
        load_extractor("inception", missing, tmp_path, CPU)
