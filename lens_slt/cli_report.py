"""``lens-slt report``: the page of a run or sweep that is finished."""

from __future__ import annotations

from lens_slt.cli_commands import Report
from lens_slt.cli_output import finish, say
from lens_slt.cli_support import record_of
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report.files import DRAWS
from lens_slt.report.report import write_report
from lens_slt.sampling.result import open_draws


def run(options: Report) -> None:
    """Write the report."""
    folder = options.run.expanduser()
    written = str(write_report(folder))
    say(options, f"written: {written}")
    record = {"files": {"report": written}}
    if options.as_json and (folder / DRAWS).is_dir():
        record = record_of(refined_llc(open_draws(folder / DRAWS))) | record
    finish(options, record)
