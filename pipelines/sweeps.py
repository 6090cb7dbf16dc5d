"""The trials of a sweep: every combination of the values asked for, checked before any of them runs."""

import json
from collections.abc import Sequence
from itertools import product

from ganflow.errors import UserError
from ganflow.params import Params, dump, override, parse, read_values

_SWEPT = ("seed", "model", "train")


def trials(params: Params, swept: Sequence[str]) -> list[list[str]]:
    """Turn `key.path=value,value` into one list of `key.path=value` for each combination.

    What the trials are compared by must be the same for all: data, evaluation and registration cannot be swept.
    Raises UserError.
    """
    choices = [_choices(text) for text in swept]
    keys = [text.partition("=")[0] for text in swept]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise UserError(f"--sweep {min(twice)}: is given twice; put all its values into one")
    for text, values in zip(swept, choices, strict=True):
        if len(set(values)) < len(values):
            raise UserError(f"--sweep {text}: has a value twice; name each once")
    made = [list(combination) for combination in product(*choices)]
    for trial in made:
        with_trial(params, trial)
    return made


def with_trial(params: Params, trial: Sequence[str]) -> Params:
    """Give the parameters of one trial. Raises UserError."""
    return parse(override(dump(params), trial), f"--sweep {' '.join(trial)}")


def _choices(text: str) -> list[str]:
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise UserError(f"--sweep {text}: must read key.path=value,value, as in --sweep train.beta1=0.0,0.5")
    if key.partition(".")[0] not in _SWEPT:
        raise UserError(
            f"--sweep {text}: only seed, model.* and train.* can be swept: trials on other data, or measured "
            "otherwise, cannot be compared"
        )
    if key == "model.family":
        raise UserError(f"--sweep {text}: a pipeline is compiled for one family; submit one for each")
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for value in read_values(values, f"--sweep {text}")]
