"""The tests that a circuit hypothesis has to pass, each as a function that returns evidence.

Effects are in nats of loss on the pattern's tokens (or in units of the metric, positive where the
model does worse), or in shares of what all components together bring to them. Intervals are 95 %
and, like p-values, take sequences as the unit; p-values are one-sided, against no effect.
``null_share`` is the share of random sets that reach the effect. It is no p-value: the sets share
no part with the circuit, because in a circuit that works in series any part of it does what the
whole does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from lens_slt.arrays import FloatArray
from lens_slt.circuits.case import Case
from lens_slt.circuits.hypothesis import LOGITS, Edge
from lens_slt.circuits.interventions import outside_of
from lens_slt.circuits.null_sets import (
    NullSets,
    all_paths,
    kinds_in_words,
    other_paths,
    random_paths,
    same_shape,
)
from lens_slt.circuits.paths import as_read
from lens_slt.circuits.runs import Losses
from lens_slt.circuits.statistics import Measured, hsic_p, p_in_any
from lens_slt.statistics import ENDS, SIGNIFICANT

Outcome = Literal["held", "failed", "undecided", "noted"]

LEAST_SHARE = 0.1  # of the pattern's loss that a sufficient circuit recovers
NAN = float("nan")


@dataclass(frozen=True)
class Evidence:
    """One test of one part of a hypothesis.

    ``part`` is ``circuit``, a component or an edge. ``null_low`` to ``null_high`` holds the middle
    95 % of what the null gives. ``votes`` says whether the verdict rests on it. ``looks`` is how
    many times its own p-value ``p`` is, as it was looked at in several contexts.
    """

    test: str
    part: str
    effect: float
    low: float = NAN
    high: float = NAN
    unit: str = "nats"
    p: float = NAN
    corrected_p: float = NAN
    null: str = ""
    null_low: float = NAN
    null_high: float = NAN
    null_share: float = NAN
    least: float = NAN
    outcome: Outcome = "noted"
    votes: bool = False
    words: str = ""
    looks: float = 1.0


def necessity(case: Case) -> list[Evidence]:
    """Ablating the circuit hurts the pattern's tokens more than matched others, and than random
    sets of components do."""
    found = case.contrast.matched(case.rise(case.nodes))
    sets = same_shape(case.nodes, case.runs, case.n_null, case.seed)
    null = np.array([case.contrast.value(case.rise(members)) for members in sets.members])
    words = case.contrast.words
    return [_against(case, "necessity", "circuit", found, null, sets, case.least_effect, words)]


def sufficiency(case: Case) -> list[Evidence]:
    """What the hypothesis names recovers the pattern's loss, more than random sets do.

    A hypothesis with edges speaks about paths of their kinds (from heads into heads through K, from
    heads into MLPs, …): every path of these kinds is ablated, except its own. One without edges,
    or with none but to the logits, speaks about its components: everything else is ablated. The
    effect is the share of the loss that comes back.

    Where edges are at roles, paths of their kinds are apart by role: a path that is named at S2 is
    ablated everywhere else, and compared with other paths at S2.
    """
    if not case.kinds:
        return [replace(faithfulness(case)[0], test="sufficiency", votes=True)]
    mine = case.own_paths
    empty = case.along(frozenset())
    named = {
        as_read(edge, case.runs.adapted)
        for edge in case.hypothesis.edges if edge.target != LOGITS
    }  # fmt: skip
    sets = random_paths(named, all_paths(case.runs, case.kinds), case.n_null, case.seed)

    def recovered(edges: frozenset[Edge]) -> Losses:
        return empty - case.along(case.in_pieces(edges))

    what = f"with all other paths {kinds_in_words(case.kinds)} ablated"
    return [_recovery(case, "sufficiency", recovered, mine, sets, empty, what)]


def faithfulness(case: Case) -> list[Evidence]:
    """The share of the pattern's loss that the components alone recover, all others ablated.

    It votes only where a hypothesis has no edges: heads that every token needs, and that no
    hypothesis about one path names, are missing here.
    """
    empty = case.kept(())
    sets = same_shape(case.nodes, case.runs, case.n_null, case.seed)

    def recovered(nodes: frozenset[str]) -> Losses:
        return empty - case.kept(nodes)

    what = "with all other components ablated"
    found = _recovery(case, "faithfulness", recovered, case.nodes, sets, empty, what)
    return [replace(found, votes=False)]


ALONE = "in the circuit alone"  # a context of components


def minimality(case: Case) -> list[Evidence]:
    """Every component is needed: without it, in some context, the pattern suffers.

    Contexts: the whole model, the model without one other component of the circuit (a redundant
    one hides what this one does), without all others, and the circuit alone. The clearest effect
    counts, its p-value corrected for the choice. The null, where that is the circuit alone: what a
    random component outside brings to it (Shi et al. 2410.13032); it does not vote.
    """
    parts = case.hypothesis.components
    base_kept = case.kept(case.nodes)
    others = sorted(outside_of(case.nodes, case.runs, case.outside))
    if len(others) > case.n_null:  # it is only noted, and each is a run
        chosen = np.random.default_rng(case.seed).choice(len(others), case.n_null, replace=False)
        others = [others[i] for i in sorted(chosen)]
    inflated = np.array(
        [
            case.contrast.on_pattern(base_kept - case.kept(case.nodes | {node})).value
            for node in others
        ]
    )
    found = []
    for part in parts:
        mine = case.of(part)
        contexts = {case.of(other): f"without {other}" for other in parts if other != part}
        contexts[case.nodes - mine] = "without the rest of the circuit"
        contexts[frozenset()] = "in the whole model"
        estimates = [
            (case.contrast.matched(case.rise(given | mine) - case.rise(given)), words)
            for given, words in contexts.items()
        ]
        alone = case.contrast.on_pattern(case.kept(case.nodes - mine) - base_kept)
        estimates.append((alone, ALONE))
        best, looks, outcome, words = _in_contexts(estimates, case.least_effect, 0.0)
        null = inflated if words == ALONE else inflated[:0]  # effects elsewhere are others
        null_words = f"each of {len(null)} components added to the circuit" if len(null) else ""
        share = _reached(best.value, null)
        found.append(
            _evidence("minimality", part, best, outcome, null, null_words, share,
                      case.least_effect, f"clearest {words}", case.unit, looks)
        )  # fmt: skip
    return found


def edges(case: Case) -> list[Evidence]:
    """Ablating an edge's path alone hurts the pattern more than other paths between its layers.

    As for components, another edge of the hypothesis may do the same: each is tested in the whole
    model, with one other edge ablated, and with all others. The null paths are ablated in the
    context that shows the edge's effect best.
    """
    parts = case.hypothesis.edges
    found = []
    for edge in parts:
        contexts = {frozenset([other]): f"without {other}" for other in parts if other != edge}
        contexts[frozenset(parts) - {edge}] = "without the other edges"
        contexts[frozenset()] = "in the whole model"
        estimates = [
            (case.contrast.matched(case.beyond(given, edge)), words)
            for given, words in contexts.items()
        ]
        at = _clearest(estimates)
        clearest = list(contexts)[at]
        sets = other_paths(edge, parts, case.runs, case.n_null, case.seed)
        # In the same context, or other edges would be compared with what they do in another.
        null = np.array([case.contrast.value(case.beyond(clearest, *one)) for one in sets.members])
        share = _reached(estimates[at][0].value, null)
        best, looks, outcome, words = _in_contexts(estimates, case.least_effect, share)
        found.append(
            _evidence("edge", str(edge), best, outcome, null, sets.words, share,
                      case.least_effect, f"clearest {words}", case.unit, looks)
        )  # fmt: skip
    return found


def self_repair(case: Case) -> list[Evidence]:
    """Joint ablation against the sum of single ones: above it, parts stand in for each other."""
    parts = case.hypothesis.components
    if len(parts) < 2:
        return []
    singles = np.sum([case.rise(case.of(part)) for part in parts], axis=0)
    found = case.contrast.on_pattern(case.rise(case.nodes) - singles)
    if found.low > 0:
        words = "more than the sum: parts stand in for each other"
    elif found.high < 0:
        words = "less than the sum: parts work in series"
    else:
        words = "no different from the sum"
    what = f"joint ablation − sum of single ones: {words}"
    return [_noted("self-repair", found, what, case.unit)]


def completeness(case: Case) -> list[Evidence]:
    """What the rest of the model does without the circuit, and whether circuit and model agree.

    Equivalence (sign test over sequences: is the circuit alone as often better as worse than the
    model?) and independence (HSIC between losses of the model without the circuit and of the whole
    model) follow Shi et al. 2410.13032. They are demanding: published circuits fail them.
    """
    contrast, runs = case.contrast, case.runs
    whole = case.kept(()) - runs.base
    found = []
    if contrast.on_pattern(whole).low > 0:
        without = case.rise(case.nodes)
        left = contrast.share(whole - without, whole)
        words = "share of the pattern's loss that the rest of the model keeps low"
        found.append(_noted("completeness", left, words, "share"))
    alone, model = (contrast.per_sequence(x) for x in (case.kept(case.nodes), runs.base))
    differing = alone != model  # the sign test leaves ties out
    better, n = int((alone < model).sum()), int(differing.sum())
    p = float(stats.binomtest(better, n).pvalue) if n else 1.0
    words = "differs from the model" if p < SIGNIFICANT else "not told from the model"
    found.append(
        Evidence(
            "equivalence", "circuit", better / n if n else 0.5, unit="of sequences", p=p,
            words="of the sequences that differ, those on which the circuit alone does better than "
            f"the model: {words}",
        )
    )  # fmt: skip
    rest = contrast.per_sequence(runs.base + case.rise(case.nodes))
    p = hsic_p(rest, model, seed=case.seed)
    words = "the rest still depends on the pattern" if p < SIGNIFICANT else "no dependence seen"
    correlation = float(np.corrcoef(rest, model)[0, 1])
    found.append(
        Evidence(
            "independence", "circuit", correlation, unit="correlation", p=p,
            words=f"losses of the model without the circuit and of the model (HSIC): {words}",
        )
    )  # fmt: skip
    return found


def _recovery(
    case: Case, test: str, recovered: Callable[[frozenset], Losses], mine: frozenset,
    sets: NullSets, empty: Losses, what: str,
) -> Evidence:  # fmt: skip
    """Share of what was lost on the pattern's tokens that comes back, against random sets."""
    whole = empty - case.runs.base
    gap = case.contrast.on_pattern(whole)
    if not gap.low > 0:
        words = f"nothing to recover: these tokens lose {gap.value:.2f} {case.unit} {what}"
        return Evidence(test, "circuit", NAN, unit="share", outcome="undecided", votes=True,
                        words=words)  # fmt: skip
    share = case.contrast.share(recovered(mine), whole)
    null = np.array([case.contrast.share_value(recovered(one), whole) for one in sets.members])
    words = f"of {gap.value:.2f} {case.unit}, {what}"
    found = _against(case, test, "circuit", share, null, sets, LEAST_SHARE, words, "share")
    if sets.members or found.outcome == "failed":
        return found
    # Nothing was left out, so nothing can be missing: the other tests decide.
    return replace(found, outcome="held", words=f"{words}; it names all there are")


def _against(
    case: Case,
    test: str,
    part: str,
    found: Measured,
    null: FloatArray,
    sets: NullSets,
    least: float,
    words: str,
    unit: str = "",
) -> Evidence:
    share = _reached(found.value, null)
    outcome = _outcome(found, least, share)
    unit = unit or case.unit
    return _evidence(test, part, found, outcome, null, sets.words, share, least, words, unit)


def _evidence(
    test: str, part: str, found: Measured, outcome: Outcome, null: FloatArray, null_words: str,
    null_share: float, least: float, words: str, unit: str, looks: float = 1.0,
) -> Evidence:  # fmt: skip
    low, high = np.quantile(null, ENDS) if len(null) else (NAN, NAN)
    return Evidence(
        test, part, found.value, found.low, found.high, unit, found.p, NAN, null_words,
        float(low), float(high), null_share, least, outcome, True, words, looks,
    )  # fmt: skip


def _noted(test: str, found: Measured, words: str, unit: str) -> Evidence:
    return Evidence(test, "circuit", found.value, found.low, found.high, unit, words=words)


def _reached(value: float, null: FloatArray) -> float:
    return float((null >= value).mean()) if len(null) else NAN


def _outcome(found: Measured, least: float, null_share: float) -> Outcome:
    """Before correction: see :func:`lens_slt.circuits.trial.cross_check` for the rule."""
    if found.high < least:
        return "failed"
    beats = not null_share > SIGNIFICANT  # also where there is nothing left to compare with
    return "held" if found.value >= least and found.p < SIGNIFICANT and beats else "undecided"


def _clearest(estimates: list[tuple[Measured, str]]) -> int:
    """Which context shows the effect best: that with the highest lower limit."""
    lows = [np.nan_to_num(found.low, nan=-np.inf) for found, _ in estimates]
    return int(np.argmax(lows))


def _in_contexts(
    estimates: list[tuple[Measured, str]], least: float, null_share: float
) -> tuple[Measured, float, Outcome, str]:
    """The context that shows the effect best, its p-value corrected for that choice, and how much.

    A part has failed only where no context leaves room for the least effect.
    """
    at = _clearest(estimates)
    own, words = estimates[at]
    best = replace(own, p=p_in_any([found for found, _ in estimates], at))
    looks = best.p / own.p if own.p > 0 else 1.0
    outcome = _outcome(best, least, null_share)
    if outcome == "failed" and not all(found.high < least for found, _ in estimates):
        outcome = "undecided"
    return best, looks, outcome, words
