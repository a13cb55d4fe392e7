"""Run-time checks of the shapes in signatures, switched on for the tests by ``conftest.py``.

jaxtyping's own import hook wraps every function, and a wrapped call costs more than most of them
do. Only those whose signature names a shape are wrapped here.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType
from typing import Any

from beartype import beartype
from jaxtyping import jaxtyped

_SHAPED = re.compile(r"\b(Float|Int|Integer|Bool|Num|Real|Complex|Shaped|UInt)\d*\[")
_KNOWN: dict[CodeType, bool] = {}  # inner functions are made anew at every call of the outer one


def check_shapes(one: Any) -> Any:
    """Check calls of a function, or makings of a dataclass, whose signature names shapes.

    Others stay as they are, also because many tests pass a wrong type on purpose, to read the
    package's own message about it.
    """
    if isinstance(one, type):
        shaped = is_dataclass(one) and _names_shapes(one.__init__)
    else:
        if one.__code__ not in _KNOWN:
            _KNOWN[one.__code__] = _names_shapes(one)
        shaped = _KNOWN[one.__code__]
    return jaxtyped(one, typechecker=_check) if shaped else one


def _check(part: Callable[..., Any]) -> Callable[..., Any]:
    """jaxtyping has arguments and results checked apart, each by a function of its own."""
    return beartype(part) if _names_shapes(part) else part


def _names_shapes(function: Callable[..., Any]) -> bool:
    for annotation in function.__annotations__.values():
        found = annotation
        if isinstance(annotation, str):
            try:
                found = eval(annotation, function.__globals__)
            except Exception:  # a name for type checkers only: jaxtyping does not check it either
                continue
        if _SHAPED.search(str(found)):
            return True
    return False


class _Marker(ast.NodeTransformer):
    """Puts ``check_shapes`` next to functions, and before what makes a class a dataclass."""

    name = "_check_shapes"

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.generic_visit(node)
        start = 0  # behind the docstring and what must come first
        for i, one in enumerate(node.body):
            if isinstance(one, ast.Expr) or getattr(one, "module", "") == "__future__":
                start = i + 1
            else:
                break
        line = f"from {__name__} import check_shapes as {self.name}"
        node.body[start:start] = ast.parse(line).body
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.decorator_list.append(self._decorator(node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, self._decorator(node))
        return node

    def _decorator(self, node: ast.FunctionDef | ast.ClassDef) -> ast.expr:
        return ast.copy_location(ast.Name(self.name, ast.Load()), node)


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """The marked module; bytecode on the disk is that of the plain one."""
        path = self.get_filename(fullname)
        tree = _Marker().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.split(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def check_shapes_of(package: str) -> None:
    """Check the shapes in a package's signatures; call it before the package is imported."""
    sys.meta_path.insert(0, _Finder(package))
