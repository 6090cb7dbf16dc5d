import inspect
from typing import Any

import pytest
from kfp import dsl

from ganflow import params
from ganflow.errors import UserError
from pipelines.leaves import Leaf, leaves_of, of_sections, with_leaves

LEAVES = (
    Leaf("seed", 3, "an integer"),
    Leaf("train.flip", True, "a truth"),
    Leaf("train.beta1", 0.5, "a fraction"),
    Leaf("tracking.experiment", "text", "a text"),
)


def report(leaves: dict[str, object], code: str, out: dsl.Output[dsl.Artifact]) -> list[Any]:
    """Give back what came."""
    return [leaves, code, out]


def test_leaves_take_the_place_of_the_dictionary() -> None:
    made = with_leaves(report, LEAVES)
    signature = inspect.signature(made)
    assert {name: entry.annotation for name, entry in signature.parameters.items() if name not in {"code", "out"}} == {
        "seed": int,
        "train_flip": bool,
        "train_beta1": float,
        "tracking_experiment": str,
    }
    text = """quotes " ' and 生成 \\ {{x}}"""
    leaves, code, out = made(3, True, 0.25, text, "c", "o")
    assert leaves == {"seed": 3, "train.flip": True, "train.beta1": 0.25, "tracking.experiment": text}
    assert [type(value) for value in leaves.values()] == [int, bool, float, str]
    assert (code, out) == ("c", "o")


def test_kubeflow_finds_the_source_of_what_was_made() -> None:
    """And that of another one with other leaves is not mistaken for it."""
    one, other = with_leaves(report, LEAVES[:1]), with_leaves(report, LEAVES[1:2])
    assert "seed: int" in inspect.getsource(one)
    assert "train_flip: bool" in inspect.getsource(other)
    component = dsl.component(one, base_image="python", install_kfp_package=False)
    assert set(component.component_spec.inputs) == {"seed", "code"}


def test_names_of_inputs_are_unique_for_every_family() -> None:
    for family in ("vanilla", "dcgan"):
        leaves = leaves_of(params.parse({"model": {"family": family}}))
        assert len({leaf.name for leaf in leaves}) == len(leaves)
        assert all(leaf.name.isidentifier() for leaf in leaves)


def test_the_family_decides_about_the_leaves_of_the_model() -> None:
    names = {
        family: {leaf.path for leaf in leaves_of(params.parse({"model": {"family": family}}))}
        for family in ("vanilla", "dcgan")
    }
    assert "model.width" in names["dcgan"] - names["vanilla"]
    assert "model.hidden_units" in names["vanilla"] - names["dcgan"]


def test_sections_are_chosen_whole() -> None:
    leaves = leaves_of(params.parse({"model": {"family": "dcgan"}}))
    assert {leaf.path for leaf in of_sections(leaves, ("seed", "register"))} == {
        "seed",
        "register.max_fid",
        "register.min_discriminator_accuracy",
        "register.max_discriminator_accuracy",
    }


def test_a_text_that_kubeflow_would_replace_is_refused() -> None:
    tree = {"model": {"family": "dcgan"}, "tracking": {"experiment": "a {{$.inputs}}"}}
    with pytest.raises(UserError, match=r"tracking\.experiment: holds \{\{\$"):
        leaves_of(params.parse(tree))
