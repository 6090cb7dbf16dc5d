"""Endless mini-batches of the training pictures, each a pure function of the seed and the position in the stream."""

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganflow.data.quantise import to_float
from ganflow.models.game import Batch

_RESIDENT_SHARE = 0.5  # of the free memory of the device, left for the data
_CHUNK_BYTES = 64 * 2**20


class Batches:
    """An endless stream of reshuffled epochs, cut into batches.

    Every epoch is a permutation of all pictures that follows from (seed, epoch) alone, so that any batch can be had
    without those before it, on any device. The pictures stay on an accelerator where they fit, and are otherwise
    gathered from the memory map.
    """

    def __init__(  # noqa: PLR0917 (what a stream is made of)
        self,
        images: NDArray[np.uint8],
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
        self._images = images
        self._labels = None if labels is None else torch.from_numpy(np.array(labels, dtype=np.int64)).to(device)
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._share = share
        self._resident = _load(images, device) if _fits(images.nbytes, device) else None
        self._orders: dict[int, tuple[NDArray[np.int64], Tensor]] = {}
        self.waited = 0.0
        """Seconds in which the caller has waited for pictures."""

    def batch(self, position: int) -> Batch:
        """Make the batch that begins at picture number `position` of the stream: float32 (batch_size, c, h, w)."""
        order, on_device = self._indices(position)
        order, on_device = order[self._share], on_device[self._share]
        before = time.perf_counter()
        images = self._gather(order) if self._resident is None else self._resident.index_select(0, on_device)
        self.waited += time.perf_counter() - before
        labels = None if self._labels is None else self._labels.index_select(0, on_device)
        return Batch(to_float(images), labels)

    def _indices(self, position: int) -> tuple[NDArray[np.int64], Tensor]:
        """Which pictures make up the batch, for the host and for the device."""
        n, end = len(self._images), position + self._batch_size
        epochs = range(position // n, (end - 1) // n + 1)
        # Kept from batch to batch: a copy to the device every step would make the host wait for it.
        self._orders = {epoch: self._orders.get(epoch) or self._shuffle(epoch) for epoch in epochs}
        spans = [
            (self._orders[epoch], slice(max(position - epoch * n, 0), min(end - epoch * n, n))) for epoch in epochs
        ]
        if len(spans) == 1:
            (order, on_device), span = spans[0]
            return order[span], on_device[span]
        return (
            np.concatenate([order[span] for (order, _), span in spans]),
            torch.cat([on_device[span] for (_, on_device), span in spans]),
        )

    def _shuffle(self, epoch: int) -> tuple[NDArray[np.int64], Tensor]:
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._images))
        return order, torch.from_numpy(order).to(self._device)

    def _gather(self, order: NDArray[np.int64]) -> Tensor:
        pinned = self._device.type == "cuda"
        host = torch.empty((len(order), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        np.take(self._images, order, axis=0, out=host.numpy(), mode="clip")  # other modes take a detour by a buffer
        return host.to(self._device, non_blocking=pinned)


def _fits(nbytes: int, device: torch.device) -> bool:
    """Say whether that much data may stay on an accelerator."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        return False
    return nbytes <= free * _RESIDENT_SHARE


def _load(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Copy a memory map to the device, a part at a time."""
    resident = torch.empty(images.shape, dtype=torch.uint8, device=device)
    length = max(1, _CHUNK_BYTES // images[0].nbytes)
    for start in range(0, len(images), length):
        resident[start : start + length] = torch.from_numpy(np.array(images[start : start + length]))
    return resident
