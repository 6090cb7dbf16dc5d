"""The weights of FID's Inception cannot be had everywhere: random ones in the same format stand in for them."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from ganflow.errors import UserError
from ganflow.evaluation import inception
from ganflow.evaluation.inception import Inception, find_weights, load_inception, name_of, resize_like_tensorflow

FILE = "pt_inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under which activations neither fade nor explode, and in which every channel is its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        state = Inception().state_dict()
    for name, meta in state.items():
        tensor = torch.empty(meta.shape, dtype=meta.dtype)
        if meta.ndim >= 2:
            tensor.normal_(0, (2 / meta[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.8, 1.2, generator=generator)
        elif meta.is_floating_point():
            tensor.normal_(0, 0.1, generator=generator)
        else:
            tensor.zero_()
        state[name] = tensor
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # the published file has the old format
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub, and no network."""

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "hub" / "checkpoints"


def test_features_equal_those_of_torch_fidelity(weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    reference = FeatureExtractorInceptionV3("reference", ["2048"], feature_extractor_weights_path=str(weights))
    network, digest = load_inception(weights)
    images = torch.randint(0, 256, (2, 3, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    with torch.inference_mode():
        expected, features = reference(images)[0], network(images)
        gray = network(images[:1, :1])
        expected_gray = network(images[:1, :1].repeat(1, 3, 1, 1))

    assert features.shape == (2, 2048)
    assert float((features - expected).norm() / expected.norm()) < 1e-5
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert float((expected[0] - expected[1]).norm() / expected.norm()) > 0.01  # or any picture would do
    torch.testing.assert_close(gray, expected_gray)
    assert name_of(digest) == "inception with weights of unknown origin"
    assert name_of("sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2") == "inception-2015-12-05"


def test_resize_by_hand() -> None:
    # Output pixel i of 4 lies at i * 3 / 4 = 0, 0.75, 1.5, 2.25 of 3, and beyond the last pixel it repeats.
    row = torch.tensor([0.0, 4.0, 8.0])
    expected = torch.tensor([0.0, 3.0, 6.0, 8.0])

    assert torch.equal(resize_like_tensorflow(row.expand(1, 1, 3, 3), 4)[0, 0], expected.expand(4, 4))
    assert torch.equal(resize_like_tensorflow(row[:, None].expand(1, 1, 3, 3), 4)[0, 0], expected[:, None].expand(4, 4))


def test_a_truncated_file_is_named(weights: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "weights.pth"
    truncated.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(UserError, match="not a whole file of PyTorch weights"):
        load_inception(truncated)
    truncated.write_bytes(b"")
    with pytest.raises(UserError, match="not a whole file of PyTorch weights"):
        load_inception(truncated)


def test_a_file_is_checked_against_the_hash_in_its_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / FILE)

    with pytest.raises(UserError, match="is damaged: its SHA-256 begins with"):
        load_inception(tmp_path / FILE)


@pytest.mark.parametrize("content", [nn.Linear(2, 2).state_dict(), [1, 2], {"fc.weight": 3}])
def test_another_network_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")

    with pytest.raises(UserError, match="weights of another network"):
        load_inception(tmp_path / "other.pth")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")

    with pytest.raises(UserError, match="not a whole file of PyTorch weights"):
        load_inception(tmp_path / "module.pth")


@pytest.mark.parametrize("name", [FILE, "weights-inception-2015-12-05-6726825d.pth"])
def test_found_in_the_cache(cache: Path, name: str) -> None:
    cache.mkdir(parents=True)
    (cache / name).touch()

    assert find_weights("") == cache / name


def test_out_of_reach(cache: Path) -> None:
    with pytest.raises(UserError) as raised:
        find_weights("")

    message = str(raised.value)
    assert FILE in message
    assert str(cache) in message
    assert "no network" in message
    assert "evaluate.inception_weights: PATH" in message


def test_download_checks_the_hash(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: asked.extend([*args, kwargs]))

    assert find_weights("") == cache / FILE
    assert asked == [inception._URL, str(cache / FILE), {"hash_prefix": "6726825d"}]
