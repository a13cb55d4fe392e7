"""Each package imports only packages below it, also inside functions and for type checkers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lens_slt"
ORDER = (  # from low to high
    "arguments", "arrays", "statistics", "torch_state", "schemas", "schema", "text", "json_files",
    "progress", "versions", "data", "models", "sampling", "observables", "structure", "circuits",
    "training", "development", "phases", "calibration_refusals", "calibration", "report", "demo",
    "cli_exit", "cli_options", "cli_commands", "cli_output", "cli_support", "cli_text",
    "cli_runs", "cli_calibrate", "cli_cross_check", "cli_demo", "cli_develop", "cli_match",
    "cli_models", "cli_pattern", "cli_phases",
    "cli_report", "cli_rllc", "cli_spectrum", "cli_susceptibility", "cli", "__main__", "__init__",
)  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))
DOTTED = re.compile(r"lens_slt(\.\w+)+")  # as importlib takes it


def imported(code: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every module, or name in one, that code of a package imports."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join([*above, node.module or ""]) if node.level else str(node.module)
            yield from ((node.lineno, f"{start.strip('.')}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and DOTTED.fullmatch(str(node.value)):
            yield node.lineno, str(node.value)


def layer(name: str) -> str | None:
    """The part of lens_slt that a full name lies in; None for other packages."""
    first, *rest = name.split(".")
    if first != "lens_slt":
        return None
    return rest[0] if rest and rest[0] in ORDER else "__init__"


def upward(code: str, path: Path) -> list[str]:
    """What a module imports from its own height or above, as lines of a message."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    own = layer(".".join(parts))
    assert own is not None
    return [
        f"{path.name}:{line} imports {name}"
        for line, name in imported(code, ".".join(parts[:-1]))
        if (there := layer(name)) not in (None, own) and ORDER.index(there) > ORDER.index(own)
    ]


def test_every_module_has_a_place_in_the_order() -> None:
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    assert found == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_imports_lead_down(path: Path) -> None:
    assert upward(path.read_text("utf-8"), path) == []


@pytest.mark.parametrize(
    "code",
    [
        "from lens_slt.report.page import page",
        "from lens_slt import report",
        "import lens_slt.report.page",
        "import lens_slt as ls",
        "from .. import report",
        "from ..report.page import page",
        "def f():\n    from lens_slt.report import page",
        "if TYPE_CHECKING:\n    from lens_slt.report import page",
        "import_module('lens_slt.report.page')",
    ],
)
def test_an_import_upwards_is_seen(code: str) -> None:
    assert len(upward(code, PACKAGE / "circuits" / "trial.py")) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import torch.report", "from report import page", "from lens_slt.circuits import runs",
        "from . import runs", "from ..models import adapter", "from lens_slt import data",
    ],
)  # fmt: skip
def test_an_import_downwards_is_allowed(code: str) -> None:
    assert upward(code, PACKAGE / "circuits" / "trial.py") == []
