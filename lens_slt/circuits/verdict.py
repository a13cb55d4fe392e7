"""The rule that makes a verdict of the tests that vote, and its reasons in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.stats import norm

from lens_slt.circuits.evidence import Evidence
from lens_slt.statistics import SIGNIFICANT

VERDICTS = ("supported", "contradicted", "undecided")
HOPELESS = 0.3  # p-values from which nothing can be said about a longer trial


def after_correction(one: Evidence, corrected_p: float) -> Evidence:
    """With its p-value corrected over the voting tests of its trial."""
    lost = one.outcome == "held" and not corrected_p < SIGNIFICANT
    return replace(one, corrected_p=corrected_p, outcome="undecided" if lost else one.outcome)


def verdict_of(voting: list[Evidence]) -> tuple[str, list[str]]:
    """The verdict by the rule that :func:`lens_slt.cross_check` states, and its reasons."""
    failed = [one for one in voting if one.outcome == "failed"]
    open_ = [one for one in voting if one.outcome == "undecided"]
    if failed:
        return "contradicted", [_reason(one, voting) for one in failed]
    if open_:
        return "undecided", [_reason(one, voting) for one in open_]
    return "supported", [_reason(one, voting) for one in voting[:2]] + [
        f"all {len(voting) - 2} tests of single components and edges hold"
    ]


def _reason(one: Evidence, voting: list[Evidence]) -> str:
    name = one.test if one.part == "circuit" else f"{one.test} of {one.part}"
    effect = f"{one.effect:.2f} [{one.low:.2f}, {one.high:.2f}] {one.unit}"
    if not np.isfinite(one.effect):
        return f"{name}: {one.words}"
    if one.outcome == "held":
        return f"{name} holds: {effect}, p {p_words(one.corrected_p)}"
    if one.outcome == "failed":
        return f"{name} fails: {effect}, below {one.least:g}"
    why = []
    if one.effect < one.least:
        why.append(f"below {one.least:g}, but the interval is not")
    if not one.corrected_p < SIGNIFICANT:
        why.append(f"corrected p {p_words(one.corrected_p)}{_what_would_tell(one, voting)}")
    if one.test != "minimality" and not one.null_share <= SIGNIFICANT:
        share = "" if np.isnan(one.null_share) else f"{100 * one.null_share:.0f} % of "
        why.append(f"{share}{one.null}{' reach it' if share else ''}")
    return f"{name} is undecided: {effect}; {'; '.join(why)}"


def _what_would_tell(one: Evidence, voting: list[Evidence]) -> str:
    """How many more sequences would make an effect of this size significant, in words.

    They raise the t of the effect; what several contexts and tests ask of it stays.
    """
    own = one.p / one.looks
    if not 0 < own < HOPELESS or one.effect < one.least:
        return ""
    tests = sum(other.p >= one.p for other in voting)  # Holm's factor
    times = float((norm.isf(SIGNIFICANT / (tests * one.looks)) / norm.isf(own)) ** 2)
    return f" ({max(times, 1.1):.1f} times as many sequences would tell, if it stays as it is)"


def p_words(p: float) -> str:
    """A p-value as text."""
    if np.isnan(p):
        return "unknown"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
