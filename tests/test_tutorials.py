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
ADDRESS = "https://github.com/someone/lens_slt"
BADGE = "https://colab.research.google.com/github/someone/lens_slt/blob/main/tutorials/{}.ipynb"
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


def test_there_are_eleven_each_with_its_notebook() -> None:
    assert sorted(NUMBERED) == list(range(1, 12))
    notebooks = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert notebooks == {path.stem for path in SOURCES}


@each
def test_the_notebook_is_what_the_text_makes(source: Path, runner: ModuleType) -> None:
    nbformat = pytest.importorskip("nbformat")
    made = runner.made(source)
    assert made == runner.made(source)
    written = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert runner.show_as(made, written), "run python tutorials/execute.py --keep"
    assert written.cells == made.cells, "run python tutorials/execute.py --make"


@each
def test_a_reader_sees_what_it_shows(source: Path) -> None:
    """All cells have run, in order, or none; figures are pictures; nothing tells of who ran it."""
    cells = cells_of(source, "code")
    outputs = [one for cell in cells for one in cell.outputs]
    ran = [cell.execution_count for cell in cells]
    assert ran == list(range(1, len(cells) + 1)) or (set(ran) == {None} and not outputs)
    assert not any(one.output_type == "error" or one.get("name") == "stderr" for one in outputs)
    kinds = {kind for one in outputs for kind in one.get("data", {})}
    assert kinds <= {"image/png", "text/html", "text/plain"}
    size = source.with_suffix(".ipynb").stat().st_size
    assert size < 1.5e6
    assert not re.search(r"/(home|root|work|opt|Users)/", str(outputs))


def test_outputs_go_where_the_code_changed(runner: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("ipykernel")
    pytest.importorskip("nbclient")
    path = tmp_path / "1_few.py"
    path.write_text("# %% [markdown]\n# Text.\n\n# %%\nprint(1 + 1)\n")
    assert runner.execute(_made(runner, path), None, keep=True)[2] == ""
    assert _said(path) == ["2\n"]
    path.write_text("# %% [markdown]\n# Other text.\n\n# %%\nprint(1 + 1)\n")
    runner.make([path])
    assert _said(path) == ["2\n"]
    path.write_text("# %%\nprint(1 + 2)\n")
    runner.make([path])
    assert _said(path) == []


def _made(runner: ModuleType, path: Path) -> Path:
    runner.make([path])
    return path.with_suffix(".ipynb")


def _said(path: Path) -> list[str]:
    return [one.text for cell in cells_of(path, "code") for one in cell.outputs]


@each
def test_the_first_code_cell_installs_only_when_needed_and_asks_from_where(
    source: Path, runner: ModuleType
) -> None:
    first = cells_of(source, "code")[0].source.splitlines()
    assert first[:3] == ["try:", "    import lens_slt as ls", "except ImportError:"]
    assert first[3:5] == [f"    source = {runner.ASKS}", '    %pip install -q "{source}"']
    assert cells_of(source, "markdown")[0].source.startswith(f"# {source.stem.split('_')[0]}. ")


@each
def test_links_lead_to_files(source: Path, runner: ModuleType) -> None:
    text = "".join(cell.source for cell in cells_of(source, "markdown"))
    for up, target in runner.LINK.findall(text):
        assert (FOLDER / f"{up}{target}").exists(), target


@each
def test_a_published_notebook_opens_in_colab_and_installs_from_where_it_is(
    source: Path, runner: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "address", lambda: ADDRESS)
    notebook = runner.made(source)
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert BADGE.format(source.stem) in text[0]
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert f'    source = "lens-slt @ git+{ADDRESS}"' in code[0].splitlines()
    targets = re.findall(r"\]\(([^)\s]+)\)", "".join(text))
    assert all(target.startswith("https://") for target in targets)
    for target in targets:
        _, inside, place = target.partition(f"{ADDRESS}/blob/main/")
        assert not inside or (FOLDER.parent / place).exists(), target


@each
def test_the_text_is_python(source: Path) -> None:
    compile(source.read_text(encoding="utf-8"), source.name, "exec")


def test_the_readme_links_all() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\d+_\w+)\.ipynb\)", text) == [path.stem for path in SOURCES]


def test_an_unknown_name_is_refused(runner: ModuleType) -> None:
    with pytest.raises(SystemExit, match=f"no tutorial 9_none; there are {SOURCES[0].stem}"):
        runner.main(["9_none"])
