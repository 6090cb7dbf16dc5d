"""Sums of a tick, kept on the device: reading them is the only time that the host waits for it."""

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ganflow.models.game import Outcome


class Meter:
    """Means of losses, gradient norms and values since the last reading, and where a loss first was not finite."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, player: str, outcome: Outcome, images: int) -> None:
        """Add one turn's outcome, which ended at `images`."""
        loss = outcome.loss.detach()
        for name, value in {f"{player}_loss": loss, **outcome.values}.items():
            self._add(name, value)
        fresh = (self._first_bad < 0) & ~torch.isfinite(loss)
        self._first_bad = torch.where(fresh, images, self._first_bad)

    def add_gradient(self, player: str, network: nn.Module) -> None:
        """Add the L2 norm of the gradient that one turn left, over all of the network's parameters that have one."""
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        self._add(f"{player}_grad_norm", get_total_norm(gradients))

    def read(self) -> tuple[dict[str, float], int | None]:
        """Return the means by name, and the image count at which a loss was not finite; then start anew."""
        values = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        means = {name: value / self._counts[name] for name, value in zip(self._sums, values, strict=True)}
        first_bad = int(self._first_bad)
        self._sums, self._counts = {}, {}
        return means, first_bad if first_bad >= 0 else None

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """What a checkpoint in the middle of a tick has to keep: the sums and their counts."""
        return dict(self._sums), dict(self._counts)

    def restore(self, sums: dict[str, Tensor], counts: dict[str, int]) -> None:
        """Take back what `state` gave."""
        self._sums = {name: total.to(self._device) for name, total in sums.items()}
        self._counts = dict(counts)

    def _add(self, name: str, value: Tensor) -> None:
        total = self._sums.get(name)
        self._sums[name] = value.detach().float() if total is None else total + value.detach()
        self._counts[name] = self._counts.get(name, 0) + 1
