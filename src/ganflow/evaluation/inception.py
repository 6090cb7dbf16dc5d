"""The Inception network of FID: features (n, 2048) of the network that TensorFlow published on 2015-12-05.

Its weights come as a file that pytorch-fid and torch-fidelity share. The network is Inception v3 (Szegedy et al.
2015, "Rethinking the Inception Architecture") but for its poolings: averages leave the padding out, and the last
block takes the maximum. torchvision's ImageNet weights are another network, and give other numbers.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ganflow.errors import UserError

DIMENSION = 2048
RESIZE = "to 299x299, bilinear as in TensorFlow 1: corners not aligned, no antialiasing"

_SIDE = 299
_CLASSES = 1008
_HASH_PREFIX = "6726825d"
_FILE = f"pt_inception-2015-12-05-{_HASH_PREFIX}.pth"  # pytorch-fid's name
_SAME_FILE = f"weights-inception-2015-12-05-{_HASH_PREFIX}.pth"  # torch-fidelity's name for the same weights
_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{_FILE}"

_Pool = Literal["average", "max", "halving"]


class _Spec(NamedTuple):
    """A convolution within a mixed block. Stride 1 keeps the size; stride 2 takes no padding."""

    name: str
    channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1


_Chain = Sequence[_Spec | list[_Spec]]  # a list is a fork: side by side, their outputs joined


def find_weights(given: str) -> Path:
    """Find the file with the weights: the one given, else one in torch.hub's cache, else by download.

    Raises UserError where there is none.
    """
    if given:
        if not Path(given).is_file():
            raise UserError(f"evaluate.inception_weights: there is no file {given}; it should be {_FILE}")
        return Path(given)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for name in (_FILE, _SAME_FILE):
        if (cache / name).is_file():
            return cache / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_URL, str(cache / _FILE), hash_prefix=_HASH_PREFIX)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"evaluate.extractor: the weights of Inception, {_FILE}, are not in {cache} and could not be downloaded "
            f"from {_URL} ({error}); put the file there, or set evaluate.inception_weights: PATH"
        ) from None
    return cache / _FILE


def load_inception(path: Path) -> tuple["Inception", str]:
    """Load the network, in eval mode on the CPU with its batch norms folded away, and the digest of its file.

    Raises UserError if the file is damaged or of another network, or not the one that a hash in its name promises.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    promised = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if promised and not digest.startswith(promised[1]):
        raise UserError(
            f"{path}: is damaged: its SHA-256 begins with {digest[:8]}, not {promised[1]}; delete it and fetch it again"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in torch's reader
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: is not a whole file of PyTorch weights ({reason}); it should be {_FILE}") from None
    with torch.device("meta"):
        network = Inception()
    try:
        network.load_state_dict(state, assign=True)
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path}: holds the weights of another network; it should be {_FILE}") from None
    network.eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, _Conv):
            module.fold()
    return network, f"sha256:{digest}"


def name_of(digest: str) -> str:
    """Name the network by the digest of its weights, so that other weights are not taken for those of FID."""
    known = digest.startswith(f"sha256:{_HASH_PREFIX}")
    return "inception-2015-12-05" if known else "inception with weights of unknown origin"


def resize_like_tensorflow(images: Tensor, side: int) -> Tensor:
    """Resize float pictures (n, c, h, w) to (n, c, side, side) as TensorFlow 1's resize_bilinear does.

    Output pixel i lies at input position i * h / side, so that the picture shifts by up to half a pixel; the last
    pixel repeats beyond the edge; nothing is filtered when shrinking.
    """
    for dim in (3, 2):
        length = images.shape[dim]
        position = torch.arange(side, dtype=torch.float32, device=images.device) * (length / side)
        low = position.long()
        high = (low + 1).clamp_max(length - 1)
        share = (position - low).view(-1, *[1] * (3 - dim))
        at_low, at_high = images.index_select(dim, low), images.index_select(dim, high)
        images = at_high.sub_(at_low).mul_(share).add_(at_low)
    return images


class Inception(nn.Module):
    """From pictures, uint8 (n, 1 or 3, h, w), to pooled features (n, 2048); gray is repeated in three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128)
        self.Mixed_6c = _block_c(768, 160)
        self.Mixed_6d = _block_c(768, 160)
        self.Mixed_6e = _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, "average")
        self.Mixed_7c = _block_e(2048, "max")
        self.fc = nn.Linear(DIMENSION, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Give the features (n, 2048) of pictures uint8 (n, 1 or 3, h, w)."""
        x = resize_like_tensorflow(images.to(self.fc.weight.dtype), _SIDE)
        x = x.sub_(128).div_(128).expand(-1, 3, -1, -1)
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)  # all layers keep it; 1.4 times as fast
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features: Tensor = x.mean(dim=(2, 3))
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Give the logits (n, 1008) of features (n, 2048), without the bias, as the Inception Score takes them.

        The score's first code (Salimans et al. 2016) left the bias out, and the numbers in print are of that.
        """
        return features @ self.fc.weight.T


class _Conv(nn.Module):
    """Convolution without a bias, batch norm, ReLU."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(channels_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.bn(self.conv(x))
        return normalised.relu_()

    def fold(self) -> None:
        """Make batch norm, which in eval mode is linear, a part of the convolution."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.bn)
            self.bn = nn.Identity()


class _Mixed(nn.Module):
    """Chains of convolutions side by side, the last behind a pooling; their outputs are joined along the channels."""

    def __init__(self, channels: int, pool: _Pool, *chains: _Chain) -> None:
        super().__init__()
        self._pool = pool
        self._chains = [[fork if isinstance(fork, list) else [fork] for fork in chain] for chain in chains]
        for chain in self._chains:
            width = channels
            for fork in chain:
                for spec in fork:
                    sides = spec.kernel if isinstance(spec.kernel, tuple) else (spec.kernel, spec.kernel)
                    padding = (sides[0] // 2, sides[1] // 2) if spec.stride == 1 else 0
                    self.add_module(spec.name, _Conv(width, spec.channels, sides, spec.stride, padding))
                width = sum(spec.channels for spec in fork)

    def forward(self, x: Tensor) -> Tensor:
        inputs = [x] * (len(self._chains) - 1) + [self._pooled(x)]
        return torch.cat([self._along(chain, start) for chain, start in zip(self._chains, inputs, strict=True)], dim=1)

    def _along(self, chain: list[list[_Spec]], x: Tensor) -> Tensor:
        for fork in chain:
            outputs = [self.get_submodule(spec.name)(x) for spec in fork]
            x = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self._pool == "average":
            return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return max_pool2d(x, 3, stride=1, padding=1) if self._pool == "max" else max_pool2d(x, 3, stride=2)


def _block_a(channels: int, pooled: int) -> _Mixed:
    """35x35 pixels (Szegedy et al. 2015, figure 5)."""
    return _Mixed(
        channels,
        "average",
        [_Spec("branch1x1", 64)],
        [_Spec("branch5x5_1", 48), _Spec("branch5x5_2", 64, 5)],
        [_Spec("branch3x3dbl_1", 64), _Spec("branch3x3dbl_2", 96, 3), _Spec("branch3x3dbl_3", 96, 3)],
        [_Spec("branch_pool", pooled)],
    )


def _block_b(channels: int) -> _Mixed:
    """35x35 to 17x17 pixels (figure 10)."""
    return _Mixed(
        channels,
        "halving",
        [_Spec("branch3x3", 384, 3, 2)],
        [_Spec("branch3x3dbl_1", 64), _Spec("branch3x3dbl_2", 96, 3), _Spec("branch3x3dbl_3", 96, 3, 2)],
        [],
    )


def _block_c(channels: int, narrow: int) -> _Mixed:
    """17x17 pixels (figure 6)."""
    return _Mixed(
        channels,
        "average",
        [_Spec("branch1x1", 192)],
        [_Spec("branch7x7_1", narrow), _Spec("branch7x7_2", narrow, (1, 7)), _Spec("branch7x7_3", 192, (7, 1))],
        [
            _Spec("branch7x7dbl_1", narrow),
            _Spec("branch7x7dbl_2", narrow, (7, 1)),
            _Spec("branch7x7dbl_3", narrow, (1, 7)),
            _Spec("branch7x7dbl_4", narrow, (7, 1)),
            _Spec("branch7x7dbl_5", 192, (1, 7)),
        ],
        [_Spec("branch_pool", 192)],
    )


def _block_d(channels: int) -> _Mixed:
    """17x17 to 8x8 pixels."""
    return _Mixed(
        channels,
        "halving",
        [_Spec("branch3x3_1", 192), _Spec("branch3x3_2", 320, 3, 2)],
        [
            _Spec("branch7x7x3_1", 192),
            _Spec("branch7x7x3_2", 192, (1, 7)),
            _Spec("branch7x7x3_3", 192, (7, 1)),
            _Spec("branch7x7x3_4", 192, 3, 2),
        ],
        [],
    )


def _block_e(channels: int, pool: _Pool) -> _Mixed:
    """8x8 pixels (figure 7)."""
    return _Mixed(
        channels,
        pool,
        [_Spec("branch1x1", 320)],
        [_Spec("branch3x3_1", 384), [_Spec("branch3x3_2a", 384, (1, 3)), _Spec("branch3x3_2b", 384, (3, 1))]],
        [
            _Spec("branch3x3dbl_1", 448),
            _Spec("branch3x3dbl_2", 384, 3),
            [_Spec("branch3x3dbl_3a", 384, (1, 3)), _Spec("branch3x3dbl_3b", 384, (3, 1))],
        ],
        [_Spec("branch_pool", 192)],
    )
