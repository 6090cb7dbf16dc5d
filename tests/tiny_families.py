"""The parameters of every family, whichever files lie in models/, at a tiny size: for what all of them go through."""

import dataclasses
from typing import Any

from ganflow.models import families

SIZES: dict[str, Any] = {
    "latent_dim": 4,
    "hidden_units": 4,
    "width": 8,
    "max_width": 16,
    "style_dim": 4,
    "mapping_layers": 2,
    "label_dim": 3,
    "discriminator_steps": 1,
    "burn_in_images": 100,
}
"""By the name of the parameter; a family takes those that it has."""


def tiny_models() -> dict[str, dict[str, Any]]:
    """Give the section `model` of each family by its name."""
    models = {}
    for family in families():
        own = {field.name: field.default for field in dataclasses.fields(family)}
        models[own["family"]] = {
            "family": own["family"],
            **{name: value for name, value in SIZES.items() if name in own},
        }
    return models
