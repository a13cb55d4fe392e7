"""Matrices, modes and patterns as files: CSV tables, and a page of figures that opens offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from lens_slt.report.files import write_page
from lens_slt.report.plots_maps import plot_map
from lens_slt.report.plots_modes import QUANTITIES, plot_enrichment, plot_modes
from lens_slt.structure.overview import View


def write_structure(folder: Path, views: dict[str, View], title: str) -> dict[str, str]:
    """Write loadings, enrichment and top tokens as CSV, figures as ``modes.html``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    figures: list[Any] = []
    for key, view in views.items():
        tables = {
            "loadings": _flat(view.modes, ("loading", "loading_low", "loading_high")),
            "patterns_by_mode": _flat(view.by_mode, ("auc", "low", "high", "p", "q")),
            "patterns_by_component": _flat(view.by_component, ("auc", "low", "high", "p", "q")),
            "top_tokens": view.top,
        }
        for name, table in tables.items():
            files[f"{name}_{key}"] = folder / f"{name}_{key}.csv"
            table.to_csv(files[f"{name}_{key}"], index=False)
        figures += [
            plot_modes(view.modes),
            plot_enrichment(view.by_mode),
            plot_enrichment(view.by_component),
        ]
        if view.map is not None:
            what = QUANTITIES[key]
            figures.append(
                plot_map(
                    view.map, view.map["pattern"].values, list(view.map["context"].values),
                    title=f"Tokens that heads respond to alike lie together ({what}, UMAP)",
                    label="pattern",
                )
            )  # fmt: skip
    files["modes"] = folder / "modes.html"
    words = [
        f"Split-half reliability of the {QUANTITIES[key]}, median over components: "
        f"{float(view.matrix['split_half'].median()):.2f}."
        for key, view in views.items()
    ]
    write_page(files["modes"], title, words, figures)
    return {key: str(path) for key, path in files.items()}


def structure_records(views: dict[str, View]) -> dict[str, Any]:
    """Plain values for ``--json``: reliability, and every mode's variance, verdict, loadings."""
    record: dict[str, Any] = {}
    for key, view in views.items():
        names = [str(name) for name in view.matrix["component"].values]
        record[key] = {
            "split_half": _plain(view.matrix["split_half"], names),
            "mean": _plain(view.matrix["mean"], names),
            "modes": [
                {
                    "mode": int(mode["mode"]),
                    "explained": float(mode["explained"]),
                    "verdict": str(mode["verdict"].values),
                    "loadings": _plain(
                        mode["loading"], [str(name) for name in mode["component"].values]
                    ),
                }
                for mode in (view.modes.isel(mode=i) for i in range(view.modes.sizes["mode"]))
            ],
        }
    return record


def _plain(values: xr.DataArray, names: list[str]) -> dict[str, float | None]:
    return {
        name: float(value) if value == value else None
        for name, value in zip(names, values.values, strict=True)
    }


def _flat(table: xr.Dataset, names: tuple[str, ...]) -> Any:
    return table[[name for name in names if name in table]].to_dataframe().reset_index()
