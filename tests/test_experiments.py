import dataclasses
import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganflow import cli, experiments, params
from ganflow.errors import UserError
from ganflow.params import Params

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two experiments, as the working directory."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "small.yaml").write_text("model: {family: dcgan, width: 8}\n")
    (tmp_path / "experiments" / "other.yaml").write_text("model: {family: vanilla}\nseed: 5\n")
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def loaded(text: str, tmp_path: Path) -> Params:
    path = tmp_path / "loaded.yaml"
    path.write_text(text, encoding="utf-8")
    return params.load(path)


def with_texts(root: str, experiment: str) -> Params:
    base = experiments.resolve("digits-dcgan", folder=FOLDER)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, root=root),
        tracking=dataclasses.replace(base.tracking, experiment=experiment),
    )


@pytest.mark.parametrize(
    ("name", "family", "source", "resolution"),
    [
        ("digits-dcgan", "dcgan", "digits", 16),
        ("mnist-mlp", "vanilla", "mnist", 28),
        ("stacked_mnist-dcgan", "dcgan", "stacked_mnist", 28),
    ],
)
def test_the_experiments_resolve(name: str, family: str, source: str, resolution: int, tmp_path: Path) -> None:
    resolved = experiments.resolve(name, folder=FOLDER)
    assert (resolved.model.family, resolved.data.source, resolved.data.resolution) == (family, source, resolution)
    assert loaded(experiments.render(resolved), tmp_path) == resolved


def test_params_yaml_is_the_experiment_digits_dcgan() -> None:
    rendered = experiments.render(experiments.resolve("digits-dcgan", folder=FOLDER))
    assert (ROOT / "params.yaml").read_text(encoding="utf-8") == rendered, "run `ganflow experiment digits-dcgan`"


def test_an_overlay_lies_over_the_defaults_and_overrides_lie_over_it(folder: Path) -> None:
    plain = params.parse({"model": {"family": "dcgan"}})
    small = experiments.resolve("small")
    assert small == dataclasses.replace(plain, model=dataclasses.replace(plain.model, width=8))  # type: ignore[call-arg]
    assert experiments.resolve("small", ["model.width=16", "seed=3"]) == dataclasses.replace(
        plain,
        seed=3,
        model=dataclasses.replace(plain.model, width=16),  # type: ignore[call-arg]
    )


def test_render_lists_every_common_leaf_and_what_a_family_changes() -> None:
    lines = experiments.render(params.parse({"model": {"family": "dcgan", "width": 8}})).splitlines()
    assert lines[0] == "# yaml-language-server: $schema=params.schema.json"
    assert any(line.startswith("seed: 0  # Seed of ") for line in lines)
    assert "  noise: normal  # Distribution of the latents: standard normal, or uniform on [-1, 1]." in lines
    assert any(line.startswith("  width: 8  # Channels") for line in lines)
    assert not any("discriminator_norm" in line for line in lines)
    assert all("  # " in line for line in lines if line and not line.startswith("#") and not line.endswith(":"))


SPECIAL = [
    *("true", "null", "~", "5", "1e5", ".5", ".inf", "-.nan", "0x1f", "2026-01-01", "12:30", "no", "<<", "._", "="),
    *(" a ", "a: b", "a # b", "'", '"', "\\", "C:\\data", "\n", "\t", "a\tb", "[a]", "{a}", "&a", "*a", "!a", "|", ">"),
    *(
        "%",
        "@",
        "`",
        "- a",
        "...",
        "---",
        "Zürich 數字 🙂",
        "\x7f",
        "\x85",
        "\x01",
        "\u2028",
        "\u2029",
        "\ufeff",
        "\ufffe",
    ),
]


@pytest.mark.parametrize("text", SPECIAL)
def test_special_texts_come_back(text: str, tmp_path: Path) -> None:
    odd = with_texts(text, text)
    assert loaded(experiments.render(odd), tmp_path) == odd


@settings(max_examples=100, deadline=None)
@given(root=st.text(min_size=1, max_size=8), experiment=st.from_regex(r"[\w./:-]{1,8}", fullmatch=True))
def test_any_text_comes_back(root: str, experiment: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    odd = with_texts(root, experiment)
    text = "\n".join(
        line for line in experiments.render(odd).splitlines() if line[2:6] in {"root", "expe"} or line[-1:] == ":"
    )
    tree = params.read_tree(_write(tmp_path_factory.getbasetemp() / "text.yaml", text))
    assert (tree["data"]["root"], tree["tracking"]["experiment"]) == (root, experiment)


@settings(max_examples=50, deadline=None)
@given(rate=st.floats(0, 1, exclude_min=True), fid=st.floats(0, exclude_min=True, allow_infinity=False))
def test_numbers_come_back_exactly(rate: float, fid: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = params.parse({"model": {"family": "dcgan"}, "train": {"beta2": 0.5}})
    odd = dataclasses.replace(
        base,
        train=dataclasses.replace(base.train, generator_lr=rate),
        register=dataclasses.replace(base.register, max_fid=fid),
    )
    assert loaded(experiments.render(odd), tmp_path_factory.getbasetemp()) == odd


def test_an_unknown_experiment_names_those_there_are(folder: Path) -> None:
    with pytest.raises(UserError, match=r"experiment dcgan: there is no .*; there are other, small$"):
        experiments.resolve("dcgan")
    with pytest.raises(UserError, match=r"there are none$"):
        experiments.resolve("small", folder=folder / "nowhere")


def test_a_broken_overlay_is_named(folder: Path) -> None:
    (folder / "experiments" / "small.yaml").write_text("model: {family: dcgan}\ntrain: {imagse: 5}\n")
    with pytest.raises(UserError, match=r"^experiments/small.yaml: 1 to put right:\n  train.imagse: "):
        experiments.resolve("small")


def test_switching_from_one_experiment_to_another_keeps_no_copy(folder: Path) -> None:
    target, kept = folder / "params.yaml", folder / "kept"
    target.unlink()
    assert experiments.switch("small", [], target, kept) is None
    assert params.load(target) == experiments.resolve("small")
    assert experiments.switch("other", [], target, kept) is None
    assert experiments.switch("other", [], target, kept) is None
    assert params.load(target).seed == 5
    assert not kept.exists()


@pytest.mark.parametrize("mine", [b"seed: 7  # mine\n", b"", "Zürich".encode("latin-1"), "seed: 1".encode("utf-16")])
def test_switching_keeps_what_was_written_by_hand(mine: bytes, folder: Path) -> None:
    target, kept = folder / "params.yaml", folder / "kept"
    target.write_bytes(mine)
    copy = experiments.switch("small", [], target, kept)
    assert copy == kept / f"{hashlib.sha256(mine).hexdigest()[:12]}.yaml"
    assert copy.read_bytes() == mine
    assert params.load(target) == experiments.resolve("small")


def test_a_mistake_leaves_params_yaml_alone(folder: Path) -> None:
    (folder / "params.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"model\.width"):
        experiments.switch("small", ["model.width=0"], folder / "params.yaml", folder / "kept")
    assert (folder / "params.yaml").read_text() == "mine"
    assert not (folder / "kept").exists()


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "params.yaml").write_text("seed: 7\n")
    assert cli.main(["experiment", "other", "-S", "seed=9"]) == 0
    (copy,) = (folder / ".ganflow" / "params").iterdir()
    assert copy.read_text() == "seed: 7\n"
    assert capsys.readouterr().out == f"ganflow: params.yaml is now the experiment other; yours is kept as {copy}\n"
    assert params.load(folder / "params.yaml").seed == 9
    assert cli.main(["experiment", "mine"]) == 2
    assert capsys.readouterr().err == (
        "ganflow: experiment mine: there is no experiments/mine.yaml; there are other, small\n"
    )


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
