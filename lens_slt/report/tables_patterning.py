"""Data for a wish as tables for a terminal of 80 columns."""

from __future__ import annotations

import numpy as np
import xarray as xr
from rich.table import Table

from lens_slt.report.plain_table import PlainTable
from lens_slt.report.tables import with_error
from lens_slt.schema import require

NOTHING = "–"


def patterning_table(result: xr.Dataset) -> Table:
    """One row per observable: what was wished, what is predicted, what moves unasked."""
    result = require(result, "patterning", argument="result")
    about = result.attrs
    table = PlainTable(
        f"Data for a wish, strength {about['strength']:g}",
        f"± one standard error, to first order; the weight is worth "
        f"{about['effective_sequences']:.0f} of {result.sizes['sequence']} equal sequences, "
        f"{about['clipped']:.0%} of it was cut off at 0; condition number "
        f"{about['condition_number']:.3g}; posterior of {about['component']}, "
        f"{about['certificate']}",
    )
    for name in ("observable", "wish", "predicted", ""):
        table.add_column(name, justify="right" if name in ("wish", "predicted") else "left")
    for name in result["observable"].values:
        row = result.sel(observable=name)
        wish = float(row["wish"]) * about["strength"]
        table.add_row(
            str(name), f"{wish:.3g}" if np.isfinite(wish) else NOTHING,
            with_error(float(row["predicted"]), float(row["predicted_se"])),
            "side effect" if bool(row["side_effect"]) else "",
        )  # fmt: skip
    return table


def patterning_check_table(result: xr.Dataset) -> Table:
    """One row per kind of weights and strength: how much of the wish came true."""
    result = require(result, "patterning_check", argument="result")
    table = PlainTable(
        "Did it come true?",
        f"share of the wish after {result.attrs['steps']} steps, ± one standard error over "
        f"{result.sizes['seed']} seeds; z, p: the wish's share above this control's "
        "(one-sided t, Holm over all)",
    )
    for name in ("weights", "strength", "share", "z", "p"):
        table.add_column(name, justify="left" if name == "weights" else "right")
    for kind in result["kind"].values:
        for strength in result["strength"].values:
            row = result.sel(kind=kind, strength=strength)
            if np.isfinite(float(row["share"])):
                z, p = (float(row[key]) for key in ("z", "corrected_p"))
                table.add_row(
                    str(kind), f"{strength:+g}",
                    with_error(float(row["share"]), float(row["share_se"])),
                    f"{z:.2f}" if np.isfinite(z) else NOTHING,
                    f"{p:.3f}" if np.isfinite(p) else NOTHING,
                )  # fmt: skip
    return table
