"""Endless mini-batches of the training pictures, each a pure function of the seed and the position in the stream."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganflow.data.images import Images
from ganflow.data.prefetch import Prefetch
from ganflow.data.quantise import to_float
from ganflow.models.game import Batch

_RESIDENT_SHARE = 0.5  # of the free memory of the device, left for the data
_CHUNK_BYTES = 64 * 2**20


class Batches:
    """An endless stream of reshuffled epochs, cut into batches.

    Every epoch is a permutation of all pictures that follows from (seed, epoch) alone, so that any batch can be had
    without those before it, on any device. The pictures stay on an accelerator where they fit, and are otherwise
    gathered from the memory map: the next batch while the last one is in use.
    """

    def __init__(  # noqa: PLR0917 (what a stream is made of)
        self,
        images: Images | NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        batch_size: int,
        seed: int,
        device: torch.device,
        share: slice = slice(None),
    ) -> None:
        """Take pictures, uint8 (n, c, h, w), and labels, int64 (n,), or None.

        `share` says which pictures of each batch to give, where several processes divide it among them.
        """
        if not len(images):
            raise ValueError("there are no pictures to make batches of")
        self._images = images if isinstance(images, Images) else Images([images])
        self._device = device
        self._pinned = device.type == "cuda"  # from there it is copied while the host goes on
        self._resident = _load(self._images, device) if _fits(images.nbytes, device) else None
        beside = torch.device("cpu") if self._resident is None else device
        self._labels = None if labels is None else torch.from_numpy(np.array(labels, dtype=np.int64)).to(beside)
        self._order = _Order(len(images), batch_size, seed, share, beside)
        self._ahead = Prefetch(self._gather, batch_size)

    @property
    def waited(self) -> float:
        """Seconds for which callers of `batch` have waited for pictures so far."""
        return self._ahead.waited

    def batch(self, position: int) -> Batch:
        """Make the batch that begins at picture number `position` of the stream: float32 (batch_size, c, h, w)."""
        if self._resident is None:
            images, labels = self._ahead.get(position)
            images = images.to(self._device, non_blocking=self._pinned)
            labels = None if labels is None else labels.to(self._device, non_blocking=self._pinned)
        else:
            places = self._order.at(position)
            images = self._resident.index_select(0, places)
            labels = None if self._labels is None else self._labels.index_select(0, places)
        return Batch(to_float(images), labels)

    def _gather(self, position: int) -> tuple[Tensor, Tensor | None]:
        """Copy pictures uint8 (n, c, h, w) and labels int64 (n,) together, on the host and ready for the device."""
        places = self._order.at(position)
        images = torch.empty((len(places), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=self._pinned)
        self._images.take(places.numpy(), images.numpy())
        if self._labels is None:
            return images, None
        labels = torch.empty(len(places), dtype=torch.int64, pin_memory=self._pinned)
        return images, torch.index_select(self._labels, 0, places, out=labels)


class _Order:
    """Which pictures make up the batch at any position: int64 (batch_size,), or the share of it, on a device."""

    def __init__(self, n: int, batch_size: int, seed: int, share: slice, device: torch.device) -> None:
        self._n = n
        self._batch_size = batch_size
        self._seed = seed
        self._share = share
        self._device = device
        self._epochs: dict[int, Tensor] = {}

    def at(self, position: int) -> Tensor:
        n, end = self._n, position + self._batch_size
        epochs = range(position // n, (end - 1) // n + 1)
        # Kept from batch to batch: a copy to the device every step would make the host wait for it.
        kept = self._epochs
        self._epochs = {epoch: kept[epoch] if epoch in kept else self._shuffle(epoch) for epoch in epochs}
        spans = [self._epochs[epoch][max(position - epoch * n, 0) : min(end - epoch * n, n)] for epoch in epochs]
        whole = spans[0] if len(spans) == 1 else torch.cat(spans)
        return whole[self._share]

    def _shuffle(self, epoch: int) -> Tensor:
        order = np.random.default_rng((self._seed, epoch)).permutation(self._n)
        return torch.from_numpy(order).to(self._device)


def _fits(nbytes: int, device: torch.device) -> bool:
    """Say whether that much data may stay on an accelerator."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        return False
    return nbytes <= free * _RESIDENT_SHARE


def _load(images: Images, device: torch.device) -> Tensor:
    """Copy a memory map to the device, a part at a time."""
    resident = torch.empty(images.shape, dtype=torch.uint8, device=device)
    length = max(1, _CHUNK_BYTES // images[0].nbytes)
    for start in range(0, len(images), length):
        resident[start : start + length] = torch.from_numpy(np.array(images[start : start + length]))
    return resident
