"""What a notebook shows of a result, without loading the libraries that make it until it does."""

from __future__ import annotations

from typing import Any

SHOWN = (  # module and name of every class that a result of lens_slt can have
    ("xarray.core.datatree", "DataTree"),
    ("xarray.core.dataset", "Dataset"),
    ("xarray.core.dataarray", "DataArray"),
    ("lens_slt.circuits.trial", "Trial"),
    ("lens_slt.circuits.hypothesis", "CircuitHypothesis"),
    ("lens_slt.calibration", "Calibration"),
)


def register(shell: Any) -> None:
    """Let an IPython shell show the table and the main figure of every result of lens_slt.

    Other arrays keep their own display.
    """
    formatter = shell.display_formatter.ipython_display_formatter
    for module, name in SHOWN:
        formatter.for_type_by_name(module, name, _display)


def _display(result: Any) -> None:
    from lens_slt.report.show import display_result

    display_result(result)
