"""Several processes that train as one, each on its part of every batch; torchrun starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from ganflow.errors import UserError


@dataclass(frozen=True)
class Team:
    """This process among those that train together. The first leads: it alone tracks, samples and writes."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """It is the one that keeps the record."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Which pictures of a batch are this process's."""
        return slice(self.rank, None, self.size)

    def meet(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def agrees(self, number: int, device: torch.device) -> bool:
        """Say whether all processes come with the same number; none goes on before all have come."""
        if self.size == 1:
            return True
        ends = torch.tensor([number, -number], device=device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return int(ends[0]) == -int(ends[1])

    def average_gradients(self, network: nn.Module) -> None:
        """Replace each gradient by its mean over the processes: that of the whole batch, where losses are means.

        In one flat piece. DistributedDataParallel would do it within the backward pass, and breaks where a player's
        loss takes two forward passes through batch norm (pytorch#175024).
        """
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()


ALONE = Team()


@contextmanager
def joined_team(device: torch.device, batch_size: int) -> Iterator[Team]:
    """Join the processes that torchrun started; without torchrun, be alone.

    Raises UserError where the batch, or the GPUs, cannot be divided among them.
    """
    size = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if size == 1:
        yield ALONE
        return
    if batch_size % size:
        raise UserError(f"train.batch_size: {batch_size} cannot be divided by {size} processes")
    if device.type == "mps":
        raise UserError("train.device: several processes cannot share Apple's GPU; set it to cpu")
    if device.type == "cuda":
        number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= there:
            raise UserError(f"torchrun --nproc-per-node: asks for more processes than the {there} GPUs that there are")
        torch.cuda.set_device(number)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
