"""Early warnings: what the curves of a training say about its end, long before it.

The signs are those of Arjovsky & Bottou 2017 (section 2: a perfect discriminator leaves the generator no gradient) and
of Goodfellow 2016 (tutorial, section 5.1.1: a generator that makes few kinds of pictures). The thresholds were set by
experiment: docs/watching.md shows what healthy and sick trainings reach.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

from ganflow.params import Params

Kind = Literal["saturated", "vanished", "collapsed"]

_IN_A_ROW = 3
"""Ticks that have to agree: one alone may be noise."""
_PERFECT = 0.995
"""Accuracy on the batches of training from which on the discriminator tells real and generated pictures perfectly."""
_WINNING = 0.9
"""Accuracy from which on it wins."""
_FIRST = 5
"""Ticks whose median is the usual norm of the generator's gradient."""
_FAINT = 0.01
"""Share of that norm below which nothing is left to learn from."""
_VARIED = 0.5
"""Variety from which on a generator makes many kinds of pictures."""
_LOST = 0.5
"""Share of its best variety below which it has lost them."""


class Finding(NamedTuple):
    """What goes wrong, at how many images it was seen, and what was seen and may help, in words."""

    images: int
    kind: Kind
    text: str


class Health:
    """Judges a training by the values of its ticks, and knows its parameters to say what may help.

    It is given all ticks in their order, after a resume too, so that it has no state of its own to be saved.
    """

    def __init__(self, params: Params) -> None:
        self._params = params
        self._images = -1
        self._curves: dict[str, list[float]] = {}

    def see(self, images: int, values: Mapping[str, float]) -> list[Finding]:
        """Give what is wrong as of this tick, with its `values` under the names of the journal.

        A tick that was seen before is not judged again, nor is a sign whose values the family does not have.
        """
        if images <= self._images:
            return []
        self._images = images
        for name, value in values.items():
            self._curves.setdefault(name.removeprefix("train/"), []).append(value)
        found: dict[Kind, str] = {
            "saturated": _saturated(self._curves),
            "vanished": _vanished(self._curves),
            "collapsed": _collapsed(self._curves),
        }
        return [Finding(images, kind, f"{seen}; {self._advice(kind)}") for kind, seen in found.items() if seen]

    def _advice(self, kind: Kind) -> str:
        """Say what may help, of what this family has and what is not so already."""
        parts = [
            f"{verb} {path} (now {value})"
            for verb, path, applies in _REMEDIES[kind]
            if (value := _value(self._params, path)) is not None and applies(value)
        ]
        return f"try one of these: {', '.join(parts)}"


def _saturated(curves: Mapping[str, Sequence[float]]) -> str:
    recent = curves.get("batch_accuracy", ())[-_IN_A_ROW:]
    if len(recent) < _IN_A_ROW or min(recent) < _PERFECT:
        return ""
    return f"the discriminator saturates: accuracy {min(recent):.3f} or more in {_IN_A_ROW} ticks"


def _vanished(curves: Mapping[str, Sequence[float]]) -> str:
    norms, accuracies = curves.get("generator_grad_norm", ()), curves.get("batch_accuracy", ())
    recent = norms[_FIRST:][-_IN_A_ROW:]
    if len(recent) < _IN_A_ROW or len(accuracies) < _IN_A_ROW or min(accuracies[-_IN_A_ROW:]) < _WINNING:
        return ""
    usual = median(norms[:_FIRST])
    if max(recent) >= _FAINT * usual:
        return ""
    return f"the generator's gradient vanishes: norm {max(recent):.2g} or less in {_IN_A_ROW} ticks, once {usual:.2g}"


def _collapsed(curves: Mapping[str, Sequence[float]]) -> str:
    varieties = curves.get("sample_variety", ())
    recent, best = varieties[-_IN_A_ROW:], max(varieties, default=0.0)
    if len(recent) < _IN_A_ROW or best < _VARIED or max(recent) >= _LOST * best:
        return ""
    return (
        f"the generator collapses: its pictures are {max(recent):.2f} times as varied as real ones or less in "
        f"{_IN_A_ROW} ticks, and were {best:.2f} times"
    )


def _always(_: Any) -> bool:
    return True


_REMEDIES: dict[Kind, tuple[tuple[str, str, Callable[[Any], bool]], ...]] = {
    "saturated": (
        ("lower", "train.discriminator_lr", _always),
        ("lower", "model.discriminator_steps", lambda steps: steps > 1),
        ("raise", "train.translation", _always),
        ("raise", "model.dropout", _always),
    ),
    "vanished": (
        ("set model.loss: non_saturating instead of", "model.loss", lambda loss: loss == "minimax"),
        ("lower", "train.discriminator_lr", _always),
        ("lower", "model.discriminator_steps", lambda steps: steps > 1),
    ),
    "collapsed": (
        ("lower", "train.generator_lr", _always),
        ("raise", "train.batch_size", _always),
        ("change", "seed", _always),
    ),
}


def _value(params: Params, path: str) -> Any:
    """Look a parameter up by its dotted path; None where this family has none of that name."""
    found: Any = params
    for key in path.split("."):
        found = getattr(found, key, None)
    return found
