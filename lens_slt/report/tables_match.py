"""Matches and transfers as tables for a terminal of 80 columns."""

from __future__ import annotations

import numpy as np
import xarray as xr
from rich.table import Table

from lens_slt.report.plain_table import PlainTable, cell
from lens_slt.report.results_said import carried_over
from lens_slt.schema import require
from lens_slt.structure.match import PARTNERED

NOTHING = "–"
STYLES = {
    "matched": "bold green", "supported": "bold green", "contradicted": "bold red",
    "shared": "green", "ambiguous": "bold yellow", "undecided": "bold yellow",
}  # fmt: skip


def match_table(result: xr.Dataset) -> Table:
    """One row per component of the first model: its partner, how alike, how surely."""
    result = require(result, "match", argument="result")
    table = PlainTable(
        "Partners",
        f"similarity: correlation corrected for noise, 95 % over sequences; p corrected over all "
        f"components; stable: share of resamples with this partner; next: similarity of the "
        f"runner-up; in brackets: the likest, and not alike enough; by "
        f"{result.attrs['kinds'].replace(' ', ' and ').replace('_', ' ')}",
    )
    for name in ("component", "partner", "similarity", "p", "stable", "next", "verdict"):
        right = name in ("similarity", "p", "stable", "next")
        table.add_column(name, justify="right" if right else "left", no_wrap=name == "component")
    for name in result["component"].values:
        row = result.sel(component=name)
        verdict = str(row["verdict"].values)
        numbers = [_number(row[key]) for key in ("p", "stability", "runner_up")]
        partner = str(row["partner"].values)
        if partner and verdict not in PARTNERED:
            partner = f"({partner})"  # the most alike, and not alike enough
        table.add_row(
            str(name), partner or NOTHING, _interval(row), *numbers,
            cell(verdict, STYLES.get(verdict, "")),
        )  # fmt: skip
    return table


def transfer_table(result: xr.Dataset) -> Table:
    """One row per circuit: what the match makes of it, its trial, and chance."""
    result = require(result, "transfer", argument="result")
    about = result.attrs
    table = PlainTable(
        "Circuits carried over",
        f"{carried_over(result)}, {about['chance_rate']:.0%} by chance (p {about['p']:.2g}); "
        "chance: the share of maps to the same layers whose circuit is supported",
    )
    for name in ("circuit", "mapped", "trial", "chance"):
        table.add_column(name, justify="right" if name == "chance" else "left")
    for i in range(result.sizes["circuit"]):
        row = result.isel(circuit=i)
        parts = [str(row[key].values).rpartition(": ")[2] for key in ("original", "mapped")]
        verdict, n = str(row["verdict"].values), int(row["n_maps"])
        chance = f"{float(row['chance']):.0%} of {n}" if n else NOTHING
        table.add_row(
            parts[0], parts[1] or str(row["reason"].values),
            cell(verdict, STYLES.get(verdict, "")), chance,
        )  # fmt: skip
    return table


def _number(value: xr.DataArray) -> str:
    number = float(value)
    return f"{number:.2f}" if np.isfinite(number) else NOTHING


def _interval(row: xr.Dataset) -> str:
    ends = [_number(row[f"similarity_{end}"]) for end in ("low", "high")]
    value = _number(row["similarity"])
    return value if NOTHING in (value, *ends) else f"{value} [{', '.join(ends)}]"
