"""``import lens_slt`` is quick, and every public name is there all the same."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest

import lens_slt as ls
from lens_slt.versions import warn_of_restart

HEAVY = (
    "torch", "transformer_lens", "transformers", "datasets", "xarray", "pandas", "scipy", "sklearn",
    "umap", "zarr", "networkx", "plotly", "matplotlib", "circuitsvis", "rich", "IPython",
)  # fmt: skip
MEASURE = """
import json, sys, time
began = time.process_time()
{code}
seconds = time.process_time() - began
print(json.dumps([seconds, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def loaded(code: str) -> tuple[float, set[str]]:
    """Seconds of CPU time that code takes in a fresh process, and the packages it loads."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(code=code)], capture_output=True, text=True,
        check=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    seconds, names = json.loads(done.stdout.splitlines()[-1])
    return seconds, set(names)


def test_importing_loads_nothing_heavy() -> None:
    seconds, names = loaded("import lens_slt as ls; dir(ls)")
    assert names.isdisjoint(HEAVY)
    assert seconds < 1


@pytest.mark.parametrize(
    ("code", "left_out"),
    [
        ("import lens_slt as ls; ls.Settings()",
         [name for name in HEAVY if name not in ("torch", "xarray", "pandas")]),
        ("import lens_slt.cli", [name for name in HEAVY if name != "rich"]),
    ],
)  # fmt: skip
def test_libraries_are_loaded_on_use(code: str, left_out: list[str]) -> None:
    seconds, names = loaded(code)
    assert names.isdisjoint(left_out)
    assert seconds < 10


def test_notebooks_are_told_without_loading_anything() -> None:
    pytest.importorskip("IPython")
    code = (
        "from IPython.core.interactiveshell import InteractiveShell as Shell; "
        "shell = Shell.instance(); import lens_slt; "
        "from lens_slt.report.notebook import SHOWN; "
        "known = shell.display_formatter.ipython_display_formatter.deferred_printers; "
        "assert set(SHOWN) <= set(known), known"
    )
    _, names = loaded(code)
    assert names.isdisjoint({"torch", "xarray", "plotly", "transformer_lens"})


def test_every_public_name_is_there() -> None:
    assert set(ls.__all__) <= set(dir(ls))
    for name in ls.__all__:
        assert getattr(ls, name) is not None
    with pytest.raises(AttributeError, match="module 'lens_slt' has no attribute 'smaple'"):
        _ = ls.smaple


def test_the_version_is_that_of_the_installed_package() -> None:
    assert ls.__version__ == metadata.version("lens-slt")
    assert "__version__" in dir(ls)


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(str(ls.__file__)).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = [alias.name for node in block.body for alias in node.names]
    assert sorted(seen) == sorted(ls.__all__)


def test_a_session_with_an_old_package_is_told_to_restart(monkeypatch) -> None:
    """As after an installation in a notebook that had loaded NumPy before."""
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_restart()
        monkeypatch.setattr(np, "__version__", f"{np.__version__.partition('+')[0]}+cu128")
        warn_of_restart()  # another build of the same version is none
    monkeypatch.setattr(np, "__version__", "1.0.0")
    with pytest.warns(UserWarning, match=r"numpy 1\.0\.0 is loaded and .* installed: restart"):
        warn_of_restart()
