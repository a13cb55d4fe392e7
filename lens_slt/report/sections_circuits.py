"""Sections of a report about circuits, and about what disagrees with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import xarray as xr

from lens_slt.circuits import behaviour as behaviour_scores
from lens_slt.circuits.trial import Trial
from lens_slt.report import page
from lens_slt.report.plots_circuits import plot_circuit, plot_evidence, plot_faithfulness
from lens_slt.report.plots_heads import plot_behaviour
from lens_slt.report.rules import rules
from lens_slt.report.sections_structure import MODES
from lens_slt.report.tables import few_words
from lens_slt.report.tables_circuits import behaviour_table, evidence_table, verdicts_table
from lens_slt.report.tables_modes import NAMES
from lens_slt.sampling.health import HEALTHY
from lens_slt.structure.overview import View

RELIABLE = 0.5  # split-half
CLEAR = 0.05  # of q


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
    else:
        parts.append(page.paragraph("No circuit was proposed: no head stands out on any pattern."))
    if behaviour is not None:
        parts.append(page.figure(plot_behaviour(behaviour)))
        parts.append(
            page.fold("The same scores as a table", page.table(behaviour_table(behaviour, llc)))
        )
        kinds = rules(behaviour_scores.__doc__)
        for name, rule in rules(behaviour_scores.__doc__, table=1).items():
            kinds[f"type: {name}"] = rule
        parts.append(page.fold("What the scores and the types are", page.pairs(kinds)))
    return "".join(parts)


def _trial(trial: Trial, behaviour: xr.Dataset | None) -> str:
    parts = [
        page.heading(f"{trial.verdict.capitalize()}: {trial.hypothesis}"),
        page.bullets(trial.reasons),
        page.figure(plot_circuit(trial, behaviour)),
        page.figure(plot_evidence(trial)),
        page.fold("The evidence as a table", page.table(evidence_table(trial))),
    ]
    if trial.curve is not None:
        parts.append(page.figure(plot_faithfulness(trial)))
    return "".join(parts)


def disagreements_section(
    llc: xr.Dataset | None, views: Mapping[str, View], trials: Sequence[Trial]
) -> str:
    """What on the page speaks against something else on it."""
    parts = [
        page.heading(str(trial.hypothesis)) + page.bullets(trial.disagreements)
        for trial in trials
        if trial.disagreements
    ]
    lines = []
    for key, view in views.items():
        weak = view.matrix["component"].values[view.matrix["split_half"].values < RELIABLE]
        if len(weak):
            lines.append(
                f"{NAMES[key]}: columns whose split-half reliability is below {RELIABLE}: "
                f"{few_words([str(name) for name in weak])}"
            )
        noise = view.modes["mode"].values[view.modes["verdict"].values == "may be noise"]
        if len(noise):
            lines.append(
                f"{NAMES[key]}: modes that may be noise: {', '.join(str(int(m)) for m in noise)}"
            )
    if len(views) > 1:
        lines += _modes_that_differ(views)
    if llc is not None:
        names = llc["component"].values[llc["verdict"].values != HEALTHY]
        if len(names):
            lines.append(f"Not healthy: {few_words([str(name) for name in names])}")
    if lines:
        parts.append(page.heading("Draws and matrices") + page.bullets(lines))
    nothing = "Nothing on this page disagrees with anything else on it."
    return "".join(parts) or page.paragraph(nothing)


def _modes_that_differ(views: Mapping[str, View]) -> list[str]:
    """Patterns that a mode of one matrix tells apart clearly and no mode of the other does."""
    clear = {}
    for key, view in views.items():
        strong = (abs(view.by_mode["auc"] - 0.5) > 0.1) & (view.by_mode["q"] < CLEAR)
        strong = strong.isel(mode=slice(0, MODES)).any("mode")
        clear[key] = set(strong["pattern"].values[strong.values])
    lines = []
    for key, found in clear.items():
        for other, there in clear.items():
            only = sorted(str(name) for name in found - there)
            if key != other and only:
                lines.append(
                    f"{NAMES[key]} has modes that tell {', '.join(only)} from other tokens (AUC "
                    f"beyond 0.4 to 0.6), {NAMES[other]} has none among its first {MODES}"
                )
    return lines
