"""What goes into a generator: latents, and beside them what a person may choose, such as a label, as further columns.

One tensor holds all of it, so that every family's generator is called, exported and served alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Noise = Literal["normal", "uniform"]
LABEL = "label"
"""Name of the control that holds the class of a picture."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """A column of the inputs that a person may set to a number from `least` to `most`.

    Left alone it holds `default` or, where there is none, a whole number drawn from them, each as often.
    """

    name: str
    least: float
    most: float
    default: float | None = None

    def require(self, value: float) -> None:
        """Raise ValueError for a value that the column cannot hold."""
        whole = self.default is None
        if not self.least <= value <= self.most or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{self.name}: must be {kind} from {self.least:g} to {self.most:g}, not {value:g}")


@dataclass(frozen=True)
class InputSpec:
    """How the inputs (n, width) of a generator are drawn: latents (n, latent_dim), then a column for each control."""

    noise: Noise
    latent_dim: int
    controls: tuple[Control, ...] = ()

    @property
    def width(self) -> int:
        """Columns in all."""
        return self.latent_dim + len(self.controls)

    def draw(self, n: int, device: torch.device, rng: torch.Generator | None = None) -> Tensor:
        """Draw inputs (n, width). With `rng`, a generator on the CPU, the draw is the same on every device."""
        where = device if rng is None else torch.device("cpu")
        columns = [draw_noise(self.noise, n, self.latent_dim, where, rng)]
        for control in self.controls:
            if control.default is None:
                low, high = int(control.least), int(control.most) + 1
                columns.append(torch.randint(low, high, (n, 1), device=where, generator=rng).float())
            else:
                columns.append(torch.full((n, 1), control.default, device=where))
        return torch.cat(columns, dim=1).to(device)

    def find(self, name: str) -> Control | None:
        """Find a control by its name."""
        return next((control for control in self.controls if control.name == name), None)

    def column(self, inputs: Tensor, name: str) -> Tensor:
        """Give the column (n,) of a control, a view of the inputs (n, width)."""
        names = [control.name for control in self.controls]
        return inputs[:, self.latent_dim + names.index(name)]

    def labels(self, inputs: Tensor) -> Tensor | None:
        """Give the classes (n,), int64, that the inputs (n, width) ask for; None where they ask for none."""
        return self.column(inputs, LABEL).long() if self.find(LABEL) else None

    def choose(self, inputs: Tensor, chosen: Mapping[str, float]) -> Tensor:
        """Set controls of all inputs (n, width) by name, in a copy. Raises ValueError for one that cannot be set."""
        changed = inputs.clone()
        for name, value in chosen.items():
            control = self.find(name)
            if control is None:
                known = ", ".join(control.name for control in self.controls) or "nothing"
                raise ValueError(f"{name}: this generator has no such input beside its latents; it has {known}")
            control.require(value)
            self.column(changed, name).fill_(value)
        return changed


def draw_noise(kind: Noise, n: int, dim: int, device: torch.device, rng: torch.Generator | None = None) -> Tensor:
    """Draw latents (n, dim): standard normal, or uniform on [-1, 1] (Goodfellow et al. 2014; Radford 2016)."""
    where = device if rng is None else torch.device("cpu")
    if kind == "normal":
        latents = torch.randn(n, dim, device=where, generator=rng)
    else:
        latents = torch.rand(n, dim, device=where, generator=rng) * 2 - 1
    return latents.to(device)
