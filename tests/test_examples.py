"""Every public name has an example in its docstring, and every example runs and says the truth."""

from __future__ import annotations

import ast
import doctest
import inspect
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import lens_slt as ls

PACKAGE = Path(ls.__file__).resolve().parent
CONSTANTS = {"PRESETS"}  # values have no docstring
PROMPT = ">>> "


def examples() -> Iterator[doctest.DocTest]:
    """Every docstring of the package that holds an example; nothing is imported for it."""
    parser = doctest.DocTestParser()
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if PROMPT in text:
                    name = module if isinstance(node, ast.Module) else f"{module}.{node.name}"
                    line = node.body[0].lineno - 1
                    yield parser.get_doctest(text, {}, name, str(path), line)


EXAMPLES = list(examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=[one.name for one in EXAMPLES])
def test_an_example_runs(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = io.StringIO()
    found = doctest.DocTestRunner(verbose=False).run(example, out=said.write, clear_globs=False)
    assert found.attempted and not found.failed, said.getvalue()


@pytest.mark.parametrize("name", [name for name in ls.__all__ if name not in CONSTANTS])
def test_every_public_name_has_an_example(name: str) -> None:
    found = getattr(ls, name)
    code = "\n".join(
        one.source for one in doctest.DocTestParser().get_examples(inspect.getdoc(found) or "")
    )
    assert code, f"ls.{name} has no example: write one under 'Example:' in its docstring"
    if inspect.isfunction(found):
        assert f"ls.{name}(" in code, f"the example of ls.{name} does not call it"
