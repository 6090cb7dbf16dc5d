"""A small classifier of a data set's own pictures, for its features: a domain far from photographs is measured by them.

It is trained once, when the data is prepared, and kept: FIDs by other weights cannot be compared.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ganflow.data.images import Images
from ganflow.data.packed import PackedData
from ganflow.errors import UserError
from ganflow.evaluation.sampling import real_batches
from ganflow.evaluation.statistics import moments

DIMENSION = 64
WEIGHTS_FILE = "extractor.safetensors"
RECORD_FILE = "extractor.json"
_CHANNELS = "channels"  # in the metadata of the weights of a ChannelClassifier: how many

_PASSES = 60
_LEAST_IMAGES, _MOST_IMAGES = 60_000, 300_000
_BATCH_SIZE = 128
_LEARNING_RATE = 4e-3
_WEIGHT_DECAY = 0.02
# Splits lie in random order, so that the first pictures are a fair sample; of so many the error is small.
_MOST_MEASURED = 100_000
_READ_PIXELS = 1000 * 32 * 32  # at once, at most: activations take a hundred times as many bytes
# The training pictures' features are scaled to this total variance (the trace of their covariance). Left alone, it
# depends on the seed and the data, and with it the size of every FID; so a FID reads as per cent of that variance.
_TOTAL_VARIANCE = 100.0


class Shape(NamedTuple):
    """What the layers of a classifier follow from."""

    channels: int
    resolution: int
    classes: int


class Classifier(nn.Module):
    """Convolutions that halve the picture down to 4 to 7 pixels, a layer of 64 features, and one logit a class.

    Takes pictures uint8 (n, channels, resolution, resolution). `mean` and `std` are per channel, of pixels scaled to
    [0, 1]; `scale` is what the features are multiplied with for others than the classes' logits.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor
    dimension = DIMENSION

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        side = shape.resolution
        width, stride = (16, 1) if side <= 16 else (32, 2)  # starting with a halving is four times as fast
        side //= stride
        layers = _block(shape.channels, width, stride)
        while side > 7:
            wide = min(2 * width, 128)
            layers += _block(width, wide, 2)
            side, width = side // 2, wide
        self.register_buffer("mean", torch.zeros(shape.channels, 1, 1))
        self.register_buffer("std", torch.ones(shape.channels, 1, 1))
        self.register_buffer("scale", torch.ones(()))
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side**2, DIMENSION), nn.ReLU())
        self.head = nn.Linear(DIMENSION, shape.classes)

    def features(self, images: Tensor) -> Tensor:
        """Give the features (n, 64), all at least 0, that the logits are made of, times `scale`."""
        return self._features(images) * self.scale

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits (n, classes)."""
        logits: Tensor = self.head(self._features(images))
        return logits

    def logits(self, features: Tensor) -> Tensor:
        """Give the logits (n, classes) that belong to `features` (n, 64)."""
        logits: Tensor = self.head(features / self.scale)
        return logits

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.body((images.float() / 255 - self.mean) / self.std)
        return features


class ChannelClassifier(nn.Module):
    """One classifier of gray pictures for every channel, where the channels are pictures of their own.

    Takes pictures uint8 (n, channels, resolution, resolution). The features are those of all channels, 64 of each; the
    classes are all combinations of the classes of one, those of the last channel varying fastest.
    """

    def __init__(self, single: Classifier, channels: int) -> None:
        super().__init__()
        self.single = single
        self.channels = channels

    @property
    def dimension(self) -> int:
        """Number of features."""
        return self.channels * self.single.dimension

    @property
    def scale(self) -> Tensor:
        """What all features are multiplied with."""
        return self.single.scale

    def features(self, images: Tensor) -> Tensor:
        """Give the features (n, channels * 64), all at least 0, times `scale`."""
        # One channel after the other, so that they take the memory of one alone.
        return torch.cat([self.single.features(channel) for channel in images.chunk(self.channels, dim=1)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Give the log-probabilities (n, classes)."""
        return _joint(self.single(channel) for channel in images.chunk(self.channels, dim=1))

    def logits(self, features: Tensor) -> Tensor:
        """Give the log-probabilities (n, classes) that belong to `features` (n, channels * 64)."""
        return _joint(self.single.logits(part) for part in features.chunk(self.channels, dim=1))


Network = Classifier | ChannelClassifier


def _joint(logits: Iterable[Tensor]) -> Tensor:
    """Turn logits (n, k) of each of c independent choices into log-probabilities (n, k^c) of their combinations."""
    joint, *rest = (each.log_softmax(dim=1) for each in logits)
    for log_p in rest:
        joint = (joint[:, :, None] + log_p[:, None, :]).flatten(1)
    return joint


class _Lesson(NamedTuple):
    """What a classifier is trained on: pictures with labels (n,), and mean and deviation of each of their channels."""

    shape: Shape
    images: Images
    labels: NDArray[np.int64]
    mean: Sequence[float]
    std: Sequence[float]


def train_classifier(packed: PackedData, seed: int, out: Path) -> None:
    """Train a classifier on the train split and write its weights and their record into the folder `out`.

    Where channels are pictures of their own, it learns the classes of one channel: of their combinations there are few
    pictures each. It is always trained on one thread of the CPU, so that `seed` alone decides the weights, and not how
    many cores there are; torch's own random state is left as it was. The record (`extractor.json`) holds name, digest,
    dim, validation_accuracy, test_accuracy, data_digest and images (shown).
    Raises UserError if there are fewer than two classes.
    """
    card, lesson = packed.card, _lesson(packed)
    shown = min(max(_PASSES * len(lesson.labels), _LEAST_IMAGES), _MOST_IMAGES)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.default_generator.manual_seed(seed)
        single = Classifier(lesson.shape)
        single.mean.copy_(torch.tensor(lesson.mean).view(-1, 1, 1))
        # A channel that never varies has a deviation of 0; one level of 255 keeps the network finite.
        single.std.copy_(torch.tensor(lesson.std).clamp_min(1 / 255).view(-1, 1, 1))
        single.to(memory_format=torch.channels_last)
        _fit(single, lesson.images, lesson.labels, shown, seed)
    network = ChannelClassifier(single, card.channels) if card.channel_classes else single
    _standardise(network, packed.images("train"))
    digest = _save(network, lesson.shape, out / WEIGHTS_FILE)
    record = {
        "name": "classifier",
        "digest": digest,
        "dim": network.dimension,
        "validation_accuracy": _accuracy(network, packed.images("validation"), packed.labels("validation")),
        "test_accuracy": _accuracy(network, packed.images("test"), packed.labels("test")),
        "data_digest": card.digest,
        "images": shown,
    }
    temporary = out / f"{RECORD_FILE}.part"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out / RECORD_FILE)


def load_classifier(prepared: Path) -> tuple[Network, str]:
    """Load the classifier that lies in the folder `prepared`, in eval mode on the CPU, and its digest.

    Raises UserError if a file is missing or damaged, or the two do not belong together.
    """
    path = prepared / WEIGHTS_FILE
    try:
        digest = _digest(path)
        recorded = json.loads((prepared / RECORD_FILE).read_text(encoding="utf-8"))["digest"]
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        with torch.device("meta"):  # draws no random weights
            single = Classifier(Shape(**json.loads(metadata["shape"])))
        network = ChannelClassifier(single, int(metadata[_CHANNELS])) if _CHANNELS in metadata else single
        network.load_state_dict(state, assign=True)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: the data set's classifier cannot be loaded ({error}); run `ganflow prepare` again"
        ) from None
    if digest != recorded:
        raise UserError(f"{path}: is not the file that {RECORD_FILE} describes; run `ganflow prepare` again")
    return network.eval().requires_grad_(False), digest


def _lesson(packed: PackedData) -> _Lesson:
    """Choose what the classifier of a data set learns. Raises UserError if there are fewer than two classes."""
    card, images, labels = packed.card, packed.images("train"), packed.labels("train")
    if labels is None or card.classes is None or len(card.classes) < 2:
        raise UserError("a classifier needs pictures of two classes at least; set evaluate.extractor: inception")
    if card.channel_classes is None:
        return _Lesson(Shape(card.channels, card.resolution, len(card.classes)), images, labels, card.mean, card.std)
    of_one = len(card.channel_classes)
    of_each = np.unravel_index(labels, (of_one,) * card.channels)
    mean = fmean(card.mean)
    variance = fmean(std**2 + mean**2 for mean, std in zip(card.mean, card.std, strict=True)) - mean**2
    return _Lesson(
        Shape(1, card.resolution, of_one),
        images.channels_apart(),
        np.stack(of_each, axis=1).ravel(),
        [mean],
        [variance**0.5],
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _block(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]


def _fit(network: Classifier, images: Images, labels: NDArray[np.int64], shown: int, seed: int) -> None:
    """Descend the cross-entropy over `shown` pictures, each shifted at random, in a one-cycle schedule."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, fused=True, weight_decay=_WEIGHT_DECAY)
    steps = -(-shown // _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    taken = np.empty((_BATCH_SIZE, *images.shape[1:]), np.uint8)
    network.train()
    with tqdm(total=shown, desc="training the feature extractor", unit=" pictures", disable=None) as bar:
        for indices in _batches(len(labels), steps, rng):
            images.take(indices, taken)
            pixels = torch.from_numpy(_shift(taken, rng))
            loss = cross_entropy(network(pixels), torch.from_numpy(labels[indices]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            bar.update(len(indices))
    network.eval()


def _standardise(network: Network, images: Images) -> None:
    """Set the scale of the features by their total variance over the pictures, or the first of many."""
    with torch.inference_mode():
        of = moments(network.features(batch) for batch in _measured(images))
    variance = of.scatter.trace() / of.count
    if variance > 0:
        network.scale.copy_((_TOTAL_VARIANCE / variance).sqrt())


def _measured(images: Images) -> Iterator[Tensor]:
    """Read what measures are taken of, in batches: all pictures, or the first 100,000."""
    at_once = max(1, min(1000, _READ_PIXELS // images.shape[-1] ** 2))
    return real_batches(images, at_once, _MOST_MEASURED)


def _batches(n: int, steps: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Give `steps` batches of indices below n: every picture once before any comes again."""
    waiting = np.empty(0, np.int64)
    for _ in range(steps):
        while len(waiting) < _BATCH_SIZE:
            waiting = np.concatenate([waiting, rng.permutation(n)])
        batch, waiting = waiting[:_BATCH_SIZE], waiting[_BATCH_SIZE:]
        yield batch


def _shift(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Move each picture by up to an eighth of its side in both directions, repeating the pixels at the edge."""
    n, _, side, _ = images.shape
    most = side // 8
    rows, columns = (np.clip(np.arange(side) + rng.integers(-most, most + 1, (n, 1)), 0, side - 1) for _ in range(2))
    # Advanced indices around a slice come first in the result: (n, side, side, c).
    shifted = images[np.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return shifted.transpose(0, 3, 1, 2)


def _accuracy(network: Network, images: Images, labels: NDArray[np.int64] | None) -> float | None:
    """Give the share of pictures, or of the first of many, whose class has the largest logit; None without any."""
    if labels is None or len(labels) == 0:
        return None
    right = seen = 0  # small results that are kept between large ones that are not would hold on to the memory of both
    with torch.inference_mode():
        for batch in _measured(images):
            true = torch.from_numpy(np.array(labels[seen : seen + len(batch)]))
            right += int((network(batch).argmax(dim=1) == true).sum())
            seen += len(batch)
    return right / seen


def _save(network: Network, shape: Shape, path: Path) -> str:
    """Write the weights, whole or not at all, and give the file's digest."""
    metadata = {"shape": json.dumps(shape._asdict())}
    if isinstance(network, ChannelClassifier):
        metadata[_CHANNELS] = str(network.channels)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    temporary = path.with_name(f"{path.name}.part")
    save_file(state, temporary, metadata)
    temporary.replace(path)
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
