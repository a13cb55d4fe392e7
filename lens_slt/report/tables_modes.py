"""Matrices, modes and what they go with as tables for a terminal of 80 columns."""

from __future__ import annotations

import numpy as np
import xarray as xr
from rich.table import Table

from lens_slt.report.plain_table import PlainTable
from lens_slt.report.plots_modes import CLEAR
from lens_slt.report.tables import with_error
from lens_slt.schema import require
from lens_slt.schemas import MATRICES

NAMES = {"chi": "Susceptibility χ", "llc": "Per-token rLLC"}


def reliability_table(*matrices: xr.Dataset) -> Table:
    """One row per component: mean over the probe's tokens, and split-half reliability."""
    matrices = tuple(require(one, *MATRICES, argument="matrices") for one in matrices)
    table = PlainTable(
        "Mean over the probe's tokens, and reliability",
        "± one standard error; split-half: correlation over tokens, first half of the draws "
        "against the second",
    )
    table.add_column("component", no_wrap=True)
    for matrix in matrices:
        quantity = str(matrix.attrs["quantity"])
        table.add_column("1000·χ ± SE" if quantity == "chi" else "λ̂ ± SE", justify="right")
        table.add_column("split-half", justify="right")
    for name in matrices[0]["component"].values:
        cells = []
        for matrix in matrices:
            row = matrix.sel(component=name)
            factor = 1.0 if matrix.attrs["quantity"] == "llc" else 1e3
            cells.append(with_error(factor * float(row["mean"]), factor * float(row["mean_se"])))
            r = float(row["split_half"])
            cells.append(f"{r:.2f}" if np.isfinite(r) else "–")
        table.add_row(str(name), *cells)
    return table


def modes_table(
    result: xr.Dataset, enriched: xr.Dataset | None = None, *, n_modes: int = 4
) -> Table:
    """One row per mode: variance, stability, strongest loadings and patterns."""
    result = require(result, "modes", argument="result")
    quantity = str(result.attrs["quantity"])
    table = PlainTable(
        f"Modes: {NAMES[quantity]}" + ", noise-whitened" * bool(result.attrs.get("whiten")),
        "loadings of at least half the largest; patterns: AUC with q < 0.05, the three furthest "
        "from 0.5; degrees: how far the mode turns when draws and sequences are resampled",
    )
    for name, justify in (("mode", "right"), ("var %", "right"), ("verdict", "left")):
        table.add_column(name, justify=justify)
    table.add_column("loadings")
    table.add_column("patterns")
    for i in range(min(n_modes, result.sizes["mode"])):
        mode = result.isel(mode=i)
        verdict = str(mode["verdict"].values) if "verdict" in mode else ""
        if "angle" in mode:
            verdict += f" ({float(mode['angle']):.0f}°)"
        table.add_row(
            str(int(mode["mode"])), f"{100 * float(mode['explained']):.1f}", verdict,
            _loadings(mode), "" if enriched is None else _patterns(enriched.isel(mode=i)),
        )  # fmt: skip
    return table


def _loadings(mode: xr.Dataset) -> str:
    loading = mode["loading"]
    order = np.argsort(-np.abs(loading.values))
    least = 0.5 * np.abs(loading.values).max()
    strong = [i for i in order if abs(float(loading[i])) >= least]
    if len(strong) > 8:
        same = {np.sign(float(loading[i])) for i in strong}
        signs = "all of one sign" if len(same) == 1 else "of both signs"
        return f"{len(strong)} of {len(order)} components, {signs}"
    return " ".join(f"{loading['component'].values[i]} {float(loading[i]):+.2f}" for i in strong)


def _patterns(enriched: xr.Dataset) -> str:
    clear = np.flatnonzero(enriched["q"].values < CLEAR)
    auc = enriched["auc"].values
    best = sorted(clear, key=lambda i: -abs(auc[i] - 0.5))[:3]
    return "; ".join(f"{enriched['pattern'].values[i]} {auc[i]:.2f}" for i in best)
