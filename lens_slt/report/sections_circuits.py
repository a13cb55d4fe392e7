"""The section of a report about circuits and what heads do."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from lens_slt.circuits.behaviour import MEANINGS, TYPES
from lens_slt.circuits.trial import Trial
from lens_slt.report import page
from lens_slt.report.plots_circuits import plot_circuit, plot_evidence, plot_faithfulness
from lens_slt.report.plots_heads import plot_behaviour
from lens_slt.report.tables_circuits import behaviour_table, evidence_table, verdicts_table


def circuits_section(
    trials: Sequence[Trial], behaviour: xr.Dataset | None, llc: xr.Dataset | None
) -> str:
    """Hypotheses with their evidence, and what heads do."""
    parts = []
    if trials:
        parts.append(
            page.paragraph(
                "Hypotheses come from the draws, or from you. The trial ablates, on text that was "
                "not sampled: supported is what held in every test that votes, contradicted what "
                "failed in at least one, undecided the rest. Intervals are 95 %, over sequences; "
                "p-values are corrected by Holm over the voting tests of a trial."
            )
        )
        parts.append(page.table(verdicts_table(trials)))
        panels: dict[str, str] = {}
        for i, trial in enumerate(trials, 1):
            panels[f"{i}: {trial.hypothesis.pattern}, {trial.verdict}"] = _trial(trial, behaviour)
        parts.append(page.tabs(panels, "Hypothesis"))
    elif llc is not None:
        parts.append(page.paragraph("No circuit was proposed: no head stands out on any pattern."))
    if behaviour is not None:
        parts.append(page.figure(plot_behaviour(behaviour)))
        parts.append(
            page.fold("The same scores as a table", page.table(behaviour_table(behaviour, llc)))
        )
        kinds = MEANINGS | {f"type: {name}": rule for name, rule in TYPES.items()}
        parts.append(page.fold("What the scores and the types are", page.pairs(kinds)))
    return "".join(parts)


def _trial(trial: Trial, behaviour: xr.Dataset | None) -> str:
    """What votes first and framed; what is only noted below, greyed and folded."""
    parts = [
        page.heading(f"{trial.verdict.capitalize()}: {trial.hypothesis}"),
        page.bullets(trial.reasons),
        page.figure(plot_circuit(trial, behaviour)),
        page.figure(plot_evidence(trial)),
        page.box("voted", "What votes", page.table(evidence_table(trial, votes=True))),
    ]
    if any(not one.votes for one in trial.evidence):
        table = page.table(evidence_table(trial, votes=False))
        parts.append(page.box("noted", "Noted, without a vote", page.fold("All of it", table)))
    if trial.curve is not None:
        parts.append(page.figure(plot_faithfulness(trial)))
    return "".join(parts)
