"""Results as files and records: JSON rows, a CSV table, a page of figures that opens offline."""

from __future__ import annotations

import csv
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.plots import is_head, plot_rllc, plot_rllc_map, plot_traces
from lens_slt.report.tables import health_summary, notes

STYLE = "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"


def rllc_rows(draws: xr.DataTree, llc: xr.Dataset) -> list[dict[str, Any]]:
    """One plain record per component; what is not a number becomes None."""
    sizes = draws.to_dataset()["n_parameters"].sel(component=llc["component"]).values
    rows = []
    for i, name in enumerate(llc["component"].values):
        row = llc.isel(component=i)
        value, error = float(row["llc"]), float(row["se"])
        record: dict[str, Any] = {
            "component": str(name),
            "llc": _plain(value),
            "se": _plain(error),
            "se_percent": _plain(100 * error / abs(value)) if value else None,
            "rhat": _plain(float(row["rhat"])),
            "ess": _plain(float(row["ess"])),
            "chains_used": int(row["chains_used"]),
            "verdict": str(row["verdict"].values),
            "n_parameters": int(sizes[i]),
        }
        if "probe" in llc.dims:
            for probe in llc["probe"].values:
                record[f"llc_{probe}"] = _plain(float(row["probe_llc"].sel(probe=probe)))
                record[f"se_{probe}"] = _plain(float(row["probe_se"].sel(probe=probe)))
        rows.append(record)
    return rows


def write_rllc(folder: Path, draws: xr.DataTree, llc: xr.Dataset, title: str) -> dict[str, str]:
    """Write ``table.csv`` and ``rllc.html``; returns their paths."""
    table, page = folder / "table.csv", folder / "rllc.html"
    write_csv(table, rllc_rows(draws, llc))
    figures = [plot_rllc(llc)]
    if any(is_head(str(name)) for name in llc["component"].values):
        figures.append(plot_rllc_map(llc))
    figures += [plot_traces(draws, name) for name in _worth_a_look(llc)]
    which = "Traces at the end: the highest λ̂, the largest R̂, and what is not healthy."
    words = [f"Health: {health_summary(llc)}", *notes(draws), which]
    write_page(page, title, words, figures)
    return {"table": str(table), "figures": str(page)}


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Records as a CSV file; None becomes an empty field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_page(
    path: Path, title: str, paragraphs: Sequence[str], figures: Sequence[go.Figure]
) -> None:
    """Figures on one HTML page that needs no network."""
    text = [f"<p>{html.escape(p).replace(chr(10), '<br>')}</p>" for p in paragraphs]
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=i == 0)
        for i, figure in enumerate(figures)
    ]  # fmt: skip
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *text, *parts])
    path.write_text(
        f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>",
        encoding="utf-8",
    )


def _worth_a_look(llc: xr.Dataset) -> list[str]:
    """Components whose traces go on the page: the highest λ̂, the largest R̂ and any unhealthy."""
    names = [str(name) for name in llc["component"].values]
    chosen = [
        name for name, word in zip(names, llc["verdict"].values, strict=True) if word != "healthy"
    ]
    for key in ("llc", "rhat"):
        values = llc[key].values
        if np.isfinite(values).any():
            chosen.insert(0, names[int(np.nanargmax(values))])
    return list(dict.fromkeys(chosen))[:6]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
