"""``lens-slt report``: the page of a run or sweep that is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lens_slt.cli_commands import Report
from lens_slt.cli_output import finish, say
from lens_slt.cli_support import record_of, record_of_curves
from lens_slt.development.develop import open_development
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report.report import draws_in, sweep_in, write_report
from lens_slt.sampling.result import open_draws


def run(options: Report) -> None:
    """Write the report."""
    folder = options.run.expanduser()
    written = str(write_report(folder))
    say(options, f"written: {written}")
    read = _read(folder) if options.as_json else {}
    finish(options, read | {"files": {"report": written}})


def _read(folder: Path) -> dict[str, Any]:
    """What the report says of the draws in a folder; nothing of trials alone."""
    if (sweep := sweep_in(folder)) is not None:
        return record_of_curves(open_development(sweep))
    if (draws := draws_in(folder)) is not None:
        return record_of(refined_llc(open_draws(draws)))
    return {}
