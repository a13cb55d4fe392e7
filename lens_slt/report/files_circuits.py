"""Trials as files: JSON, CSV, DOT, and a page of figures that opens offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from lens_slt.circuits.graph import circuit_graph, to_dot
from lens_slt.circuits.hypothesis import write_hypotheses
from lens_slt.circuits.trial import Trial
from lens_slt.report.files import write_page
from lens_slt.report.plots_circuits import plot_circuit, plot_evidence, plot_faithfulness


def write_trials(
    folder: Path, trials: Sequence[Trial], title: str, behaviour: xr.Dataset | None = None
) -> dict[str, str]:
    """Write ``hypotheses.json``, ``trials.json``, ``evidence.csv``, ``circuit_N.dot`` and
    ``circuits.html``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("hypotheses.json", "trials.json", "evidence.csv", "circuits.html")
    files = {name.partition(".")[0]: folder / name for name in names}
    write_hypotheses(files["hypotheses"], [trial.hypothesis for trial in trials])
    records = [trial.as_dict() for trial in trials]
    files["trials"].write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", "utf-8")
    tables = [trial.table().assign(hypothesis=str(trial.hypothesis)) for trial in trials]
    pd.concat(tables).to_csv(files["evidence"], index=False)
    figures: list[Any] = []
    for i, trial in enumerate(trials, 1):
        files[f"circuit_{i}"] = folder / f"circuit_{i}.dot"
        files[f"circuit_{i}"].write_text(to_dot(circuit_graph(trial, behaviour)), "utf-8")
        figures += [plot_circuit(trial, behaviour), plot_evidence(trial)]
        figures += [] if trial.curve is None else [plot_faithfulness(trial)]
    write_page(files["circuits"], title, [str(trial) for trial in trials], figures)
    return {key: str(path) for key, path in files.items()}
