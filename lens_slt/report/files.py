"""Results as files and records: JSON rows and a CSV table."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

DRAWS, ABOUT, TRIALS, BEHAVIOUR, REPORT = (
    "draws.zarr", "run.json", "trials.json", "behaviour.zarr", "report.html",
)  # fmt: skip
SWEEP, BUILT = "sweep", "construction.zarr"  # of ``lens-slt develop``
ATTENDED = "attention.zarr"


def rllc_rows(llc: xr.Dataset) -> list[dict[str, Any]]:
    """One plain record per component; what is not a number becomes None."""
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
            "n_parameters": int(row["n_parameters"]),
        }
        if "probe" in llc.dims:
            for probe in llc["probe"].values:
                record[f"llc_{probe}"] = _plain(float(row["probe_llc"].sel(probe=probe)))
                record[f"se_{probe}"] = _plain(float(row["probe_se"].sel(probe=probe)))
        rows.append(record)
    return rows


def write_rllc(folder: Path, llc: xr.Dataset) -> dict[str, str]:
    """Write ``table.csv``; returns its path."""
    table = folder / "table.csv"
    write_csv(table, rllc_rows(llc))
    return {"table": str(table)}


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``run.json``, what a report says first about a run."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(about), indent=1, ensure_ascii=False)
    (folder / ABOUT).write_text(f"{text}\n", "utf-8")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Records as a CSV file; None becomes an empty field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
