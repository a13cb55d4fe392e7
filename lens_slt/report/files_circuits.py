"""Trials as files: JSON, CSV and DOT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import xarray as xr

from lens_slt.arrays import write_zarr
from lens_slt.circuits.graph import circuit_graph, to_dot
from lens_slt.circuits.hypothesis import write_hypotheses
from lens_slt.circuits.trial import Trial
from lens_slt.report.files import BEHAVIOUR, TRIALS


def write_trials(
    folder: Path, trials: Sequence[Trial], behaviour: xr.Dataset | None = None
) -> dict[str, str]:
    """Write ``hypotheses.json``, ``trials.json``, ``evidence.csv``, ``circuit_N.dot`` and
    ``behaviour.zarr``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name.partition(".")[0]: folder / name for name in ("hypotheses.json", TRIALS)}
    write_hypotheses(files["hypotheses"], [trial.hypothesis for trial in trials])
    records = [trial.as_dict() for trial in trials]
    files["trials"].write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if trials:
        files["evidence"] = folder / "evidence.csv"
        tables = [trial.table().assign(hypothesis=str(trial.hypothesis)) for trial in trials]
        pd.concat(tables).to_csv(files["evidence"], index=False)
    for i, trial in enumerate(trials, 1):
        files[f"circuit_{i}"] = folder / f"circuit_{i}.dot"
        files[f"circuit_{i}"].write_text(to_dot(circuit_graph(trial, behaviour)), "utf-8")
    if behaviour is not None:
        files["behaviour"] = folder / BEHAVIOUR
        write_zarr(behaviour, files["behaviour"])
    return {key: str(path) for key, path in files.items()}
