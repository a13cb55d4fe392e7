"""Tutorials: text and notebook agree, and open in Colab. What they do is run by execute.py."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
NUMBERED = {int(path.stem.split("_")[0]): path for path in FOLDER.glob("[0-9]*_*.py")}
SOURCES = [NUMBERED[number] for number in sorted(NUMBERED)]
REPOSITORY = "lens-slt/lens_slt"
BADGE = re.compile(
    r"https://colab\.research\.google\.com/github/(\S+?)/blob/main/tutorials/(\S+?)\)"
)
each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def cells_of(source: Path, kind: str) -> list[Any]:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    pytest.importorskip("jupytext")
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_ten_each_with_its_notebook() -> None:
    assert sorted(NUMBERED) == list(range(1, 11))
    notebooks = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert notebooks == {path.stem for path in SOURCES}


@each
def test_the_notebook_is_what_the_text_makes(source: Path, runner: ModuleType) -> None:
    made = runner.notebook_text(source)
    assert made == runner.notebook_text(source)
    written = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert written == made, "run python tutorials/execute.py --make"


@each
def test_the_notebook_has_no_outputs(source: Path) -> None:
    for cell in cells_of(source, "code"):
        assert cell.outputs == []
        assert cell.execution_count is None


@each
def test_the_first_cell_opens_this_notebook(source: Path) -> None:
    first = cells_of(source, "markdown")[0].source
    assert first.startswith(f"# {source.stem.split('_')[0]}. ")
    assert BADGE.findall(first) == [(REPOSITORY, f"{source.stem}.ipynb")]


@each
def test_the_first_code_cell_installs_only_when_needed(source: Path) -> None:
    first = cells_of(source, "code")[0].source.splitlines()
    assert first[:3] == ["try:", "    import lens_slt as ls", "except ImportError:"]
    assert first[3].startswith(
        f'    %pip install -q "lens-slt @ git+https://github.com/{REPOSITORY}'
    )


@each
def test_the_text_is_python(source: Path) -> None:
    compile(source.read_text(encoding="utf-8"), source.name, "exec")


def test_the_readme_links_all() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for _, name in BADGE.findall(text)] == [f"{path.stem}.ipynb" for path in SOURCES]
    for path in SOURCES:
        assert f"]({path.stem}.ipynb)" in text


def test_an_unknown_name_is_refused(runner: ModuleType) -> None:
    with pytest.raises(SystemExit, match=f"no tutorial 9_none; there are {SOURCES[0].stem}"):
        runner.main(["9_none"])
