"""Which edits change the version of a stage's code: those after which DVC would run the stage again."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import get_args

import pytest
from ruamel.yaml import YAML

import ganflow
from ganflow.code import DEPENDENCIES, Stage, code_version

ROOT = Path(__file__).parents[1]
PACKAGE = Path(ganflow.__file__).parent
STAGES: tuple[Stage, ...] = get_args(Stage)


def named_in_dvc_yaml(stage: Stage) -> set[PurePosixPath]:
    """Files and folders of the package that dvc.yaml names as a stage's dependencies."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    sources = [PurePosixPath(path) for path in stages[stage]["deps"] if path.startswith("src/")]
    return {path.relative_to("src/ganflow") for path in sources}


def versions() -> dict[Stage, str]:
    return {stage: code_version(stage) for stage in STAGES}


def changed(before: dict[Stage, str]) -> set[Stage]:
    return {stage for stage, version in versions().items() if version != before[stage]}


def concerned(file: PurePosixPath) -> set[Stage]:
    """Stages that DVC runs again after an edit of this file."""
    return {stage for stage in STAGES if named_in_dvc_yaml(stage) & {file, *file.parents}}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, to be edited."""
    copy = tmp_path / "ganflow"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(ganflow, "__file__", str(copy / "__init__.py"))
    return copy


@pytest.mark.parametrize("stage", STAGES)
def test_the_dependencies_are_those_of_dvc_yaml(stage: Stage) -> None:
    assert {PurePosixPath(path) for path in DEPENDENCIES[stage]} == named_in_dvc_yaml(stage)
    assert len(DEPENDENCIES[stage]) == len(named_in_dvc_yaml(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_sees_nothing_there_but_python_files(stage: Stage) -> None:
    for path in named_in_dvc_yaml(stage):
        files = [file for file in (PACKAGE / path).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        assert {file.suffix for file in files} <= {".py"}


def test_an_edit_changes_the_stages_that_depend_on_the_file_and_no_other(package: Path) -> None:
    before = versions()
    seen: set[Stage] = set()
    for file in sorted(package.rglob("*.py")):
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        expected = concerned(PurePosixPath(file.relative_to(package).as_posix()))
        assert changed(before) == expected, file
        file.write_bytes(content)
        seen |= expected
    assert seen == set(STAGES)
    assert versions() == before


def test_a_file_added_renamed_or_deleted_is_an_edit(package: Path) -> None:
    before = versions()
    new = package / "models" / "fresh.py"
    new.touch()
    added = versions()
    assert changed(before) == {"train"}
    new.rename(package / "models" / "other.py")
    assert changed(before) == {"train"}
    assert changed(added) == {"train"}
    (package / "models" / "other.py").unlink()
    assert changed(before) == set()


def test_neither_the_place_nor_compiled_files_nor_their_order_matter(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = versions()
    with monkeypatch.context() as original:
        original.setattr(ganflow, "__file__", str(PACKAGE / "__init__.py"))
        assert versions() == before
    for folder in ("data", "models", "stages"):
        (package / folder / "__pycache__").mkdir()
        (package / folder / "__pycache__" / "left.cpython-311.pyc").write_bytes(b"compiled")
    found = Path.rglob

    def backwards(path: Path, pattern: str) -> Iterable[Path]:
        return sorted(found(path, pattern), reverse=True)

    monkeypatch.setattr(Path, "rglob", backwards)
    assert versions() == before


def test_the_version_is_that_of_ganflow_and_twelve_digits() -> None:
    for version in versions().values():
        assert re.fullmatch(re.escape(ganflow.__version__) + r"\+[0-9a-f]{12}", version)
    assert len(set(versions().values())) == len(STAGES)
