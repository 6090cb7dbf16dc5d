"""Early warnings: what the curves of a training say about its end, long before it.

The signs are those of Arjovsky & Bottou 2017 (section 2: a perfect discriminator leaves the generator no gradient) and
of Goodfellow 2016 (tutorial, section 5.1.1: a generator that makes few kinds of pictures). The thresholds were set by
experiment: docs/watching.md shows what healthy and sick trainings reach.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ganflow.params import Params

Kind = Literal["saturated", "vanished", "collapsed"]

_IN_A_ROW = 3
"""Ticks that have to agree: one alone may be noise."""
_PERFECT = 0.995
"""Accuracy on the batches of training from which on the discriminator tells real and generated pictures perfectly."""
_WINNING = 0.95
"""Accuracy from which on it wins."""
_FAINT = 0.01
"""Share of its largest norm below which the generator's gradient leaves nothing to learn from."""
_ALIKE = 0.3
"""Variety below which pictures are of few kinds."""
_BEGINNING, _BEGINNING_IMAGES = 1 / 3, 50_000
"""Share of the training, and images, through which a healthy generator may still be at that."""
_RISING = 1.05
"""Ratio to all before by which the variety of a generator that is only slow goes on to rise."""
_LOST = 0.5
"""Share of its best variety below which a generator has lost what it could make."""


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
        self._begun = max(_BEGINNING * params.train.images, _BEGINNING_IMAGES)
        self._images = -1
        self._curves: dict[str, list[float]] = {}
        self._found: set[Kind] = set()

    def see(self, images: int, values: Mapping[str, float]) -> list[Finding]:
        """Give what has gone wrong as of this tick, each kind once; `values` have the names of the journal.

        A tick that was seen before is not judged again, nor is a sign whose values the family does not have.
        """
        if images <= self._images:
            return []
        self._images = images
        for name, value in values.items():
            self._curves.setdefault(name.removeprefix("train/"), []).append(value)
        signs: dict[Kind, str] = {
            "saturated": _saturated(self._curves),
            "vanished": _vanished(self._curves),
            "collapsed": _collapsed(self._curves, images >= self._begun),
        }
        new = {kind: seen for kind, seen in signs.items() if seen and kind not in self._found}
        self._found.update(new)
        return [Finding(images, kind, f"{seen}; {self._advice(kind)}") for kind, seen in new.items()]

    def _advice(self, kind: Kind) -> str:
        """Say what may help, of what this family has and what is not so already."""
        parts = [
            f"{remedy.verb} {remedy.path} (now {value})"
            for remedy in _REMEDIES[kind]
            if (value := _value(self._params, remedy.path)) is not None and remedy.applies(value)
        ]
        return f"what may help: {', '.join(parts)}"


def _saturated(curves: Mapping[str, Sequence[float]]) -> str:
    recent = curves.get("batch_accuracy", ())[-_IN_A_ROW:]
    if len(recent) < _IN_A_ROW or min(recent) < _PERFECT:
        return ""
    return f"the discriminator saturates: its accuracy is at least {min(recent):.3f} in {_IN_A_ROW} ticks"


def _vanished(curves: Mapping[str, Sequence[float]]) -> str:
    norms, accuracies = curves.get("generator_grad_norm", ()), curves.get("batch_accuracy", ())
    recent, right = norms[-_IN_A_ROW:], accuracies[-_IN_A_ROW:]
    if min(len(recent), len(right)) < _IN_A_ROW:
        return ""
    if min(right) < _WINNING or max(recent) >= _FAINT * max(norms):
        return ""
    return (
        f"the generator's gradient vanishes: its norm is at most {max(recent):.2g} in {_IN_A_ROW} ticks, once "
        f"{max(norms):.2g}, and the discriminator's accuracy at least {min(right):.3f}"
    )


def _collapsed(curves: Mapping[str, Sequence[float]], begun: bool) -> str:
    varieties = curves.get("sample_variety", ())
    recent = varieties[-_IN_A_ROW:]
    if len(recent) < _IN_A_ROW:
        return ""
    best = min(max(varieties), 1.0)  # more than that of real pictures is noise
    before = max(varieties[:-_IN_A_ROW], default=0.0)
    if begun and max(recent) < min(_ALIKE, _RISING * before):
        seen = ""
    elif best > _ALIKE and max(recent) < _LOST * best:
        seen = f", once {best:.2f} times"
    else:
        return ""
    return (
        f"the generator collapses: its pictures are at most {max(recent):.2f} times as varied as real ones in "
        f"{_IN_A_ROW} ticks{seen}"
    )


class _Remedy(NamedTuple):
    """What to do with a parameter, where its value is one that it applies to."""

    verb: str
    path: str
    applies: Callable[[Any], bool] = lambda _: True


_OTHER_LOSS = _Remedy("take non_saturating as", "model.loss", lambda loss: loss == "minimax")
_FEWER_STEPS = _Remedy("lower", "model.discriminator_steps", lambda steps: steps > 1)
_SLOWER = _Remedy("lower", "train.discriminator_lr")
_REMEDIES: dict[Kind, tuple[_Remedy, ...]] = {
    "saturated": (
        _SLOWER,
        _Remedy("lower", "train.generator_lr", lambda rate: rate > 1e-3),  # one that runs wild is easily told
        _FEWER_STEPS,
        _OTHER_LOSS,
        _Remedy("raise", "train.translation"),
        _Remedy("raise", "model.dropout"),
    ),
    "vanished": (_OTHER_LOSS, _SLOWER, _FEWER_STEPS),
    "collapsed": (
        _Remedy("lower", "train.generator_lr"),
        _Remedy("raise", "train.batch_size"),
        _Remedy("raise", "model.latent_dim", lambda length: length < 16),
        _Remedy("change", "seed"),
    ),
}


def _value(params: Params, path: str) -> Any:
    """Look a parameter up by its dotted path; None where this family has none of that name."""
    found: Any = params
    for key in path.split("."):
        found = getattr(found, key, None)
    return found
