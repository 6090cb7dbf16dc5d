"""The weights of FID's Inception cannot be had everywhere: random ones in the same format stand in for them."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from ganflow.errors import UserError
from ganflow.evaluation import inception
from ganflow.evaluation.frechet import frechet_distance
from ganflow.evaluation.inception import Inception, find_weights, load_inception, name_of, resize_like_tensorflow
from ganflow.evaluation.statistics import moments

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

    layers = ["2048", "logits_unbiased"]
    reference = FeatureExtractorInceptionV3("reference", layers, feature_extractor_weights_path=str(weights))
    network, digest = load_inception(weights)
    images = torch.randint(0, 256, (2, 3, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    with torch.inference_mode():
        (expected, expected_logits), features = reference(images), network(images)
        logits = network.logits(features)
        gray = network(images[:1, :1])
        expected_gray = network(images[:1, :1].repeat(1, 3, 1, 1))

    assert features.shape == (2, 2048)
    assert float((features - expected).norm() / expected.norm()) < 1e-5
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert float((expected[0] - expected[1]).norm() / expected.norm()) > 0.01  # or any picture would do
    assert logits.shape == (2, 1008)
    assert float((logits - expected_logits).norm() / expected_logits.norm()) < 1e-5
    torch.testing.assert_close(gray, expected_gray)
    assert name_of(digest) == "inception with weights of unknown origin"
    assert name_of("sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2") == "inception-2015-12-05"


def blobs(seed: int, count: int) -> torch.Tensor:
    """Pictures, uint8 (count, 3, 24, 32), of colours that flow into each other."""
    coarse = torch.randn(count, 3, 3, 4, generator=torch.Generator().manual_seed(seed))
    return (interpolate(coarse, scale_factor=8, mode="bicubic") * 40 + 120 + 5 * seed).clamp(0, 255).to(torch.uint8)


def write_pictures(folder: Path, images: torch.Tensor) -> str:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03}.png")
    return str(folder)


@pytest.mark.slow
def test_the_whole_protocol_gives_the_fid_of_torch_fidelity(weights: Path, tmp_path: Path) -> None:
    """From pictures in files to the number, with other counts on either side, so that N for N - 1 would show."""
    import torch_fidelity

    first, second = blobs(1, 16), blobs(2, 12)
    expected = torch_fidelity.calculate_metrics(
        input1=write_pictures(tmp_path / "first", first),
        input2=write_pictures(tmp_path / "second", second),
        feature_extractor_weights_path=str(weights),
        fid=True,
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )["frechet_inception_distance"]
    network, _ = load_inception(weights)

    with torch.inference_mode():
        of_first, of_second = (moments(map(network, images.split(5))) for images in (first, second))
    fid = frechet_distance(of_first.mean, of_first.covariance, of_second.mean, of_second.covariance)

    # torch-fidelity's eigenvalues of a product of rank 11 leave some 3e-6 of rounding.
    assert fid == pytest.approx(expected, rel=1e-4)


def test_no_batch_norm_is_left_to_compute(weights: Path) -> None:
    network, _ = load_inception(weights)

    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


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
