"""FID by ganflow and by those that others use, side by side: the same features, the same pictures, the same network.

    .venv/bin/uv pip install --python .venv/bin/python --group benchmarks
    .venv/bin/python benchmarks/fid.py [--device cuda] [--out benchmarks/results/fid.json]

First the Fréchet distance between given means and covariances, then the whole way from pictures to the number. Seconds
are medians; the contenders take turns, so that what else the machine does falls on all alike. FID's own weights cannot
be had everywhere, so that the network has random ones, in the same format and for all the same.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import scipy.linalg
import torch
from machine import describe
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from ganflow.evaluation.frechet import frechet_distance
from ganflow.evaluation.inception import Inception, load_inception
from ganflow.evaluation.statistics import moments

try:
    import pytorch_fid.fid_score
    import pytorch_fid.inception
    import torch_fidelity
    import torch_fidelity.metric_fid
    import torchmetrics.image.fid
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
except ImportError as error:
    sys.exit(f"{error}; first run: .venv/bin/uv pip install --python .venv/bin/python --group benchmarks")

DIMENSIONS = (64, 192, 768, 2048)
PACKAGES = ("torch", "numpy", "scipy", "torch-fidelity", "pytorch-fid", "torchmetrics")
OURS = "ganflow"
FORMULA = "scipy sqrtm"
PROTOCOL = "torch-fidelity"
_LAST_BLOCK = 3  # of pytorch-fid's network: 2048 features


class Normals(NamedTuple):
    """Two normal distributions: means (d,) and covariances (d, d), in float64."""

    mu1: Tensor
    sigma1: Tensor
    mu2: Tensor
    sigma2: Tensor

    def arrays(self) -> tuple[Any, ...]:
        """Give them to numpy."""
        return tuple(x.cpu().numpy() for x in self)


class Timed(NamedTuple):
    """What a contender gave, and the median of its seconds."""

    value: float
    seconds: float


def main() -> int:
    """Measure, print and write."""
    options = _options()
    for known in (DeprecationWarning, scipy.linalg.LinAlgWarning):  # pytorch-fid's use of sqrtm
        warnings.simplefilter("ignore", known)
    device = torch.device(options.device)
    load = os.getloadavg()[0]
    print(", ".join(f"{what} {words}" for what, words in describe().items()), f"load {load:.1f}", sep=", ", flush=True)
    results: dict[str, Any] = {
        "machine": describe(),
        "versions": {package: version(package) for package in PACKAGES},
        "device": device.type,
        "load_before": round(load, 2),
        "repeats": options.repeats,
        "distance": {d: distance_at(d, device, options.repeats) for d in options.dimensions},
    }
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder) / "random.pth")
        results["network"] = network(weights, device, options.batch, options.repeats)
        results["evaluation"] = evaluation(weights, device, options.pictures, options.batch, options.repeats)
    results["in_words"] = in_words(results)
    print("", *results["in_words"], sep="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def distance_at(d: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Compare the distances between the statistics of the same random features."""
    samples = max(1000, 5 * d // 2)
    normals = Normals(*(x.to(device) for seed in (1, 2) for x in statistics(features(d, samples, seed))))
    arrays = normals.arrays()
    timed = take_turns(
        {
            OURS: lambda: frechet_distance(*normals),
            FORMULA: lambda: by_sqrtm(*arrays),
            "pytorch-fid": lambda: float(pytorch_fid.fid_score.calculate_frechet_distance(*arrays)),
            PROTOCOL: lambda: by_torch_fidelity(*arrays),
            "torchmetrics": lambda: float(torchmetrics.image.fid._compute_fid(*normals)),
        },
        repeats,
    )
    contenders = {
        name: {
            "value": one.value,
            "relative_difference": one.value / timed[FORMULA].value - 1,
            "seconds": one.seconds,
            "times_as_fast_as_sqrtm": timed[FORMULA].seconds / one.seconds,
        }
        for name, one in timed.items()
    }
    show(f"distance at {d}, from {samples} features each", contenders)
    return {"samples": samples, "contenders": contenders}


def features(d: int, count: int, seed: int) -> Tensor:
    """Draw features (count, d) in float32, correlated, with eigenvalues that fall as 1 / i, as those of networks do."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=shared))[0]
    deviations = (1 + 0.1 * seed) * torch.arange(1, d + 1, dtype=torch.float64).rsqrt()
    drawn: Tensor = torch.randn(count, d, dtype=torch.float64, generator=generator) * deviations @ basis.T
    return (drawn + 0.01 * seed).float()


def statistics(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Take mean and covariance, once and for all contenders."""
    values = drawn.double().numpy()
    return torch.from_numpy(values.mean(axis=0)), torch.from_numpy(np.cov(values, rowvar=False))


def by_sqrtm(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any) -> float:
    """Take the formula as it is written, with scipy's square root of a matrix."""
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1 + sigma2 - 2 * root.real))


def by_torch_fidelity(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any) -> float:
    """Take the distance of torch-fidelity, which looks for the eigenvalues of the product."""
    both = {"mu": mu1, "sigma": sigma1}, {"mu": mu2, "sigma": sigma2}
    metric = torch_fidelity.metric_fid.fid_statistics_to_metric(*both, verbose=False)
    return float(metric[torch_fidelity.KEY_METRIC_FID])


def network(weights: Path, device: torch.device, batch: int, repeats: int) -> dict[str, Any]:
    """Compare the speed of the networks alone, on one batch of pictures."""
    images = pictures(1, batch).to(device)
    floats = images.float() / 255
    ours, _ = load_inception(weights)
    theirs = FeatureExtractorInceptionV3("", ["2048"], feature_extractor_weights_path=str(weights))
    their_fid = torchmetrics.image.fid.NoTrainInceptionV3("", ["2048"], str(weights), antialias=False)
    older = pytorch_fid_network(weights)
    for module in (ours, theirs, their_fid, older):
        module.to(device)
    with torch.inference_mode():
        timed = take_turns(
            {
                OURS: lambda: float(ours(images).sum()),
                "pytorch-fid": lambda: float(older(floats)[0].sum()),
                PROTOCOL: lambda: float(theirs(images)[0].sum()),
                "torchmetrics": lambda: float(their_fid(images).sum()),
            },
            repeats,
        )
    contenders = {name: {"images_per_second": batch / one.seconds} for name, one in timed.items()}
    show(f"network alone, {batch} pictures at once", contenders)
    return {"batch_size": batch, "contenders": contenders}


def evaluation(weights: Path, device: torch.device, count: int, batch: int, repeats: int) -> dict[str, Any]:
    """Compare the whole: load the network, look at `count` pictures of each kind, and give the FID."""
    first, second = pictures(1, count), pictures(2, count)
    whole = {
        OURS: fid_by_ganflow,
        "pytorch-fid": fid_by_pytorch_fid,
        PROTOCOL: fid_by_torch_fidelity,
        "torchmetrics": fid_by_torchmetrics,
    }
    runs = {name: partial(fid_by, first, second, weights, device, batch) for name, fid_by in whole.items()}
    timed = take_turns(runs, repeats, warm=False)
    contenders = {
        name: {
            "fid": one.value,
            "relative_difference": one.value / timed[PROTOCOL].value - 1,
            "seconds": one.seconds,
            "images_per_second": 2 * count / one.seconds,
        }
        for name, one in timed.items()
    }
    show(f"whole evaluation of 2 x {count} pictures of 32x32x3, from weights and pictures to FID", contenders)
    return {"pictures": 2 * count, "batch_size": batch, "contenders": contenders}


def fid_by_ganflow(first: Tensor, second: Tensor, weights: Path, device: torch.device, batch: int) -> float:
    """Evaluate as `ganflow evaluate` does."""
    loaded, _ = load_inception(weights)
    loaded.to(device)
    with torch.inference_mode():
        one, other = (
            moments(loaded(part.to(device)) for part in torch.split(images, batch)) for images in (first, second)
        )
    return frechet_distance(one.mean, one.covariance, other.mean, other.covariance)


def fid_by_pytorch_fid(first: Tensor, second: Tensor, weights: Path, device: torch.device, batch: int) -> float:
    """Evaluate as pytorch-fid does, but with pictures that need not be read from files. Its resize is another."""
    loaded = pytorch_fid_network(weights).to(device)
    normals = []
    for images in (first, second):
        with torch.no_grad():
            parts = [
                loaded(part.to(device).float() / 255)[0].flatten(1).cpu().numpy() for part in torch.split(images, batch)
            ]
        activations = np.concatenate(parts).astype(np.float64)
        normals += [activations.mean(axis=0), np.cov(activations, rowvar=False)]
    return float(pytorch_fid.fid_score.calculate_frechet_distance(*normals))


def fid_by_torch_fidelity(first: Tensor, second: Tensor, weights: Path, device: torch.device, batch: int) -> float:
    """Evaluate by torch-fidelity's one function, without workers, which pictures in memory do not need."""
    metrics = torch_fidelity.calculate_metrics(
        input1=Pictures(first),
        input2=Pictures(second),
        feature_extractor_weights_path=str(weights),
        batch_size=batch,
        fid=True,
        cuda=device.type == "cuda",
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    return float(metrics[torch_fidelity.KEY_METRIC_FID])


def fid_by_torchmetrics(first: Tensor, second: Tensor, weights: Path, device: torch.device, batch: int) -> float:
    """Evaluate by torchmetrics, with the resize of TensorFlow 1."""
    metric = torchmetrics.image.fid.FrechetInceptionDistance(
        feature=2048, normalize=False, antialias=False, feature_extractor_weights_path=str(weights)
    ).to(device)
    for images, real in ((first, True), (second, False)):
        for part in torch.split(images, batch):
            metric.update(part.to(device), real=real)
    return float(metric.compute())


def pytorch_fid_network(weights: Path) -> torch.nn.Module:
    """Load pytorch-fid's network, which knows no weights but those it downloads."""
    state = torch.load(weights, weights_only=True)
    with patch("pytorch_fid.inception.load_state_dict_from_url", lambda *_, **__: state):
        loaded: torch.nn.Module = pytorch_fid.inception.InceptionV3([_LAST_BLOCK])
    return loaded.eval()


class Pictures(Dataset[Tensor]):
    """Pictures, uint8 (n, 3, h, w), as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]


def pictures(seed: int, count: int) -> Tensor:
    """Draw pictures, uint8 (count, 3, 32, 32), of colours that flow into each other, brighter the higher the seed."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (interpolate(coarse, scale_factor=8, mode="bicubic") * 40 + 110 + 10 * seed).clamp(0, 255).to(torch.uint8)


def write_weights(path: Path) -> Path:
    """Write random weights in the published format, under which activations neither fade nor explode."""
    generator = torch.Generator().manual_seed(0)
    state = Inception().state_dict()
    for name, tensor in state.items():
        if tensor.ndim >= 2:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.8, 1.2, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.1, generator=generator)
    torch.save(state, path)
    return path


def take_turns(contenders: Mapping[str, Callable[[], float]], repeats: int, *, warm: bool = True) -> dict[str, Timed]:
    """Run all of them once unmeasured, if `warm`, and then `repeats` times one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    values: dict[str, float] = {}
    for turn in range(repeats + warm):
        for name, run in contenders.items():
            start = time.perf_counter()
            values[name] = run()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timed(values[name], median(seconds[name])) for name in contenders}


def show(title: str, contenders: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table: a line a contender."""
    columns = list(next(iter(contenders.values())))
    print(f"\n{title}\n{'':16}" + "".join(f"{column.replace('_', ' '):>24}" for column in columns))
    for name, row in contenders.items():
        cells = [f"{value:.1e}" if column == "relative_difference" else f"{value:.6g}" for column, value in row.items()]
        print(f"{name:16}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def in_words(results: Mapping[str, Any]) -> list[str]:
    """Say what comes out of it."""
    largest = max(results["distance"])
    ours = results["distance"][largest]["contenders"][OURS]
    speeds = {part: results[part]["contenders"] for part in ("network", "evaluation")}
    ratios = {
        part: rows[OURS]["images_per_second"]
        / max(row["images_per_second"] for name, row in rows.items() if name != OURS)
        for part, rows in speeds.items()
    }
    return [
        f"distance at {largest}: {ours['times_as_fast_as_sqrtm']:.1f}x as fast as scipy's sqrtm, "
        f"relative difference {ours['relative_difference']:.1e}",
        f"network alone: {ratios['network']:.2f}x the images/s of the fastest peer",
        f"whole evaluation: {ratios['evaluation']:.2f}x the images/s of the fastest peer",
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="FID by ganflow and by others, side by side.")
    root = Path(__file__).resolve().parent
    parser.add_argument("--out", type=Path, default=root / "results" / "fid.json", metavar="FILE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dimensions", type=int, nargs="+", default=DIMENSIONS, metavar="D")
    parser.add_argument("--pictures", type=int, default=128, metavar="N", help="of each kind (default: 128)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="pictures at once (default: 32)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="measured runs of each (default: 3)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
