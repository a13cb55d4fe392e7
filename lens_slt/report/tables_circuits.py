"""Trials of circuits as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from rich.table import Table
from rich.text import Text

from lens_slt.circuits.evidence import Evidence
from lens_slt.circuits.trial import Trial, compare_trials
from lens_slt.circuits.verdict import p_words
from lens_slt.report.plain_table import PlainTable, cell
from lens_slt.schema import require

SHORT = {  # the scores that a terminal has room for
    "previous_token": "prev.", "current_token": "curr.", "first_token": "first",
    "prefix_matching": "prefix", "induction": "induct.", "ngram": "ngram", "copying": "copying",
}  # fmt: skip
STYLES = {
    "supported": "bold green", "contradicted": "bold red", "undecided": "bold yellow",
    "held": "green", "failed": "red", "noted": "",
}  # fmt: skip

NOTED = {"held": "noted: for", "failed": "noted: against"}  # outcomes without a vote


def verdicts_table(trials: Sequence[Trial]) -> Table:
    """One row per hypothesis, the best first."""
    units = dict.fromkeys(trial.settings["units"] for trial in trials)
    table = PlainTable(
        "Circuit hypotheses on trial",
        f"necessity: {', '.join(units)} that ablating the circuit costs the pattern's tokens more "
        "than matched others; sufficiency: share of the pattern's loss that comes back with all "
        "other paths through the inputs its edges name ablated; alone: with all other heads "
        "ablated",
    )
    for name, justify in (("verdict", "left"), ("hypothesis", "left"), ("necessity", "right")):
        table.add_column(name, justify=justify)
    table.add_column("sufficiency", justify="right")
    table.add_column("alone", justify="right")
    for row in compare_trials(trials).itertuples():
        table.add_row(
            styled(row.verdict), row.hypothesis, _number(row.necessity),
            _number(row.sufficiency), _number(row.faithfulness),
        )  # fmt: skip
    return table


def evidence_table(trial: Trial, votes: bool | None = None) -> Table:
    """One row per piece of evidence of one trial: of all, what votes, or what is only noted."""
    titles = {None: "", True: ": what votes", False: ": noted, without a vote"}
    table = PlainTable(
        f"{trial.hypothesis} is {trial.verdict}{titles[votes]}",
        "effect with 95 % interval over sequences; p: corrected; null: middle 95 % of what sets of "
        "other components, or other paths, give, and how many of them reach the effect",
    )
    table.add_column("test", min_width=12)
    table.add_column("part", min_width=11)
    for name in ("effect", "p", "null", "reach"):
        table.add_column(name, justify="right")
    table.add_column("outcome")
    shown = [one for one in trial.evidence if votes is None or one.votes == votes]
    for one in sorted(shown, key=lambda one: not one.votes):
        corrected = one.corrected_p if np.isfinite(one.corrected_p) else one.p
        null = "" if np.isnan(one.null_low) else f"{one.null_low:.2f}…{one.null_high:.2f}"
        reach = "" if np.isnan(one.null_share) else f"{100 * one.null_share:.0f} %"
        table.add_row(
            one.test,
            one.part,
            effect_words(one),
            "" if np.isnan(corrected) else p_words(corrected),
            null,
            reach,
            outcome_words(one),
        )
    return table


def behaviour_table(behaviour: xr.Dataset, llc: xr.Dataset | None = None) -> Table:
    """One row per head: its type, its scores, and its rLLC if ``llc`` is given."""
    behaviour = require(behaviour, "behaviour_scores", argument="behaviour")
    table = PlainTable(
        "Heads by behaviour",
        "mean attention to the previous, current, first token, and (on repeated random tokens) to "
        "what followed earlier; induction, ngram: logits it adds to the right token; copying: −1…1",
    )
    table.add_column("head", no_wrap=True)
    table.add_column("type", no_wrap=True)
    shown = [name for name in SHORT if np.isfinite(behaviour[name].values).any()]
    for name in shown:
        table.add_column(SHORT[name], justify="right", no_wrap=True)
    if llc is not None:
        table.add_column("λ̂", justify="right")
    for name in behaviour["component"].values:
        row = behaviour.sel(component=name)
        cells = [f"{float(row[score]):.2f}" for score in shown]
        if llc is not None:
            there = name in llc["component"].values
            cells.append(f"{float(llc['llc'].sel(component=name)):.2f}" if there else "–")
        table.add_row(str(name), str(row["head_type"].values), *cells)
    return table


def styled(word: str) -> Text:
    """A verdict or an outcome in its colour."""
    return cell(word, STYLES.get(word, ""))


def outcome_words(one: Evidence) -> Text:
    """An outcome in its colour; of what has no vote, only what it speaks for."""
    if one.votes:
        return styled(one.outcome)
    return cell(NOTED.get(one.outcome, "noted"))


def effect_words(one: Evidence) -> str:
    """An effect with its unit and interval."""
    unit = "" if one.unit in ("share", "score", "correlation", "loading") else f" {one.unit}"
    if np.isnan(one.effect):
        return "–"
    if np.isnan(one.low):
        return f"{one.effect:.2f}{unit}"
    return f"{one.effect:.2f}{unit} ({one.low:.2f}…{one.high:.2f})"


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"
