"""What the commands share that sample a model and report on it: ``demo``, ``rllc``, ….

Each of their results is written into the folder, shown, and made a part of the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any

import xarray as xr

from lens_slt.arrays import write_zarr
from lens_slt.circuits.attention import attention_patterns
from lens_slt.circuits.trial import Trial
from lens_slt.cli_commands import Sampled
from lens_slt.cli_options import Resumed
from lens_slt.cli_output import finish, say, seconds, show
from lens_slt.cli_support import (
    found_steps,
    is_usable,
    record_of,
    show_estimate,
    show_health,
)
from lens_slt.cli_text import first_rows
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report.files import ATTENDED, rllc_rows, write_about, write_rllc
from lens_slt.report.files_circuits import write_trials
from lens_slt.report.files_structure import structure_records, write_structure
from lens_slt.report.report import write_report
from lens_slt.report.tables import notes, probe_table, rllc_table
from lens_slt.report.tables_circuits import behaviour_table, evidence_table, verdicts_table
from lens_slt.report.tables_modes import modes_table, reliability_table
from lens_slt.sampling.estimate import estimate
from lens_slt.sampling.sample import sample
from lens_slt.structure.overview import View
from lens_slt.text import visible


@dataclass(frozen=True)
class Run:
    """Draws, what they say of every component, and the step that an earlier run had reached."""

    draws: xr.DataTree
    llc: xr.Dataset
    resumed_from_step: int = 0


def sampled(
    options: Sampled, model: Any, tokens: Any, components: Any, not_in_it: str, **given: Any
) -> Run | None:
    """Draws of a model; None where only their cost was asked for, which is then shown.

    ``given`` is what :func:`lens_slt.sample` takes, ``not_in_it`` what a command does beside it.
    """
    given |= {"path": options.kept, "device": options.device}
    if options.dry_run:
        found = estimate(model, tokens, components, **given)
        show_estimate(options, found, not_in_it, given["settings"])
        return None
    before = found_steps(options)
    draws = sample(model, tokens, components, progress=not options.quiet, **given)
    return Run(draws, refined_llc(draws), before)


def write_attention(options: Sampled, model: Any, tokens: Any) -> None:
    """Where heads attend on the first sequence, for their pages of the report."""
    with suppress(ValueError):  # some models' attention patterns cannot be read
        found = attention_patterns(model, first_rows(tokens, 1))
        write_zarr(found, options.out / ATTENDED)


def show_rllc(options: Resumed, run: Run, how_to_read: str = "") -> dict[str, Any]:
    """Health first, then the tables, then how to read them; the record of ``--json``."""
    files = write_rllc(options.out, run.llc)
    show_health(options, run.llc)
    show(options, rllc_table(run.llc, notes(run.draws)))
    if "probe" in run.llc.dims:
        show(options, probe_table(run.llc))
    show(options, *_words(how_to_read))
    return {"components": rllc_rows(run.llc), "files": files}


def show_structure(
    options: Resumed, views: dict[str, View], how_to_read: str = ""
) -> dict[str, Any]:
    """Reliability and the modes of each matrix with their patterns; the record of ``--json``."""
    files = write_structure(options.out, views)
    if views:
        show(options, reliability_table(*(view.matrix for view in views.values())))
        show(options, *(modes_table(view.modes, view.by_mode) for view in views.values()))
        show(options, *_words(how_to_read))
    return {"structure": structure_records(views), "files": files}


def show_trials(
    options: Resumed,
    trials: list[Trial],
    behaviour: xr.Dataset,
    run: Run | None,
    how_to_read: str = "",
) -> dict[str, Any]:
    """Verdicts, the evidence of each trial, heads by behaviour; the record of ``--json``."""
    files = write_trials(options.out, trials, behaviour)
    show(options, behaviour_table(behaviour, None if run is None else run.llc))
    if trials:
        show(options, verdicts_table(trials))
    else:
        show(options, "No circuit was proposed: no head that can be used stands out.")
    for trial in trials:
        reasons = str(trial).split("\n", 1)[1:]
        show(options, evidence_table(trial), *map(visible, reasons))
    show(options, *_words(how_to_read))
    return {"trials": [trial.as_dict() for trial in trials], "files": files}


def finish_run(
    options: Resumed, run: Run | None, title: str, data: str, *parts: Mapping[str, Any]
) -> None:
    """Write the report, say where it is, and make one record of what the parts of a run gave."""
    write_about(options.out, {"title": title, "data": data, "written on": date.today().isoformat()})
    report = str(write_report(options.out))
    record = {key: value for part in parts for key, value in part.items()}
    record["files"] = {key: file for part in parts for key, file in part["files"].items()}
    record["files"]["report"] = report
    if run is not None:
        record["files"]["draws"] = str(options.kept)
        record |= record_of(run.llc) | {"resumed_from_step": run.resumed_from_step}
    what = "tables" if run is None else "tables and draws"
    words = f"open {report}; {what} in {options.out}"
    say(options, f"done in {seconds(options):.0f} s; {words}")
    usable = run is None or is_usable(run.llc)
    finish(options, record | {"title": title}, usable)


def _words(text: str) -> list[str]:
    return [text] if text else []
