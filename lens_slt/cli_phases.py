"""``lens-slt phases``: phases from checkpoints or a file, and where their free energies cross."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr

from lens_slt.cli_develop import SWEEP
from lens_slt.cli_options import Json
from lens_slt.cli_support import console, finish, guarded
from lens_slt.development.develop import open_development
from lens_slt.phases.free_energy import crossing
from lens_slt.phases.phase import Phase, development_phases, read_phases
from lens_slt.report.tables_phases import crossings_table, phases_table


def phases_command(
    source: Annotated[
        Path, typer.Argument(help="Folder of lens-slt develop, or a JSON file of phases.")
    ],
    steps: Annotated[
        str | None, typer.Option(help="Of a folder: training steps of the phases, with commas.")
    ] = None,
    component: Annotated[
        str | None, typer.Option(help="Of a folder: whose λ̂; full by default.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="Cross on the data of this pattern.")] = None,
    trust: Annotated[bool, typer.Option(help="Use λ̂ that is not certified.")] = False,
    as_json: Json = False,
) -> None:
    """Phases by loss and λ, and the numbers of data at which one replaces the next."""
    with guarded(as_json):
        phases = _phases(source.expanduser(), steps, component)
        found = [
            crossing(one, other, pattern=pattern, trust=trust) for one, other in pairwise(phases)
        ]
        if not as_json:
            console.print(phases_table(phases))
            console.print()
            console.print(crossings_table(found))
        finish({"crossings": [_record(one) for one in found]}, as_json)


def _phases(source: Path, steps: str | None, component: str | None) -> list[Phase]:
    if source.is_file():
        if steps is not None or component is not None:
            raise ValueError("--steps and --component choose from a folder; the source is a file")
        phases = read_phases(source.read_text("utf-8"))
    else:
        if steps is None:
            raise ValueError(
                "--steps is missing: checkpoints on two or more plateaus, as 1000,2900"
            )
        try:
            chosen = [int(step) for step in steps.split(",")]
        except ValueError:
            raise ValueError(f"--steps must be whole numbers with commas; got {steps!r}") from None
        folder = source / SWEEP if (source / SWEEP).is_dir() else source
        phases = development_phases(open_development(folder), chosen, component=component)
    if len(phases) < 2:
        raise ValueError(f"phases must be at least two; got {len(phases)}")
    return phases


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
