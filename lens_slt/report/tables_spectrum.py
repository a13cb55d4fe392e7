"""Spectra as tables for a terminal of 80 columns."""

from __future__ import annotations

import numpy as np
import xarray as xr
from rich.table import Table

from lens_slt.phases.spectrum import NOT_SAMPLED
from lens_slt.report.plain_table import PlainTable
from lens_slt.report.tables import with_error
from lens_slt.sampling.certificate import CERTIFIED
from lens_slt.schema import require

MASKED = "–"
MOST_NAMED = 4  # rungs that are not certified


def spectrum_table(result: xr.Dataset) -> Table:
    """One row per component and γ: λ̂ ± standard error at every nβ."""
    result = require(result, "spectrum", argument="result")
    masked = _not_certified(result)
    more = [f"and {len(masked) - MOST_NAMED} more"] if len(masked) > MOST_NAMED else []
    trust = result.attrs.get("trust", 0)
    rule = "not certified, shown all the same:" if trust else "–: not certified"
    head = f"± one standard error; {rule}" if masked or not trust else "± one standard error"
    words = "\n".join([head, *masked[:MOST_NAMED], *more])
    table = PlainTable("λ̂ over nβ", words)
    table.add_column("component", no_wrap=True)
    table.add_column("γ", justify="right")
    for n_beta in result["n_beta"].values:
        table.add_column(f"nβ {n_beta:g}", justify="right")
    for name in result["component"].values:
        for gamma in result["gamma"].values:
            row = result.sel(component=name, gamma=gamma)
            cells = [
                with_error(float(value), float(error)) if np.isfinite(value) else MASKED
                for value, error in zip(row["llc"].values, row["se"].values, strict=True)
            ]
            table.add_row(str(name), f"{gamma:g}", *cells)
    return table


def _not_certified(found: xr.Dataset) -> list[str]:
    """Rungs that were sampled and are not certified, and why."""
    said = found["certificate"].values
    return [
        f"{found['component'].values[c]} at nβ {found['n_beta'].values[b]:g}, "
        f"γ {found['gamma'].values[g]:g}: {found['why'].values[b, g, c]}"
        for b, g, c in np.argwhere((said != CERTIFIED) & (said != NOT_SAMPLED))
    ]


def curvatures_table(result: xr.Dataset) -> Table:
    """One row per component: stiffness, directions that share λ̂, bounds at three curvatures."""
    result = require(result, "curvatures", argument="result")
    table = PlainTable(
        "Curvatures", "bounds: all numbers of directions that λ̂ and variances allow; ± one "
        "standard error",
    )  # fmt: skip
    n = result.sizes["curvature"]
    places = sorted({0, n // 2, n - 1})
    table.add_column("component", no_wrap=True)
    for word in ("stiffness", "shared by"):
        table.add_column(word, justify="right")
    for i in places:
        table.add_column(f"h > {float(result['curvature'][i]):.2g}", justify="right")
    table.add_column("made up of")
    for name in result["component"].values:
        row = result.sel(component=name)
        cells = [
            f"{low:.1f}–{high:.1f}" if np.isfinite(low) else MASKED
            for low, high in zip(
                row["directions_low"].values[places], row["directions_high"].values[places],
                strict=True,
            )
        ]  # fmt: skip
        table.add_row(
            str(name), with_error(float(row["stiffness"]), float(row["stiffness_se"])),
            with_error(float(row["effective_directions"]), float(row["effective_directions_se"])),
            *cells, str(row["verdict"].values),
        )  # fmt: skip
    return table


def multiplicity_table(result: xr.Dataset) -> Table:
    """One row per component and γ: λ and m, or why they are not identifiable."""
    result = require(result, "multiplicity", argument="result")
    table = PlainTable("λ and multiplicity", "± one standard error; λ from, to: all forms left")
    for word in ("component", "γ", "λ", "m", "λ from, to", "verdict"):
        table.add_column(word, justify="left" if word in ("component", "verdict") else "right")
    for name in result["component"].values:
        for gamma in result["gamma"].values:
            row = result.sel(component=name, gamma=gamma)
            claimed = np.isfinite(float(row["llc"]))
            ends = [float(row[f"llc_{end}"]) for end in ("low", "high")]
            table.add_row(
                str(name), f"{gamma:g}",
                with_error(float(row["llc"]), float(row["llc_se"])) if claimed else MASKED,
                f"{int(row['multiplicity'])}" if claimed else MASKED,
                "{:.3g}, {:.3g}".format(*ends) if np.isfinite(ends).all() else MASKED,
                str(row["verdict"].values),
            )  # fmt: skip
    return table


def density_table(result: xr.Dataset) -> Table:
    """One row per rung: overlap with the one before, free energy by MBAR and by integration."""
    result = require(result, "density_of_states", argument="result")
    table = PlainTable(
        f"Free energies of {result.attrs['component']}, γ {result.attrs['gamma']:g}",
        "minus the first rung's; ± one standard error",
    )
    for word in ("nβ", "overlap", "MBAR", "integration", "difference"):
        table.add_column(word, justify="right")
    for i in range(result.sizes["rung"]):
        row = result.isel(rung=i)
        overlap = float(row["overlap"])
        table.add_row(
            f"{float(row['n_beta']):g}", f"{overlap:.2f}" if np.isfinite(overlap) else MASKED,
            *(
                with_error(float(row[key]), float(row[f"{key}_se"]))
                for key in ("free_energy", "integrated", "difference")
            ),
        )  # fmt: skip
    return table
