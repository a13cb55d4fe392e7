"""``lens-slt phases``: phases from checkpoints or a file, and where their free energies cross."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arrays import write_zarr
from lens_slt.cli_commands import Phases
from lens_slt.cli_output import finish, say, show
from lens_slt.cli_support import whole_numbers
from lens_slt.development.develop import open_development
from lens_slt.phases.free_energy import crossing
from lens_slt.phases.phase import Phase, development_phases, read_phases
from lens_slt.report.report import sweep_in, write_report
from lens_slt.report.tables_phases import crossings_table, phases_table


def run(options: Phases) -> None:
    """Read phases, and cross each with the next."""
    phases = _phases(options.source.expanduser(), options.steps, options.component)
    found = [
        crossing(one, other, pattern=options.pattern, trust=options.trust)
        for one, other in pairwise(phases)
    ]
    show(options, phases_table(phases), crossings_table(found))
    record: dict[str, Any] = {
        "phases": [_phase(one) for one in phases],
        "certificates": {one.name: one.certificate for one in phases},
        "crossings": [_record(one) for one in found],
    }
    if options.out is not None:
        record["files"] = _written(options.out.expanduser(), found)
        say(options, f"written: {', '.join(record['files'].values())}")
    finish(options, record)


def _written(folder: Path, found: list[xr.Dataset]) -> dict[str, str]:
    """Every crossing, and a report on them all."""
    files = {f"crossing_{i}": folder / f"crossing-{i}.zarr" for i in range(1, len(found) + 1)}
    for one, file in zip(found, files.values(), strict=True):
        write_zarr(one, file)
    return {key: str(file) for key, file in files.items()} | {"report": str(write_report(folder))}


def _phases(source: Path, steps: str | None, component: str | None) -> list[Phase]:
    if source.is_file():
        if steps is not None or component is not None:
            raise ValueError("--steps and --component choose from a folder; the source is a file")
        phases = read_phases(source)
    else:
        if steps is None:
            raise ValueError(
                "--steps is missing: checkpoints on two or more plateaus, as 1000,5300"
            )
        chosen = whole_numbers("steps", steps)
        sweep = open_development(sweep_in(source) or source)
        phases = development_phases(sweep, chosen, component=component)
    if len(phases) < 2:
        raise ValueError(f"phases must be at least two; got {len(phases)}")
    return phases


def _phase(one: Phase) -> dict[str, Any]:
    """What the free energy of a phase is made of, and what it was measured with."""
    names = ("name", "loss", "loss_se", "llc", "llc_se", "multiplicity", "constant", "setting")
    return {name: getattr(one, name) for name in names}


def _record(found: xr.Dataset) -> dict[str, Any]:
    """One pair as plain values; null where an interval has no end."""
    rows = [
        {
            key: value if isinstance(value, str) else value if np.isfinite(value) else None
            for key, value in (
                (key, found[key].values[i].item())
                for key in ("n", "n_low", "n_high", "favoured", "shift_per_constant")
            )
        }
        for i in range(found.sizes["crossing"])
    ]
    return {
        "one": found.attrs["one"], "other": found.attrs["other"], "crossings": rows,
        "loss_difference": float(found["loss_difference"]),
        "llc_difference": float(found["llc_difference"]),
    }  # fmt: skip
