"""Text that every Python installation carries: standard-library source and its documentation."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lens_slt.arguments import choice

CORPORA = ("code", "prose")
SOURCES = (*CORPORA, "mix")
_LEFT_OUT = {  # tests, generated tables and bundled packages: not the code people write
    "test", "tests", "idlelib", "lib2to3", "encodings", "site-packages", "dist-packages",
    "pydoc_data", "turtledemo", "ensurepip", "__pycache__", "msilib", "_pyrepl",
}  # fmt: skip
_SHORTEST_DOCSTRING = 240  # characters; shorter ones are labels rather than prose


@cache
def corpus(name: str) -> tuple[str, ...]:
    """Documents of a built-in corpus in a fixed order that mixes the modules.

    ``code``: every module of the standard library. ``prose``: the language reference that
    ``help()`` shows, and the long docstrings of the same modules.
    """
    choice("corpus", name, CORPORA)
    documents = list(_modules()) if name == "code" else [*_topics(), *_docstrings()]
    return tuple(sorted(documents, key=lambda text: hashlib.sha1(text.encode()).digest()))


def _modules() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _LEFT_OUT.intersection(parts) or path.name.startswith("_sysconfigdata"):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        if len(text) > _SHORTEST_DOCSTRING:
            yield text


def _topics() -> Iterator[str]:
    # Some distributions leave pydoc_data out; the docstrings alone are enough then.
    if importlib.util.find_spec("pydoc_data") is None:
        return
    from pydoc_data.topics import topics

    yield from topics.values()


def _docstrings() -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for text in _modules():
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        for node in _statements(tree):
            if isinstance(node, kinds):
                docstring = ast.get_docstring(node)
                if docstring and len(docstring) > _SHORTEST_DOCSTRING:
                    yield docstring


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """A tree without its expressions, which hold no docstring and are most of it."""
    yield tree
    for blocks in ("body", "handlers", "orelse", "finalbody", "cases"):
        for node in getattr(tree, blocks, ()):
            yield from _statements(node)
