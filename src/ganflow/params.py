"""The typed contract of params.yaml: every leaf with its description, bound and unit.

Frozen; an unknown key is an error. `load` reads a file and applies `-S key.path=value` overrides.
"""

import copy
import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, from_json
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ganflow.errors import UserError
from ganflow.models import families
from ganflow.models.game import FamilyParams
from ganflow.models.shapes import halvings

if TYPE_CHECKING:
    ModelParams = FamilyParams
else:
    ModelParams = Annotated[Union[families()], Field(discriminator="family", description="The GAN's family.")]  # noqa: UP007 (made at run time)


_CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class DataParams:
    """Which pictures, and how they are packed."""

    source: Literal["digits", "mnist", "stacked_mnist", "fashion_mnist", "cifar10", "image_folder"] = "digits"
    """Data set: digits is embedded; the others lie under root or (not image_folder) are downloaded to it."""
    name: str = Field(default="", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$|^$")
    """Name of the data set in the model registry; empty: the name of the source."""
    root: str = Field(default="data/raw", min_length=1)
    """Folder of the raw data."""
    resolution: int = Field(default=16, ge=8, le=128)
    """Side of the square pictures, in pixels: 4, 5, 6 or 7 times a power of two."""
    channels: Literal[1, 3] = 1
    """Channels of the pictures: 1 for gray, 3 for RGB."""
    validation_fraction: float = Field(default=0.1, gt=0.0, le=0.5)
    """Share of the training pictures kept for choosing checkpoints."""
    test_fraction: float = Field(default=0.2, gt=0.0, le=0.5)
    """Share of all pictures kept for the reported numbers, where the source has no test split of its own."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the splits and of the data set's classifier: another one gives numbers that cannot be compared."""

    @field_validator("resolution")
    @classmethod
    def _splits_into_halvings(cls, value: int) -> int:
        halvings(value)
        return value

    @model_validator(mode="after")
    def _digits_have_a_channel_each(self) -> "DataParams":
        if self.source == "stacked_mnist" and self.channels != 3:
            raise ValueError("source stacked_mnist has a digit in each of three channels; set channels: 3")
        return self

    @property
    def registered_model(self) -> str:
        """Name of the registered model: the data set and the resolution."""
        return f"{self.name or self.source}-{self.resolution}px"


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class TrainParams:
    """How the two players are trained. Progress is counted in real images shown to the discriminator."""

    images: int = Field(default=400_000, ge=1)
    """Length of the training, in images."""
    batch_size: int = Field(default=64, ge=2, le=65536)
    """Images a step."""
    generator_lr: float = Field(default=2e-4, gt=0.0, le=1.0)
    """Learning rate of the generator."""
    discriminator_lr: float = Field(default=2e-4, gt=0.0, le=1.0)
    """Learning rate of the discriminator."""
    beta1: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Adam's decay of the first moment; nothing to a family that moves by RMSprop."""
    beta2: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Adam's decay of the second moment; likewise."""
    ema_half_life: int = Field(default=20_000, ge=1)
    """Half-life of the generator's moving average, in images."""
    ema_ramp_up: float = Field(default=0.05, gt=0.0, le=1.0)
    """The half-life is at most this share of the images seen, so that early weights are forgotten early."""
    translation: int = Field(default=0, ge=0, le=64)
    """Largest random shift of a picture in each direction, in pixels, shown to the discriminator alone."""
    flip: bool = False
    """Mirror pictures left to right at random, shown to the discriminator alone."""
    color: bool = False
    """Change brightness, saturation and contrast at random (DiffAugment, for small data), likewise."""
    cutout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Blank a square of this share of the side at a random place (DiffAugment, for small data), likewise."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """What the networks compute in; auto takes bf16 where the processor or GPU has it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes CUDA, then MPS, then the CPU."""
    tick_every_images: int = Field(default=4_000, ge=1)
    """Images between two points of the curves."""
    sample_every_images: int = Field(default=40_000, ge=1)
    """Images between two grids of samples."""
    checkpoint_every_images: int = Field(default=40_000, ge=1)
    """Images between two resumable checkpoints."""
    fid_every_images: int = Field(default=0, ge=0)
    """Images between two FIDs against the validation split, the best of which keeps its checkpoint; 0: none."""
    fid_extractor: Literal["classifier", "inception"] = "classifier"
    """Network whose features that FID compares: the data set's classifier, or Inception."""


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class EvaluateParams:
    """How the trained model is measured."""

    checkpoint: Literal["last", "best"] = "last"
    """Which weights are measured and registered: the last, or the best by train.fid_every_images."""
    extractor: Literal["classifier", "inception"] = "classifier"
    """Network whose features FID compares: a classifier trained on the data set, or Inception."""
    inception_weights: str = ""
    """File with the weights of pt_inception-2015-12-05; empty: the cache of torch.hub, or a download."""
    images: int = Field(default=10_000, ge=2)
    """Most real and generated images compared; fewer where the test split is smaller."""
    searched_images: int = Field(default=50_000, ge=1)
    """Most training images among which memorised ones are looked for; never fewer than are compared."""
    batch_size: int = Field(default=250, ge=1, le=65536)
    """Images measured at a time."""


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class RegisterParams:
    """The quality gate before the model registry."""

    max_fid: float = Field(default=50.0, gt=0.0)
    """Largest FID that is registered."""
    min_discriminator_accuracy: float = Field(default=0.3, ge=0.0, le=1.0)
    """Least balanced accuracy of the discriminator that is registered."""
    max_discriminator_accuracy: float = Field(default=0.98, ge=0.0, le=1.0)
    """Largest balanced accuracy of the discriminator that is registered."""

    @model_validator(mode="after")
    def _band_is_not_empty(self) -> "RegisterParams":
        if self.min_discriminator_accuracy > self.max_discriminator_accuracy:
            raise ValueError("min_discriminator_accuracy must not exceed max_discriminator_accuracy")
        return self


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class TrackingParams:
    """Where MLflow keeps the runs; the server comes from MLFLOW_TRACKING_URI."""

    experiment: str = Field(default="ganflow", min_length=1, max_length=250)
    """Name of the MLflow experiment."""


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Params:
    """All of params.yaml."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the training: of the networks, the latents and the order of the pictures."""
    data: DataParams = DataParams()
    model: ModelParams
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    register: RegisterParams = RegisterParams()
    tracking: TrackingParams = TrackingParams()

    @model_validator(mode="after")
    def _best_is_kept(self) -> "Params":
        if self.evaluate.checkpoint == "best" and not self.train.fid_every_images:
            raise ValueError(
                "evaluate.checkpoint: best is kept only where train.fid_every_images is above 0; set that, or "
                "evaluate.checkpoint: last"
            )
        return self


_SCHEMA: TypeAdapter[Params] = TypeAdapter(Params)


def parse(tree: Mapping[str, Any], origin: str = "params") -> Params:
    """Check a tree of plain values; `origin` is named in the message. Raises UserError listing every problem."""
    content = _as_json(tree, origin)
    try:
        # Through JSON: strict about types, and yet sections may be mappings, as they are in the file.
        return _SCHEMA.validate_json(content, by_name=True)
    except ValidationError as error:
        raise _refusal(origin, [_problem(details) for details in error.errors(include_url=False)]) from None


def load(path: Path, overrides: Sequence[str] = ()) -> Params:
    """Read a params.yaml and apply `key.path=value` overrides, whose values are YAML."""
    return parse(override(read_tree(path), overrides), str(path))


def read_tree(path: Path, option: str = "--params", holds: str = "seed, data, model, ...") -> dict[str, Any]:
    """Read a YAML file that holds one mapping. Raises UserError otherwise, with `option` and what the file `holds`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; run from the repository's root or give {option}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        tree = _yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{path}: must hold entries by name: {holds}")
    return tree


def override(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply `key.path=value` overrides to a copy of the tree."""
    result = copy.deepcopy(dict(tree))
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise UserError(f"-S {text}: must read key.path=value, as in -S train.batch_size=128")
        try:
            parsed = _yaml(value)
        except ValueError:
            raise UserError(f"-S {text}: the value {value!r} is not valid YAML; quote it") from None
        section = result
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise UserError(f"-S {text}: {key} is a value, not a section")
        section[keys[-1]] = "" if parsed is None and value == "" else parsed
    return result


def read_values(text: str, origin: str) -> list[Any]:
    """Read values separated by commas, each as YAML. Raises UserError."""
    try:
        values = _yaml(f"[{text}]")
    except ValueError as error:
        raise UserError(f"{origin}: the values are not valid YAML: {error}") from None
    return list(values)


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one tree over another: sections are merged, values replaced."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Turn values by dotted path (`train.batch_size`) into a tree that `parse` takes."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *sections, leaf = path.split(".")
        below = tree
        for section in sections:
            below = below.setdefault(section, {})
        below[leaf] = value
    return tree


def dump(params: Params) -> dict[str, Any]:
    """Turn parameters into a tree of plain values that `parse` takes back."""
    tree: dict[str, Any] = _SCHEMA.dump_python(params, mode="json")
    return tree


def descriptions(params: Params) -> dict[str, str]:
    """What each leaf means, by its dotted path; the leaves of the model are those of its family."""
    notes: dict[str, str] = {}
    for name, note in _notes(Params).items():
        section = getattr(params, name)
        if dataclasses.is_dataclass(section):
            notes |= {f"{name}.{leaf}": leaf_note for leaf, leaf_note in _notes(type(section)).items()}
        else:
            notes[name] = note
    return notes


def _notes(section: Any) -> dict[str, str]:
    if issubclass(section, FamilyParams):  # a plain dataclass, since the models know nothing but torch
        return {entry.name: entry.metadata["description"] for entry in dataclasses.fields(section)}
    return {name: entry.description or "" for name, entry in section.__pydantic_fields__.items()}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of params.yaml, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_SCHEMA.json_schema()}


def _yaml(text: str) -> Any:
    """Read YAML 1.2, the dialect that DVC reads. Raises ValueError for whatever is wrong with it."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except Exception as error:  # ruamel lets out what its constructors run into: `!!bool maybe` is a KeyError
        said = " ".join(str(error).split()).split(" To suppress this check")[0]
        known = isinstance(error, YAMLError | ValueError)
        raise ValueError(said if known else f"{type(error).__name__}: {said}") from None


def _as_json(tree: Mapping[str, Any], origin: str) -> bytes:
    """Write a tree as JSON. YAML can hold what JSON cannot: keys that are no text, loops, half a character."""
    pieces: dict[str, Any] = {}
    for name, section in tree.items():
        if isinstance(section, Mapping) and section:
            pieces |= {f"{name}.{key}": {name: {key: value}} for key, value in section.items()}
        else:
            pieces[name] = {name: section}
    problems = []
    for where, piece in pieces.items():
        try:
            from_json(_json(piece))
        except (TypeError, ValueError, RecursionError) as error:
            shown = where.encode(errors="backslashreplace").decode()
            problems.append(f"{shown}: is not a value that a parameter can have: {error}")
    if problems:
        raise _refusal(origin, problems)
    return _json(tree)


def _json(tree: Any) -> bytes:
    return json.dumps(tree, default=str, ensure_ascii=False).encode()


def _refusal(origin: str, problems: Sequence[str]) -> UserError:
    return UserError("\n  ".join([f"{origin}: {len(problems)} to put right:", *problems]))


def _family_classes() -> dict[str, type[FamilyParams]]:
    return {vars(family)["family"]: family for family in families()}


def _known_keys(section: str) -> list[str]:
    """The parameters of a section, or of a family; the sections themselves for an empty name."""
    sections: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Params)}
    owner: Any = {"": Params, **_family_classes(), **sections}[section]
    return [field.name for field in dataclasses.fields(owner)]


def _problem(details: ErrorDetails) -> str:
    """Say one validation error as `section.key: what is wrong and what would be right`."""
    loc = [str(part) for part in details["loc"]]
    if not loc:  # of sections that do not go together
        return details["msg"].removeprefix("Value error, ")
    in_family = loc[:1] == ["model"] and len(loc) > 1
    section = loc.pop(1) if in_family else loc[0]  # pydantic names the member of the union that it chose
    where = ".".join(loc)
    if details["type"] == "unexpected_keyword_argument":
        known = _known_keys(section if len(loc) > 1 else "")
        near = difflib.get_close_matches(loc[-1], known, n=1)
        owner = f" for the family {section}" if in_family else ""
        right = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        return f"{where}: there is no such parameter{owner}; {right}"
    if details["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        return f"{where}.family: must be one of {', '.join(_family_classes())}"
    message = details["msg"].removeprefix("Value error, ").replace("Input should", "should").replace("String", "text")
    message = message.replace("an object", "a section")
    given = details["input"]
    shown = "" if isinstance(given, dict | list) or details["type"] == "missing_argument" else f", not {given!r}"
    return f"{where}: {message}{shown}"
