"""Modes and patterns as CSV tables and as records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from lens_slt.structure.overview import View


def write_structure(folder: Path, views: dict[str, View]) -> dict[str, str]:
    """Write loadings, enrichment and top tokens of every matrix as CSV; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
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
