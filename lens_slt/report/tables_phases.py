"""Phases and their crossings as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from rich.table import Table

from lens_slt.phases.phase import Phase
from lens_slt.report.plain_table import PlainTable
from lens_slt.report.tables import with_error
from lens_slt.schema import require

UNKNOWN = "–"


def count(n: float | xr.DataArray) -> str:
    """A number of samples: 1,234, 2.5e+06 or ∞."""
    value = float(n)
    if np.isinf(value):
        return "∞"
    return f"{value:,.0f}" if value < 1e6 else f"{value:.3g}"


def phases_table(phases: Sequence[Phase]) -> Table:
    """One row per phase: loss, λ̂, multiplicity, constant term, certificate."""
    table = PlainTable("Phases", "± one standard error; –: not known")
    for name in ("phase", "loss", "λ̂", "m", "constant", "λ̂ is"):
        table.add_column(name, justify="left" if name in ("phase", "λ̂ is") else "right")
    for one in phases:
        m = UNKNOWN if one.multiplicity is None else str(one.multiplicity)
        constant = UNKNOWN if one.constant is None else f"{one.constant:.3f}"
        table.add_row(
            one.name, with_error(one.loss, one.loss_se), with_error(one.llc, one.llc_se), m,
            constant, one.certificate,
        )  # fmt: skip
    return table


def crossing_table(result: xr.Dataset) -> Table:
    """One row per crossing: n with its interval, and which phase is favoured above it."""
    result = require(result, "crossing", argument="result")
    return crossings_table([result])


def crossings_table(all_found: Sequence[xr.Dataset]) -> Table:
    """Crossings of several pairs of phases, from :func:`lens_slt.crossing`."""
    notes = list(dict.fromkeys(one.attrs["notes"] for one in all_found))
    level = all_found[0].attrs["level"] if all_found else 0.95
    table = PlainTable("Crossings", "\n".join([f"{level:.0%} intervals of n", *notes]))
    for name in ("phases", "n", "interval", "favoured above"):
        table.add_column(name, justify="right" if name in ("n", "interval") else "left")
    for one in all_found:
        pair = f"{one.attrs['one']}, {one.attrs['other']}"
        for i in range(one.sizes["crossing"]):
            row = one.isel(crossing=i)
            table.add_row(
                pair, count(row["n"]), f"{count(row['n_low'])} to {count(row['n_high'])}",
                str(row["favoured"].values),
            )  # fmt: skip
        if not one.sizes["crossing"] and not one.sizes["undecided"]:
            ahead = float(one["difference"][-1]) > 0
            table.add_row(
                pair, "none", UNKNOWN, f"{one.attrs['one' if ahead else 'other']} at all n"
            )
        for i in range(one.sizes["undecided"]):
            row = one.isel(undecided=i)
            within = f"{count(row['from_n'])} to {count(row['to_n'])}"
            table.add_row(pair, UNKNOWN, within, "undecided")
    return table


def diagram_table(result: xr.Dataset) -> Table:
    """Which phase is the lowest from which n on, one row per share of the pattern."""
    result = require(result, "phase_diagram", argument="result")
    table = PlainTable("Phase of lowest free energy", result.attrs["notes"])
    if result.attrs["pattern"]:
        table.add_column(f"share of {result.attrs['pattern']}", justify="right")
    table.add_column("from n")
    n = result["n"].values
    for share, row in zip(result["share"].values, result["lowest"].values, strict=True):
        places = [0, *(np.flatnonzero(row[1:] != row[:-1]) + 1)]
        words = "; ".join(f"{count(n[i])}: {row[i]}" for i in places)
        table.add_row(*([f"{share:.3g}"] if result.attrs["pattern"] else []), words)
    return table
