import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ganflow import params
from ganflow.models import families
from ganflow.models.game import FamilyParams
from ganflow.params import Params
from ganflow.tracking.runs import training_params
from ganflow.training.health import Finding, Health

TICK = 20_000
HEALTHY = {
    "batch_accuracy": [0.7, 0.9, 0.8, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6],
    "generator_grad_norm": [1.0, 5.0, 4.0, 2.0, 0.7, 0.4, 0.4, 0.5, 0.4, 0.3],
    "sample_variety": [0.1, 0.1, 0.1, 0.3, 0.5, 0.8, 1.1, 1.1, 1.0, 1.0],
}
SICK = {
    "batch_accuracy": [1.0] * 10,
    "generator_grad_norm": [2.0] * 5 + [0.001] * 5,
    "sample_variety": [0.1] * 10,
}


def of(family: str = "dcgan", images: int = 10 * TICK, **tree: dict[str, Any]) -> Params:
    model = {"family": family, **tree.pop("model", {})}
    return params.parse({"model": model, "train": {"images": images, **tree.pop("train", {})}, **tree})


def judged(
    curves: Mapping[str, Sequence[float]], own: Params | None = None, health: Health | None = None
) -> list[Finding]:
    """Give all findings of a training with these curves."""
    health = health or Health(own or of())
    ticks = [dict(zip(curves, values, strict=True)) for values in zip(*curves.values(), strict=True)]
    return [
        finding
        for number, tick in enumerate(ticks, 1)
        for finding in health.see(number * TICK, {f"train/{name}": value for name, value in tick.items()})
    ]


def kinds(found: Sequence[Finding]) -> list[tuple[int, str]]:
    return [(finding.images // TICK, finding.kind) for finding in found]


def test_a_healthy_training_has_none() -> None:
    assert judged(HEALTHY) == []


# Saturated


@pytest.mark.parametrize(
    ("accuracies", "tick"),
    [
        ([0.7, 1.0, 1.0, 1.0, 1.0], 4),
        ([0.995, 0.995, 0.995, 0.1, 0.1], 3),
        ([1.0, 1.0, 0.99, 1.0, 1.0], None),
        ([0.994, 0.994, 0.994, 0.994, 0.994], None),
    ],
)
def test_a_discriminator_that_is_always_right(accuracies: list[float], tick: int | None) -> None:
    found = kinds(judged({"batch_accuracy": accuracies, "generator_grad_norm": [1.0] * 5}))
    assert found == ([(tick, "saturated")] if tick else [])


# Vanished


@pytest.mark.parametrize(
    ("norms", "accuracy", "tick"),
    [
        ([1.0, 9.0, 2.0, 0.089, 0.089, 0.089], 0.95, 6),
        ([1.0, 9.0, 2.0, 0.091, 0.091, 0.091], 0.95, None),
        ([1.0, 9.0, 2.0, 0.089, 0.2, 0.089], 0.95, None),
        ([9.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0.95, 4),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0.95, None),
        ([1.0, 9.0, 2.0, 0.089, 0.089, 0.089], 0.94, None),
    ],
)
def test_a_gradient_that_is_none(norms: list[float], accuracy: float, tick: int | None) -> None:
    """Against the largest so far, and only where the discriminator wins."""
    found = kinds(judged({"generator_grad_norm": norms, "batch_accuracy": [accuracy] * 6}))
    assert found == ([(tick, "vanished")] if tick else [])


# Collapsed


@pytest.mark.parametrize(
    ("varieties", "tick"),
    [
        ([0.1] * 10, 4),  # the first tick at which a third is over
        ([0.1] * 6 + [0.4] * 4, 4),
        ([0.1] * 3 + [0.31] * 7, None),
        ([0.1, 0.11, 0.12, 0.13, 0.14, 0.16, 0.18, 0.2, 0.21, 0.22], None),  # slow
        ([0.1, 0.12, 0.15, 0.17, 0.18, 0.18, 0.18, 0.18, 0.18, 0.18], 8),
        ([0.2, 0.2, 0.2, 0.4, 0.2, 0.2, 0.31, 0.2, 0.2, 0.31], None),
        ([0.5, 0.8, 1.0, 0.49, 0.45, 0.4, 0.5, 0.5, 0.5, 0.5], 6),  # less than half of its best
        ([0.5, 0.8, 1.0, 0.51, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], None),
        ([1.9, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6], None),  # noise is no merit
    ],
)
def test_pictures_that_are_of_few_kinds(varieties: list[float], tick: int | None) -> None:
    found = kinds(judged({"sample_variety": varieties}))
    assert found == ([(tick, "collapsed")] if tick else [])


def test_a_long_training_may_begin_for_longer() -> None:
    assert kinds(judged({"sample_variety": [0.1] * 10}, of(images=27 * TICK))) == [(9, "collapsed")]
    assert judged({"sample_variety": [0.1] * 10}, of(images=31 * TICK)) == []


def test_a_short_training_is_all_beginning() -> None:
    ticks = [(images, {"train/sample_variety": 0.1}) for images in range(1000, 50_000, 1000)]
    health = Health(of(images=50_000))
    assert [finding for images, values in ticks for finding in health.see(images, values)] == []
    assert [finding.kind for finding in health.see(50_000, {"train/sample_variety": 0.1})] == ["collapsed"]


# What is not there, what was there already


def test_families_without_a_value_are_not_judged_by_it() -> None:
    """A critic has no accuracy: neither saturated nor vanished can be said of it."""
    assert judged({"generator_grad_norm": [1.0] * 5 + [0.0] * 5}) == []
    assert judged({"critic": [1.0] * 10}) == []


def test_lines_of_other_values_in_between_do_not_count() -> None:
    """A FID has points of its own."""
    health, found = Health(of()), []
    for number in range(1, 4):
        found += health.see(number * TICK, {"train/batch_accuracy": 1.0})
        found += health.see(number * TICK + 1, {"train/validation_fid": 9.0})
    assert kinds(found) == [(3, "saturated")]


def test_each_kind_is_said_once() -> None:
    assert kinds(judged(SICK)) == [(3, "saturated"), (4, "collapsed"), (8, "vanished")]


curves_of_twelve = st.fixed_dictionaries(
    {
        name: st.lists(st.floats(0, top), min_size=12, max_size=12)
        for name, top in (("batch_accuracy", 1.0), ("generator_grad_norm", 2.0), ("sample_variety", 1.5))
    }
)
sick = st.sampled_from([[1.0] * 12, [0.1] * 12, [1.0] * 5 + [0.001] * 7])


@given(
    curves_of_twelve,
    st.lists(sick, min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.integers(0, 12),
)
def test_told_the_past_again_it_judges_as_if_it_had_seen_it(
    values: dict[str, list[float]], sick: list[list[float]], taken: list[bool], again: int
) -> None:
    """As after a resume: the journal's past, and then ticks that are played again."""
    for name, other, replaced in zip(values, sick, taken, strict=True):
        values[name] = other if replaced else values[name]
    whole = judged(values)
    health = Health(of())
    first = judged({name: curve[:again] for name, curve in values.items()}, health=health)
    assert first + judged(values, health=health) == whole


# What it says


def everything_wrong(own: Params) -> list[Finding]:
    found = judged(SICK, own)
    assert {finding.kind for finding in found} == {"saturated", "vanished", "collapsed"}
    return found


def with_much_to_change(family: type[FamilyParams]) -> dict[str, Any]:
    """Give what the advice would change, of what a family has."""
    return {
        field.name: value
        for field in dataclasses.fields(family)
        for name, value in (("loss", "minimax"), ("discriminator_steps", 3))
        if field.name == name and (name != "loss" or value in get_args(get_type_hints(family)["loss"]))
    }


@pytest.mark.parametrize("family", families(), ids=lambda family: family.family)
def test_it_names_parameters_that_the_family_has(family: type[FamilyParams]) -> None:
    own = of(vars(family)["family"], seed=7, model=with_much_to_change(family))
    for finding in everything_wrong(own):
        named = dict(re.findall(r"([a-z_]+\.[a-z_]+|seed) \(now ([^)]+)\)", finding.text))
        assert named
        assert named.items() <= training_params(own).items()
        assert len(named) == finding.text.count("(now")


def test_it_says_what_was_seen() -> None:
    saturated, collapsed, vanished = (finding.text for finding in everything_wrong(of()))
    assert "accuracy is at least 1.000 in 3 ticks" in saturated
    assert "at most 0.10 times as varied" in collapsed
    assert "at most 0.001 in 3 ticks, once 2, and the discriminator's accuracy at least 1.000;" in vanished


def test_it_does_not_propose_what_is_so_already() -> None:
    own = of(model={"loss": "minimax", "discriminator_steps": 2})
    strong = {finding.kind: finding.text for finding in everything_wrong(own)}
    plain = {finding.kind: finding.text for finding in everything_wrong(of())}
    wild = {finding.kind: finding.text for finding in everything_wrong(of(train={"generator_lr": 0.02}))}
    assert "lower train.generator_lr (now 0.02)" in wild["saturated"]
    assert "train.generator_lr" not in plain["saturated"]
    for kind in ("saturated", "vanished"):
        assert "take non_saturating as model.loss (now minimax)" in strong[kind]
        assert "model.loss" not in plain[kind]
        assert "lower model.discriminator_steps (now 2)" in strong[kind]
        assert "model.discriminator_steps" not in plain[kind]
