import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ganflow import cli, params
from ganflow.errors import UserError
from ganflow.models import families
from ganflow.params import Params

ROOT = Path(__file__).parents[1]
DEFAULT = params.read_tree(ROOT / "params.yaml")
FAMILIES = "cgan, dcgan, r3gan, stylegan, vae, vanilla, wgan, wgan_gp"
NAN, INF = float("nan"), float("inf")


class Range(NamedTuple):
    """What the documentation says of a number: its limits, and whether they themselves are allowed."""

    kind: type
    low: float
    high: float = INF
    low_open: bool = False
    high_open: bool = False

    def outside(self) -> list[float]:
        if self.kind is int:
            return [n for n in (self.low - 1, self.high + 1, -(10**30)) if not math.isinf(n)]
        beyond = [self.low if self.low_open else self.low - 1e-9, self.high if self.high_open else self.high + 1e-9]
        return [x for x in (*beyond, -1e300) if not math.isinf(x)]

    def limits(self) -> list[float]:
        kept = [(self.low, self.low_open), (self.high, self.high_open)]
        return [self.kind(x) for x, is_open in kept if not is_open and not math.isinf(x)]


NUMBERS = {
    "seed": Range(int, 0, 2**31 - 1),
    "data.resolution": Range(int, 8, 128),
    "data.seed": Range(int, 0, 2**31 - 1),
    "data.validation_fraction": Range(float, 0, 0.5, low_open=True),
    "data.test_fraction": Range(float, 0, 0.5, low_open=True),
    "model.latent_dim": Range(int, 1, 4096),
    "model.discriminator_steps": Range(int, 1, 100),
    "model.width": Range(int, 4, 1024),
    "model.r1": Range(float, 0),
    "model.r2": Range(float, 0),
    "train.images": Range(int, 1),
    "train.batch_size": Range(int, 2, 65536),
    "train.generator_lr": Range(float, 0, 1, low_open=True),
    "train.discriminator_lr": Range(float, 0, 1, low_open=True),
    "train.beta1": Range(float, 0, 1, high_open=True),
    "train.beta2": Range(float, 0, 1, high_open=True),
    "train.ema_half_life": Range(int, 1),
    "train.ema_ramp_up": Range(float, 0, 1, low_open=True),
    "train.translation": Range(int, 0, 64),
    "train.cutout": Range(float, 0, 1, high_open=True),
    "train.tick_every_images": Range(int, 1),
    "train.sample_every_images": Range(int, 1),
    "train.checkpoint_every_images": Range(int, 1),
    "train.fid_every_images": Range(int, 0),
    "evaluate.images": Range(int, 2),
    "evaluate.searched_images": Range(int, 1),
    "evaluate.batch_size": Range(int, 1, 65536),
    "register.max_fid": Range(float, 0, low_open=True),
    "register.min_discriminator_accuracy": Range(float, 0, 1),
    "register.max_discriminator_accuracy": Range(float, 0, 1),
}
CHOICES: dict[str, set[Any]] = {
    "data.source": {"digits", "mnist", "stacked_mnist", "fashion_mnist", "cifar10", "image_folder"},
    "data.channels": {1, 3},
    "model.family": set(FAMILIES.split(", ")),
    "model.loss": {"minimax", "non_saturating", "hinge", "least_squares", "relativistic"},
    "model.noise": {"normal", "uniform"},
    "model.discriminator_norm": {"none", "batch"},
    "train.device": {"auto", "cpu", "cuda", "mps"},
    "train.fid_extractor": {"classifier", "inception"},
    "train.precision": {"auto", "float32", "bf16"},
    "evaluate.checkpoint": {"last", "best"},
    "evaluate.extractor": {"classifier", "inception"},
}
WRONG_TEXTS: dict[str, list[str]] = {
    "data.name": ["Digits", "two words", "-x", "x" * 65, "x\n"],
    "data.root": [""],
    "evaluate.inception_weights": [],
    "tracking.experiment": ["", "x" * 251],
}
SWITCHES = ("model.spectral_norm", "train.flip", "train.color")
SECTIONS = ("data", "model", "train", "evaluate", "register", "tracking")


def as_yaml(tree: Any) -> str:
    """JSON is YAML, but for the numbers that it does not have."""
    text = json.dumps(tree, default=str, ensure_ascii=False)
    return text.replace("-Infinity", "-.inf").replace("Infinity", ".inf").replace("NaN", ".nan")


def with_leaf(where: str, value: Any, tree: dict[str, Any] | None = None) -> dict[str, Any]:
    section, _, leaf = where.rpartition(".")
    top = {section: {leaf: value}} if section else {leaf: value}
    return params.overlay(tree or {"model": {"family": "dcgan"}}, top)


def junk(where: str) -> list[Any]:
    """Values that this leaf cannot have, whatever its bounds."""
    never: list[Any] = [None, [], [1], {}, {"a": 1}, [[{"b": [None]}]], NAN, INF, -INF]
    if where in NUMBERS:
        whole = NUMBERS[where].kind is int
        return [*never, "text", "5", "0.5", True, date(2026, 1, 1), *([1.5, 1.0] if whole else [])]
    if where in CHOICES:
        return [*never, "nonsense", "", 2, 1.5, "DCGAN", " digits"]  # (not true, which Python and pydantic take for 1)
    if where in WRONG_TEXTS:
        return [*never, 5, 1.5, True]
    return [*never, 0, 1, 1.5, "true", "yes"]


def broken_leaves() -> Iterator[tuple[str, Any]]:
    for where in (*NUMBERS, *CHOICES, *WRONG_TEXTS, *SWITCHES):
        for value in [*junk(where), *WRONG_TEXTS.get(where, ())]:
            yield where, value
        for number in NUMBERS[where].outside() if where in NUMBERS else ():
            yield where, NUMBERS[where].kind(number)


def problems(text: str | bytes, folder: Path) -> list[str]:
    """Load a broken params.yaml and give its problems, having checked that the message is fit for a person."""
    path = folder / "params.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError) as caught:
        params.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert not re.search(r"pydantic|Traceback|https?://|Value error|function-|dataclass", message)
    head, *rest = message.removeprefix(f"{path}: ").split("\n  ")
    if not rest:
        assert len(head) > 10
        return [head]
    assert head == f"{len(rest)} to put right:"
    assert all(len(problem.partition(": ")[2]) > 10 for problem in rest), "each says what is wrong"
    return rest


# What the parameters are


def test_defaults_need_the_family_alone() -> None:
    loaded = params.parse({"model": {"family": "vanilla"}})
    assert (loaded.seed, loaded.data.source, loaded.data.resolution, loaded.data.channels) == (0, "digits", 16, 1)
    assert (loaded.model.loss, loaded.model.noise) == ("non_saturating", "normal")  # type: ignore[attr-defined]
    assert (loaded.train.generator_lr, loaded.train.beta1, loaded.train.beta2) == (2e-4, 0.5, 0.999)  # DCGAN's paper
    assert loaded.tracking.experiment == "ganflow"


def test_the_committed_file_holds_every_common_leaf() -> None:
    leaves = {f"{name}.{leaf}" for name, section in DEFAULT.items() if isinstance(section, dict) for leaf in section}
    own = {
        f"model.{name}" for name in ("width", "discriminator_steps", "discriminator_norm", "r1", "r2", "spectral_norm")
    }
    assert (leaves | {"seed"}) - own == {*NUMBERS, *CHOICES, *WRONG_TEXTS, *SWITCHES} - own


def test_the_best_checkpoint_needs_somebody_to_choose_it() -> None:
    tree: dict[str, Any] = {"model": {"family": "vanilla"}, "evaluate": {"checkpoint": "best"}}
    with pytest.raises(UserError, match=r"params: 1 to put right:\n  evaluate\.checkpoint: best is kept only where"):
        params.parse(tree)
    assert params.parse({**tree, "train": {"fid_every_images": 1}}).evaluate.checkpoint == "best"


@pytest.mark.parametrize("family", [vars(family)["family"] for family in families()])
def test_every_section_is_frozen(family: str) -> None:
    loaded = params.parse({"model": {"family": family}})
    for section in (loaded, *(getattr(loaded, name) for name in SECTIONS)):
        for field in dataclasses.fields(section):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(section, field.name, getattr(section, field.name))


@pytest.mark.parametrize("where", NUMBERS)
def test_limits_are_allowed(where: str) -> None:
    band = {"min_discriminator_accuracy": 0.0, "max_discriminator_accuracy": 1.0}
    for limit in NUMBERS[where].limits():
        tree = params.dump(params.parse(with_leaf(where, limit, {"model": {"family": "dcgan"}, "register": band})))
        section, _, leaf = where.rpartition(".")
        assert (tree[section] if section else tree)[leaf] == limit


@pytest.mark.parametrize("where", CHOICES)
def test_choices_are_allowed(where: str) -> None:
    section, _, leaf = where.rpartition(".")
    for choice in CHOICES[where]:
        around = {"model": {"family": "dcgan"}, "train": {"fid_every_images": 1}}
        channels = {"data": {"channels": 3}} if choice == "stacked_mnist" else {}
        tree = with_leaf(where, choice, {**around, **channels})
        assert params.dump(params.parse(tree))[section][leaf] == choice


def test_sides_are_4_to_7_times_a_power_of_two() -> None:
    allowed = {base * 2**n for base in (4, 5, 6, 7) for n in range(1, 6)}
    for side in range(8, 129):
        tree = with_leaf("data.resolution", side)
        if side in allowed:
            assert params.parse(tree).data.resolution == side
        else:
            with pytest.raises(UserError, match=f"data.resolution: a side of {side} pixels is not 4, 5, 6 or 7 times"):
                params.parse(tree)


def test_three_digits_need_three_channels() -> None:
    tree = with_leaf("data.source", "stacked_mnist")
    with pytest.raises(UserError, match=r"data: source stacked_mnist has a digit in each of three .*set channels: 3$"):
        params.parse(tree)
    assert params.parse(with_leaf("data.channels", 3, tree)).data.registered_model == "stacked_mnist-16px"


def test_an_empty_band_of_accuracies() -> None:
    tree = {"model": {"family": "dcgan"}, "register": {"min_discriminator_accuracy": 0.9}}
    params.parse(with_leaf("register.max_discriminator_accuracy", 0.9, tree))
    with pytest.raises(UserError, match=r"register: min_discriminator_accuracy must not exceed"):
        params.parse(with_leaf("register.max_discriminator_accuracy", 0.8, tree))


def test_registered_model_is_named_for_data_and_resolution() -> None:
    loaded = params.parse({"model": {"family": "dcgan"}, "data": {"source": "mnist", "resolution": 28}})
    assert loaded.data.registered_model == "mnist-28px"
    assert dataclasses.replace(loaded.data, name="mine").registered_model == "mine-28px"


# Overrides and overlays


@pytest.mark.parametrize(
    ("text", "where", "value"),
    [
        ("train.images=1000", "train.images", 1000),
        ("train.generator_lr=2e-4", "train.generator_lr", 0.0002),  # YAML 1.1 reads a text here
        ("train.beta1=0", "train.beta1", 0.0),
        ("train.flip=true", "train.flip", True),
        ("data.source=mnist", "data.source", "mnist"),
        ("data.name=", "data.name", ""),
        ("data.name=''", "data.name", ""),
        ('tracking.experiment="5"', "tracking.experiment", "5"),
        ("tracking.experiment=yes", "tracking.experiment", "yes"),
        ("tracking.experiment=a=b", "tracking.experiment", "a=b"),
        ("tracking.experiment='a: b # c'", "tracking.experiment", "a: b # c"),
        ("tracking.experiment=Zürich 數字 🙂", "tracking.experiment", "Zürich 數字 🙂"),
        ("data={source: mnist, resolution: 28}", "data.resolution", 28),
        ("model.width=8", "model.width", 8),
    ],
)
def test_override(text: str, where: str, value: Any) -> None:
    loaded: Any = params.load(ROOT / "params.yaml", [text])
    section, _, leaf = where.partition(".")
    found = getattr(getattr(loaded, section), leaf)
    assert (type(found), found) == (type(value), value)


def test_the_last_override_counts_and_the_tree_stays_as_it_was() -> None:
    tree = {"train": {"images": 1}}
    assert params.override(tree, ["train.images=2", "train.images=3", "seed=4"]) == {"train": {"images": 3}, "seed": 4}
    assert tree == {"train": {"images": 1}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.images", "must read key.path=value"),
        ("=5", "must read key.path=value"),
        ("train..images=5", "must read key.path=value"),
        ("", "must read key.path=value"),
        ("data.name=[", "not valid YAML; quote it"),
        ("data.name=!!bool maybe", "not valid YAML; quote it"),
        ("seed.x=1", "seed is a value, not a section"),
        ("train.imagse=5", "train.imagse: there is no such parameter; did you mean images?"),
        ("train.generator_lr=2e-4x", "train.generator_lr: should be a valid number, not '2e-4x'"),
    ],
)
def test_wrong_override(text: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        params.load(ROOT / "params.yaml", [text])
    assert text.partition("=")[0] in str(caught.value)


def test_overlay_merges_sections_and_replaces_values() -> None:
    base = {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": 3}
    assert params.overlay(base, {"a": {"y": {"w": 4}}, "b": [5], "c": {"d": 6}, "e": 7}) == {
        "a": {"x": 1, "y": {"z": 2, "w": 4}},
        "b": [5],
        "c": {"d": 6},
        "e": 7,
    }
    assert base == {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": 3}


def valid_leaf(where: str) -> st.SearchStrategy[Any]:
    if where in CHOICES:
        return st.sampled_from(sorted(CHOICES[where], key=str))
    number = NUMBERS.get(where)
    if number is None:
        return st.booleans()
    if where == "data.resolution":
        return st.sampled_from([8, 10, 12, 14, 16, 20, 24, 28, 32, 64, 112, 128])
    if number.kind is int:
        return st.integers(int(number.low), int(min(number.high, 2**62)))
    return st.floats(
        number.low,
        min(number.high, 1e300),
        exclude_min=number.low_open,
        exclude_max=number.high_open,
    )


VALID = st.fixed_dictionaries(
    {},
    optional={where: valid_leaf(where) for where in (*NUMBERS, *CHOICES, "train.flip") if where != "model.family"}
    | {
        "data.name": st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True),
        "data.root": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
        "tracking.experiment": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    },
).filter(
    lambda leaves: (
        leaves.get("register.min_discriminator_accuracy", 0.3)
        <= leaves.get("register.max_discriminator_accuracy", 0.98)
    )
)


@settings(max_examples=30, deadline=None)
@given(VALID)
def test_dump_and_parse_round_trip(leaves: dict[str, Any]) -> None:
    tree: dict[str, Any] = {"model": {"family": "dcgan"}}
    for where, value in leaves.items():
        tree = with_leaf(where, value, tree)
    assume(not (leaves.get("evaluate.checkpoint") == "best" and not leaves.get("train.fid_every_images")))
    assume(not (leaves.get("data.source") == "stacked_mnist" and leaves.get("data.channels") != 3))
    assume(leaves.get("model.discriminator_norm") != "batch" or not (leaves.get("model.r1") or leaves.get("model.r2")))
    parsed = params.parse(tree)
    dumped = params.dump(parsed)
    for where, value in leaves.items():
        section, _, leaf = where.rpartition(".")
        assert (dumped[section] if section else dumped)[leaf] == value
    assert params.parse(json.loads(json.dumps(dumped))) == parsed
    VALIDATOR.validate(dumped)


# The schema for editors

SCHEMA = params.json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_committed_schema_is_current() -> None:
    committed = (ROOT / "params.schema.json").read_text(encoding="utf-8")
    assert committed == json.dumps(SCHEMA, indent=2) + "\n", "run `make schema`"


def test_the_schema_accepts_what_is_committed() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(DEFAULT)
    for path in (ROOT / "experiments").glob("*.yaml"):
        VALIDATOR.validate(params.read_tree(path))


@pytest.mark.parametrize(
    ("where", "value"),
    [(where, limits.outside()[0]) for where, limits in NUMBERS.items()]
    + [(where, "nonsense") for where in CHOICES]
    + [("train.imagse", 5), ("dat", {}), ("model.hidden_units", 8), ("train.flip", "yes"), ("data.name", "Upper")],
)
def test_the_schema_refuses_what_is_broken(where: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(with_leaf(where, value, DEFAULT))


@pytest.mark.parametrize("family", [vars(family)["family"] for family in families()])
def test_every_leaf_is_described(family: str) -> None:
    loaded = params.parse({"model": {"family": family}})
    tree = params.dump(loaded)
    leaves = {
        f"{name}.{leaf}" if leaf else name
        for name, section in tree.items()
        for leaf in (section if isinstance(section, dict) else [""])
    }
    notes = params.descriptions(loaded)
    assert set(notes) == leaves
    assert all(note.endswith(".") and 10 < len(note) <= 120 and "\n" not in note for note in notes.values()), notes


def test_the_schema_describes_every_leaf() -> None:
    for definition in SCHEMA["$defs"].values():
        for name, leaf in definition["properties"].items():
            assert leaf.get("description") or leaf.get("const"), name


# What is wrong with a broken file

BROKEN_LEAVES = list(broken_leaves())


def test_there_are_more_than_200_kinds() -> None:
    assert len({(where, repr(value)) for where, value in BROKEN_LEAVES}) > 400


@pytest.mark.parametrize("where", dict.fromkeys(where for where, _ in BROKEN_LEAVES))
def test_a_wrong_value_is_named(where: str, tmp_path: Path) -> None:
    for value in (value for broken, value in BROKEN_LEAVES if broken == where):
        found = problems(as_yaml(with_leaf(where, value)), tmp_path)
        assert [problem.partition(": ")[0] for problem in found] == [where], value
        if where in CHOICES:
            assert all(str(choice) in found[0] for choice in CHOICES[where])
        if isinstance(value, int | float) and not isinstance(value, bool) and where != "model.family":
            assert repr(value) in found[0]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_is_none(section: str, tmp_path: Path) -> None:
    for value in (None, 5, "text", [], [{}], True, NAN):
        (found,) = problems(as_yaml({**DEFAULT, section: value}), tmp_path)
        assert found.startswith(f"{section}: should be a section")


def test_missing_family(tmp_path: Path) -> None:
    assert problems(as_yaml({"seed": 1}), tmp_path)[0].startswith("model: ")
    for model in ({}, {"width": 8}, {"latent_dim": 8}):
        assert problems(as_yaml({"model": model}), tmp_path) == [f"model.family: must be one of {FAMILIES}"]


@pytest.mark.parametrize(
    ("family", "knob", "value"), [("dcgan", "hidden_units", 64), ("dcgan", "dropout", 0.1), ("vanilla", "width", 64)]
)
def test_the_knob_of_another_family(family: str, knob: str, value: Any, tmp_path: Path) -> None:
    (found,) = problems(as_yaml({"model": {"family": family, knob: value}}), tmp_path)
    assert found.startswith(f"model.{knob}: there is no such parameter for the family {family}; ")


@pytest.mark.parametrize("section", ["", *SECTIONS])
def test_misspelt_keys_find_their_neighbour(section: str, tmp_path: Path) -> None:
    tree = params.dump(params.parse(DEFAULT))
    leaves = tree[section] if section else tree
    for key in leaves:
        wrong = f"{key[1]}{key[0]}{key[2:]}"  # the first two letters swapped
        kept = {name: value for name, value in leaves.items() if name != key}
        kept[wrong] = leaves[key]
        found = problems(as_yaml({**tree, section: kept} if section else kept), tmp_path)
        where = f"{section}.{wrong}" if section else wrong
        if key in {"family", "model"}:
            assert any("model" in problem for problem in found)
        elif len(key) == 2:  # the whole of it is wrong
            assert f"{where}: there is no such parameter" in found[0]
        else:
            assert f"{where}: there is no such parameter" in found[0]
            assert "did you mean" in found[0]
            assert found[0].endswith(f"{key}?")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "null",
        "5",
        "text",
        "[]",
        "- seed: 1",
        "{1: 2}",
        "? [a, b]\n: 1",
        "seed: 1\nseed: 2",
        "data: {name: a, name: b}",
        "\tseed: 1",
        "seed: 1\n data: 2",
        "seed: [1",
        "seed: {1",
        'data: {root: "open}',
        "a: b: c",
        "seed: *nobody",
        "seed: !mine 5",
        "seed: !!python/object/apply:os.getcwd []",
        "seed: !!bool maybe",
        "seed: !!int many",
        "seed: !!timestamp soon",
        "seed: ._",
        "seed: 2001-13-45",
        "seed: 1\n---\nseed: 2",
        "%YAML 3.0\n---\nseed: 1",
        "seed: \x01",
        "seed: " + "9" * 5000,
        "model: {<<: 3}",
        "seed: " + "[" * 600 + "]" * 600,
        b"seed: \xff\xfe",
        "seed: 1".encode("utf-16"),
        b"data: {root: caf\xe9}",
        bytes(range(256)),
    ],
)
def test_what_is_not_yaml(text: str | bytes, tmp_path: Path) -> None:
    (found,) = problems(text, tmp_path)
    assert re.match("is not valid YAML: |must hold entries by name|cannot be read: ", found)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("seed: &a [*a]", "seed"),
        ("model: &a {family: dcgan, width: *a}", "model.width"),
        ("seed: 0x" + "f" * 5000, "seed"),
        ("seed: " + "[" * 230 + "]" * 230, "seed"),
        ('data: {root: "\\ud800"}', "data.root"),
        ("data: {[a, b]: 1}", "data.('a', 'b')"),
        ("data: {2026-01-01: 1}", "data.2026-01-01"),
        ("data: {root: {[a, b]: 1}}", "data.root"),
        ("data: {1: 1}", "data.1"),
        ("data: {null: 1}", "data.null"),
        ("data: {'': 1}", "data."),
        ("'': 1", ""),
        ('"\\ud800": 1', "\\ud800"),
        ('"\\ud800": {}', "\\ud800"),
    ],
)
def test_what_yaml_can_say_and_parameters_cannot(text: str, where: str, tmp_path: Path) -> None:
    family = "" if text.startswith("model") else "\nmodel: {family: dcgan}"
    (found,) = problems(text + family, tmp_path)
    assert found.startswith(f"{where}: ")


def test_a_folder_and_nothing_in_the_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        params.load(tmp_path)
    with pytest.raises(UserError, match=r"there is no such file; .* give --params"):
        params.load(tmp_path / "params.yaml")


JUNK = st.recursive(
    st.sampled_from([None, True, 0, -1, 10**30, 0.5, NAN, -INF, "", "text", "é 🙂", "a: b", "5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["family", "x", "y"]), inner),
    max_leaves=4,
)


@st.composite
def out_of_range(draw: st.DrawFn, where: str) -> float:
    number = NUMBERS[where]
    if number.kind is int:
        above = st.integers(int(number.high) + 1) if not math.isinf(number.high) else st.nothing()
        return draw(st.integers(max_value=int(number.low) - 1) | above)
    finite = {"allow_nan": False, "allow_infinity": False}
    below = st.floats(max_value=number.low, exclude_max=not number.low_open, **finite)
    if math.isinf(number.high):
        return draw(below)
    return draw(below | st.floats(min_value=number.high, exclude_min=not number.high_open, **finite))


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, Any]:
    """One thing that is wrong: the dotted key that must be named, and the value that it gets."""
    kind: Callable[[], tuple[str, Any]] = draw(
        st.sampled_from(
            [
                lambda: (where := draw(st.sampled_from(list(NUMBERS))), draw(out_of_range(where))),
                lambda: draw(st.sampled_from(BROKEN_LEAVES)),
                lambda: (f"{draw(st.sampled_from(SECTIONS))}.{draw(st.from_regex('[a-z]{1,3}9', fullmatch=True))}", 1),
                lambda: (draw(st.from_regex("[A-Za-z_]{1,9}9", fullmatch=True)), draw(JUNK)),
                lambda: (draw(st.sampled_from([*NUMBERS])), [draw(JUNK)]),
                lambda: (draw(st.sampled_from([*CHOICES])), draw(st.text("az :#'-", max_size=5))),
            ]
        )
    )
    return kind()


@settings(max_examples=120, deadline=None)
@given(wrong=st.lists(mutations(), min_size=1, max_size=3, unique_by=lambda mutation: mutation[0]))
def test_all_that_is_wrong_is_named_at_once(
    wrong: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    wrong = [(where, value) for where, value in wrong if where != "model.family" or len(wrong) == 1]
    tree: dict[str, Any] = {"model": {"family": "dcgan"}}
    for where, value in wrong:
        tree = with_leaf(where, value, tree)
    found = problems(as_yaml(tree), tmp_path_factory.getbasetemp())
    assert sorted(problem.partition(": ")[0] for problem in found) == sorted(where for where, _ in wrong)


TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def sound_or_told(content: bytes, folder: Path) -> None:
    path = folder / "params.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(params.load(path), Params)
    except UserError:
        problems(content, folder)


@settings(max_examples=60, deadline=None)
@given(
    line=st.integers(0, TEXT.count("\n")), column=st.integers(0, 20), cut=st.integers(0, 9), more=st.text(max_size=4)
)
def test_a_slip_of_the_keyboard(
    line: int, column: int, cut: int, more: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = TEXT.split("\n")
    lines[line] = lines[line][:column] + more + lines[line][column + cut :]
    sound_or_told("\n".join(lines).encode("utf-8", "surrogatepass"), tmp_path_factory.getbasetemp())


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60) | st.text(st.sampled_from(list(":-{}[]&*!|>%@`'\"#, \nab?<=~.0")), max_size=30))
def test_anything_at_all(content: bytes | str, tmp_path_factory: pytest.TempPathFactory) -> None:
    problems(content, tmp_path_factory.getbasetemp())


# On the command line


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("prepare", "model: {family: gan}", f"model.family: must be one of {FAMILIES}"),
        ("train", "model: {family: dcgan}\ntrain: {imagse: 5}", "train.imagse: there is no such parameter"),
        ("train", "model: {family: dcgan}\ntrain: {beta1: .nan}", "train.beta1: should be a finite number, not nan"),
        ("evaluate", "model: {family: dcgan\n", "is not valid YAML"),
        ("register", b"\xff\xfe", "cannot be read"),
        ("train", 'model: {family: dcgan}\n"\\ud800": 1', "ud800: is not a value"),
    ],
)
def test_the_command_line_tells_it_once(
    command: str,
    text: str | bytes,
    said: str,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    assert cli.main([command]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ganflow: params.yaml: ")
    assert err.count("params.yaml") == 1
    assert said in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
