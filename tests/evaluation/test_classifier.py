import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ganflow.data.images import Images
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation import classifier
from ganflow.evaluation.classifier import ChannelClassifier, Classifier, Shape, load_classifier, train_classifier


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_LEAST_IMAGES", 2_000)
    monkeypatch.setattr(classifier, "_PASSES", 1)


def test_learns_the_classes_and_writes_it_down(packed: PackedData) -> None:
    train_classifier(packed, 0, packed.folder)

    record = json.loads((packed.folder / "extractor.json").read_text())
    assert record["test_accuracy"] > 0.95
    assert record["validation_accuracy"] > 0.9
    assert (record["name"], record["dim"], record["images"]) == ("classifier", 64, 2_000)
    assert record["data_digest"] == packed.card.digest
    assert not list(packed.folder.glob("*.part"))


def test_features_are_what_the_logits_are_made_of_and_vary_by_100(packed: PackedData) -> None:
    train_classifier(packed, 0, packed.folder)
    network, digest = load_classifier(packed.folder)
    images = torch.from_numpy(packed.images("train")[:].copy())

    features = network.features(images)

    assert features.shape == (60, 64)
    assert digest.startswith("sha256:")
    assert np.var(features.double().numpy(), axis=0).sum() == pytest.approx(100, rel=1e-3)
    torch.testing.assert_close(network(images), network.head(features / network.scale))
    torch.testing.assert_close(network.logits(features), network(images))
    assert abs(float(network.scale) - 1) > 0.1, "at 1, logits of features that were scaled would be right by chance"


def test_of_very_many_pictures_the_first_are_measured(packed: PackedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_MOST_MEASURED", 12)
    train_classifier(packed, 0, packed.folder)
    network, _ = load_classifier(packed.folder)

    first = network.features(torch.from_numpy(packed.images("train")[:12].copy()))
    assert np.var(first.double().numpy(), axis=0).sum() == pytest.approx(100, rel=1e-3)
    record = json.loads((packed.folder / "extractor.json").read_text())
    chosen = network(torch.from_numpy(packed.images("test")[:12].copy())).argmax(dim=1)
    assert record["test_accuracy"] == pytest.approx((chosen.numpy() == packed.labels("test")[:12]).mean())


@pytest.mark.parametrize(("side", "length"), [(8, 1000), (32, 1000), (64, 250), (128, 62)])
def test_large_pictures_are_measured_fewer_at_a_time(side: int, length: int) -> None:
    images = Images([np.zeros((1001, 1, side, side), np.uint8)])
    assert len(next(classifier._measured(images))) == length


def test_equal_seeds_give_equal_weights_and_leave_the_random_state(packed: PackedData, tmp_path: Path) -> None:
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(digests))  # whatever it was
        state = torch.get_rng_state()
        train_classifier(packed, seed, tmp_path)
        assert torch.equal(torch.get_rng_state(), state)
        digests.append(load_classifier(tmp_path)[1])

    assert digests[0] == digests[1] != digests[2]


def test_normalises_with_the_card(packed: PackedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_LEAST_IMAGES", 128)
    train_classifier(packed, 0, packed.folder)
    network, _ = load_classifier(packed.folder)

    assert network.mean.flatten().tolist() == pytest.approx(packed.card.mean)
    assert network.std.flatten().tolist() == pytest.approx(packed.card.std)
    seen: list[torch.Tensor] = []
    network.body[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.from_numpy(packed.images("train")[:].copy()))
    assert float(seen[0].mean()) == pytest.approx(0, abs=1e-4)
    assert float(seen[0].std()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("side", [8, 10, 12, 14, 16, 28, 32, 40, 64, 112, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size(side: int, channels: int) -> None:
    network = Classifier(Shape(channels, side, 5)).eval()
    images = torch.randint(0, 256, (2, channels, side, side), dtype=torch.uint8)

    assert network(images).shape == (2, 5)
    assert network.features(images).shape == (2, 64)


def test_combinations_are_as_probable_as_all_of_their_channels_are() -> None:
    single = Classifier(Shape(1, 8, 4)).eval()
    single.scale.fill_(3.0)
    network = ChannelClassifier(single, 3)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)

    a, b, c = (single(images[:, channel : channel + 1]).softmax(dim=1) for channel in range(3))
    expected = torch.einsum("na,nb,nc->nabc", a, b, c).reshape(5, 64)
    torch.testing.assert_close(network(images).exp(), expected)
    torch.testing.assert_close(network(images).softmax(dim=1), expected)

    features = network.features(images)
    assert features.shape == (5, network.dimension) == (5, 192)
    torch.testing.assert_close(features[:, 64:128], single.features(images[:, 1:2]))
    torch.testing.assert_close(network.logits(features), network(images))


def test_channels_that_are_pictures_of_their_own(packed_channels: PackedData) -> None:
    train_classifier(packed_channels, 0, packed_channels.folder)
    network, _ = load_classifier(packed_channels.folder)

    record = json.loads((packed_channels.folder / "extractor.json").read_text())
    assert record["dim"] == 192
    assert record["test_accuracy"] > 0.9, "of 27 classes, with 17 pictures of each to learn from"
    chosen = network(torch.from_numpy(packed_channels.images("test")[:].copy())).argmax(dim=1)
    assert record["test_accuracy"] == (chosen.numpy() == packed_channels.labels("test")).mean()

    assert isinstance(network, ChannelClassifier)
    assert network.single.head.out_features == 3
    seen: list[torch.Tensor] = []
    network.single.body[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = network.features(torch.from_numpy(packed_channels.images("train")[:].copy()))
    assert np.var(features.double().numpy(), axis=0).sum() == pytest.approx(100, rel=1e-3)
    assert float(torch.cat(seen).mean()) == pytest.approx(0, abs=1e-4)
    assert float(torch.cat(seen).std()) == pytest.approx(1, abs=1e-3)


def test_weights_of_whole_pictures_say_nothing_of_channels(packed: PackedData) -> None:
    train_classifier(packed, 0, packed.folder)
    with safe_open(packed.folder / "extractor.safetensors", framework="pt") as file:
        # More would be another file: digests of earlier classifiers, and FIDs by them, would no longer be comparable.
        assert file.metadata() == {"shape": '{"channels": 1, "resolution": 8, "classes": 2}'}
        assert sorted(file.keys())[0] == "body.0.weight"


def test_shift_moves_pictures_by_an_eighth_at_most() -> None:
    image = np.zeros((1, 2, 16, 16), np.uint8)
    image[0, 1, 8, 5] = 1

    places = {tuple(np.argwhere(classifier._shift(image, np.random.default_rng(seed)))[0]) for seed in range(300)}

    assert places == {(0, 1, row, column) for row in range(6, 11) for column in range(3, 8)}


def test_every_picture_comes_once_before_any_comes_again() -> None:
    batches = list(classifier._batches(64, 3, np.random.default_rng(0)))

    assert all(sorted(half) == list(range(64)) for batch in batches for half in (batch[:64], batch[64:]))


def test_one_class_cannot_be_told_apart(tmp_path: Path, write_packed: Callable[..., PackedData]) -> None:
    with pytest.raises(UserError, match="two classes"):
        train_classifier(write_packed(tmp_path, classes=1), 0, tmp_path)


def test_damage_is_named(packed: PackedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_LEAST_IMAGES", 128)
    train_classifier(packed, 0, packed.folder)
    weights = packed.folder / "extractor.safetensors"
    whole = weights.read_bytes()

    weights.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match=r"not the file that extractor\.json describes"):
        load_classifier(packed.folder)
    weights.write_bytes(whole[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_classifier(packed.folder)
