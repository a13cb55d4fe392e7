"""The first screen of a report: what was measured, whether to believe it, what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.circuits.evidence import Evidence
from lens_slt.circuits.hypothesis import LOGITS
from lens_slt.circuits.trial import Trial, compare_trials
from lens_slt.circuits.verdict import VERDICTS
from lens_slt.models.names import is_head, is_mlp
from lens_slt.observables.susceptibility import FULL
from lens_slt.report import page
from lens_slt.report.drawing import circuit_drawing
from lens_slt.report.ranking import ranking
from lens_slt.report.results_said import clauses
from lens_slt.report.run_results import RunResults
from lens_slt.report.sections_results import titles_of
from lens_slt.report.tables import few_words, with_error
from lens_slt.sampling.certificate import CERTIFIED, LARGEST_SHARE, allowed_bias
from lens_slt.sampling.health import HEALTHY
from lens_slt.sampling.result import settings_of
from lens_slt.text import html_text

TOP = 3  # heads that are named
DECIDES = {"supported": "held", "contradicted": "failed", "undecided": "undecided"}
CONTROL = (
    "This is the control, nβ = 0: the prior alone. λ̂ is 0 by construction, and structure that "
    "shows here is none of the model's."
)
QUESTIONS = {  # what the number that decides is
    "necessity": "is what ablating the circuit costs {pattern} tokens beyond matched others",
    "sufficiency": "of the {pattern} tokens' loss comes back with all other {others} ablated",
    "minimality": "is what {part} brings where it is needed most",
    "edge": "is what ablating the path {part} alone costs {pattern} tokens beyond matched others",
}


def run_screen(found: RunResults, llc: xr.Dataset | None, about: Mapping[str, Any]) -> str:
    """Three sentences about a run, and its best circuit with the number that decides."""
    best = _best(found.trials)
    if found.draws is not None and llc is not None:
        first, second = _sampled(found.draws, llc, about), believed(llc)
        if settings_of(found.draws).n_beta == 0:
            second, llc = CONTROL, None
    elif found.trials:
        first, second = _tried(found.trials)
    else:
        titles = [title.lower() for title in titles_of(found.others)]
        first = f"Measured: {in_series(titles) or 'where heads attend'}."
        second = _certified(found.others)
    shown = "" if best is None else _outcome(best, found.behaviour)
    said = clauses(found.others)
    return screen(first, second, _found(found.trials, best, llc, said), shown)


def _certified(results: Sequence[xr.Dataset]) -> str:
    """How many numbers of results are certified, where they say so."""
    words = [one["certificate"].values.ravel() for one in results if "certificate" in one]
    rests = "each section says what its numbers rest on."
    if not words:
        return f"No number here has a certificate of its own: {rests}"
    every = np.concatenate(words)
    return f"{int((every == CERTIFIED).sum())} of {len(every)} numbers are certified: {rests}"


def screen(measured: str, believe: str, found: str, shown: str) -> str:
    """The pieces of a first screen together."""
    sentences = page.paragraph(measured) + page.paragraph(believe) + page.paragraph(found)
    return f'<div class="verdict">{sentences}</div>{shown}'


def outcome(verdict: str, title: str, number: str, words: str, drawing: str) -> str:
    """A circuit, drawn, with the number that decides about it."""
    return (
        f'<div class="outcome is-{html_text(verdict)}">'
        f"{page.heading(title, level=2)}"
        f'<p class="decides"><b>{html_text(number)}</b> {html_text(words)}</p>{drawing}</div>'
    )


def counted(names: Sequence[str]) -> str:
    """How many components of which kind, such as "16 heads and the whole model"."""
    n_heads, n_mlps = sum(map(is_head, names)), sum(map(is_mlp, names))
    whole = int(FULL in names)
    rest = len(names) - n_heads - n_mlps - whole
    parts = [
        f"{n} {word}{'s' * (n > 1)}"
        for n, word in ((n_heads, "head"), (n_mlps, "MLP"), (rest, "other component"))
        if n
    ]
    return in_series([*parts, *["the whole model"] * whole])


def in_series(words: Sequence[str]) -> str:
    """Words with commas and "and"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def believed(llc: xr.Dataset) -> str:
    """Which numbers can be believed, by their certificates and health."""
    names, verdicts = llc["component"].values, llc["verdict"].values
    n = len(names)
    bad = [
        f"{name} ({verdict})"
        for name, verdict in zip(names, verdicts, strict=True)
        if verdict != HEALTHY
    ]
    rhat = llc["rhat"].values
    worst = f"largest R̂ {np.nanmax(rhat):.2f}" if np.isfinite(rhat).any() else "R̂ not defined"
    if not bad:
        every = "the number is" if n == 1 else f"all {n} numbers are"
        return f"Believe it: {every} certified and healthy ({_allowed(llc)}{worst})."
    certified = int((llc["certificate"] == CERTIFIED).sum())
    if len(bad) == n:
        return (
            f"Do not believe the values: none of {n} is healthy, {certified} are certified "
            f"({worst}): {few_words(bad[:TOP])}{' …' if n > TOP else ''}."
        )
    more = f" and {len(bad) - TOP} more" if len(bad) > TOP else ""
    return (
        f"Believe {n - len(bad)} of {n} numbers, which are certified and healthy ({worst}), but "
        f"not {few_words(bad[:TOP])}{more}."
    )


def held_tightest(llc: xr.Dataset) -> str:
    """Which heads that can be believed are held the tightest; empty where there are no heads."""
    places = ranking(llc)
    if not places:
        return ""
    healthy = set(llc["component"].values[llc["verdict"].values == HEALTHY])
    sure = [place for place in places if place.name in healthy]
    if not sure:
        return "which heads matter cannot be said, none is healthy"
    whole = f"{len(places)} heads"
    if len(sure) < len(places):  # one that is not believed may be held tighter
        whole = f"the {len(sure)} to believe of {whole}"
    top = sure[:TOP]
    named = in_series([f"{place.name} (λ̂ {with_error(place.value, place.error)})" for place in top])
    return f"{named} {'is' if len(top) == 1 else 'are'} held the tightest of {whole}"


def deciding(trial: Trial) -> Evidence | None:
    """The first piece of evidence that made the verdict what it is."""
    wanted = DECIDES[trial.verdict]
    return next((e for e in trial.evidence if e.votes and e.outcome == wanted), None)


def _allowed(llc: xr.Dataset) -> str:
    """The largest bias that a defect allows, where that is what certifies all."""
    share = allowed_bias(llc["defect_share"].values, llc["defect_share_se"].values)
    if not np.isfinite(share).all() or share.max() > LARGEST_SHARE:
        return ""
    return f"no λ̂ is off by more than {100 * share.max():.2g} % by its defect; "


def _sampled(draws: xr.DataTree, llc: xr.Dataset, about: Mapping[str, Any]) -> str:
    s, data = settings_of(draws), about.get("data", "")
    size = str(draws.attrs.get("tokens", ""))
    tokens = " of ".join(filter(None, [size and f"{size} tokens", str(data)])) or "its tokens"
    more = "" if s.least_draws == s.most_draws else " or more"
    return (
        f"Measured: the refined LLC λ̂ of {counted([str(n) for n in llc['component'].values])} of "
        f"{draws.attrs['model']}, by {s.chains} chains of {s.least_draws}{more} draws each at "
        f"nβ {s.n_beta:g}, γ {s.gamma:g} on {tokens}."
    )


def _tried(trials: Sequence[Trial]) -> tuple[str, str]:
    s = trials[0].settings
    n = len(trials)
    return (
        f"Measured: what ablations cost, for {n} circuit{'s' * (n > 1)} of {s['model']} on trial "
        f"with {s['how']} ablation on {s['sequences']} sequences of {s['length']} tokens.",
        "There is no refined LLC here to certify: a verdict rests on its tests alone, whose 95 % "
        "intervals cover other sequences of this kind of text.",
    )


def _best(trials: Sequence[Trial]) -> Trial | None:
    """The trial that comes first when they are compared."""
    if not trials:
        return None
    first = compare_trials(trials).iloc[0]
    wanted = first["hypothesis"], first["verdict"]
    return next(t for t in trials if (str(t.hypothesis), t.verdict) == wanted)


def _found(
    trials: Sequence[Trial], best: Trial | None, llc: xr.Dataset | None, said: Sequence[str]
) -> str:
    """Which heads matter and which circuit held, and what other results say."""
    parts = []
    if llc is not None and (tightest := held_tightest(llc)):
        parts.append(tightest)
    if best is not None and best.verdict == "supported":
        more = sum(t.verdict == "supported" for t in trials) - 1
        parts.append(
            f"the circuit {best.hypothesis.words} held on trial for {best.hypothesis.pattern}"
            + (f", as did {more} more of {len(trials)}" if more else "")
        )
    elif trials:
        counts = {word: sum(t.verdict == word for t in trials) for word in VERDICTS}
        verdicts = in_series([f"{n} {word}" for word, n in counts.items() if n])
        parts.append(f"no circuit held on trial ({verdicts})")
    elif llc is not None and not said:
        parts.append("no circuit was on trial here")
    elif not said:
        parts.append("see the sections")
    return f"Found: {', and '.join([*parts, *said])}."


def _outcome(trial: Trial, behaviour: xr.Dataset | None) -> str:
    pattern, one = trial.hypothesis.pattern, deciding(trial)
    number, words = "No number", "decides: no test could be made"
    if one is not None and not np.isfinite(one.effect):
        words = f"decides: {one.test} of {one.part}, {one.words}"
    elif one is not None:
        number = _amount(one.effect, one.unit)
        # Without edges between nodes a hypothesis speaks of its components alone.
        joined = any(edge.target != LOGITS for edge in trial.hypothesis.edges)
        others = "paths" if joined else "components"
        question = QUESTIONS[one.test].format(pattern=pattern, part=one.part, others=others)
        words = f"({_bare(one.low, one.unit)} to {_amount(one.high, one.unit)}) {question}"
        if np.isfinite(one.least):
            needed = "was" if one.outcome == "held" else "is"
            words += f"; at least {_amount(one.least, one.unit)} {needed} needed"
    title = f"{trial.verdict.capitalize()}: {trial.hypothesis.words}, for {pattern}"
    return outcome(trial.verdict, title, number, words, circuit_drawing(trial, behaviour))


def _amount(value: float, unit: str) -> str:
    """An effect with its unit."""
    return f"{_bare(value, unit)} {'%' if unit == 'share' else unit}"


def _bare(value: float, unit: str) -> str:
    return f"{100 * value:.0f}" if unit == "share" else f"{value:.2f}"
