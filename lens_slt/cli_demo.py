"""``lens-slt demo``: the shipped model, from refined LLCs to circuits."""

from __future__ import annotations

from typing import Any

from lens_slt import demo
from lens_slt.cli_commands import Demo
from lens_slt.cli_output import say
from lens_slt.cli_runs import Run, finish_run, show_rllc, show_structure, show_trials
from lens_slt.cli_support import found_steps
from lens_slt.observables.refined_llc import refined_llc


def run(options: Demo) -> None:
    """Sample, show structure, put what it suggests on trial."""
    progress = not options.quiet
    settings = demo.demo_settings(options.draws, options.seed)
    say(options, demo.WHAT)
    before = found_steps(options)
    text: dict[str, Any] = {"sequences": options.sequences, "length": options.length}
    draws, views = demo.run_demo(options.kept, settings, progress=progress, **text)
    drawn = Run(draws, refined_llc(draws).drop_sel(probe=demo.STRUCTURE), before)
    llc = show_rllc(options, drawn, demo.HOW_TO_READ)
    structure = show_structure(options, views, demo.HOW_TO_READ_MODES)
    trials, behaviour = demo.run_trials(views, progress=progress, **text)
    tried = show_trials(options, trials, behaviour, drawn, demo.HOW_TO_READ_CIRCUITS)
    title = "The shipped model, from refined LLCs to circuits"
    finish_run(options, drawn, title, "mix", llc, structure, tried)
