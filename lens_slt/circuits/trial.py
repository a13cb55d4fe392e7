"""Put circuit hypotheses on trial: every test, one table, a verdict by a rule stated beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import pandas as pd
import xarray as xr

from lens_slt.arguments import integer, number, typed
from lens_slt.circuits import evidence as tests
from lens_slt.circuits.case import Case, check_case
from lens_slt.circuits.composition import composition_scores
from lens_slt.circuits.evidence import NAN, Evidence
from lens_slt.circuits.hypothesis import CircuitHypothesis
from lens_slt.circuits.neighbours import neighbours
from lens_slt.circuits.pattern_masks import pattern_masks
from lens_slt.circuits.replacements import Ablation
from lens_slt.circuits.runs import Runs
from lens_slt.circuits.slt_evidence import SltEvidence, slt_evidence
from lens_slt.circuits.statistics import Contrast
from lens_slt.circuits.trial_cost import n_runs
from lens_slt.circuits.trial_notes import (
    Disagreement,
    composes,
    composition_evidence,
    disagreements,
    faithfulness_of,
    summed_up,
)
from lens_slt.circuits.verdict import after_correction, verdict_of
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.progress import track
from lens_slt.schema import require
from lens_slt.statistics import holm
from lens_slt.torch_state import plain_torch

LEAST_EFFECT = 0.05  # nats
SHOWN_SETTINGS = (
    "how", "metric", "units", "least_effect", "n_null", "sequences", "length", "model", "weights",
)  # fmt: skip
VOTING = (tests.necessity, tests.sufficiency, tests.minimality, tests.edges)
N_NULL = 60  # sets of others, or other paths, that a circuit is compared with


@dataclass(frozen=True)
class Trial:
    """A hypothesis, its verdict with reasons, and every piece of evidence.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> mine = ls.circuit("L1H2", pattern="induction")
        >>> trial = ls.cross_check(model, text, mine, n_null=10, verdict_only=True, progress=False)
        >>> trial.verdict, sorted(set(trial.table()["test"]))
        ('contradicted', ['sufficiency'])
    """

    hypothesis: CircuitHypothesis
    verdict: str  # supported, contradicted or undecided
    reasons: tuple[str, ...]
    disagreements: tuple[Disagreement, ...]
    evidence: tuple[Evidence, ...]
    curve: xr.Dataset | None  # faithfulness of growing circuits
    settings: dict[str, Any]

    def __str__(self) -> str:
        lines = [f"{self.verdict.upper()}: {self.hypothesis}", *(f"  {r}" for r in self.reasons)]
        notes = (f"  disagreement: {words}" for words in summed_up(self.disagreements))
        return "\n".join([*lines, *notes])

    def table(self) -> pd.DataFrame:
        """One row per piece of evidence."""
        return pd.DataFrame([asdict(one) for one in self.evidence])

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not a number becomes None."""
        return {
            "hypothesis": self.hypothesis.as_dict(), "verdict": self.verdict,
            "reasons": list(self.reasons),
            "disagreements": [asdict(one) for one in self.disagreements],
            "evidence": [_plain(asdict(one)) for one in self.evidence], "settings": self.settings,
            "curve": None if self.curve is None else _plain(self.curve.to_dict()),
        }  # fmt: skip


class TrialOptions(TypedDict, total=False):
    """The options of :func:`cross_check`, for type checkers."""

    patterns: Any
    slt: SltEvidence | None
    composition: xr.Dataset | None
    roles: Mapping[str, Any] | None
    how: str | Ablation
    metric: Any
    least_effect: float
    n_null: int
    n_bootstrap: int
    weights: Any
    mask: Any
    pad_id: int | None
    seed: int
    verdict_only: bool
    progress: bool


@overload
def cross_check(
    model: Any, tokens: Any, hypothesis: CircuitHypothesis, **options: Unpack[TrialOptions]
) -> Trial: ...
@overload
def cross_check(
    model: Any, tokens: Any, hypothesis: Sequence[CircuitHypothesis],
    **options: Unpack[TrialOptions],
) -> list[Trial]: ...  # fmt: skip
@typed
@plain_torch
def cross_check(
    model: Any,
    tokens: Any,
    hypothesis: CircuitHypothesis | Sequence[CircuitHypothesis],
    *,
    patterns: Any = None,
    slt: SltEvidence | None = None,
    composition: xr.Dataset | None = None,
    roles: Mapping[str, Any] | None = None,
    how: str | Ablation = "auto",
    metric: Any = None,
    least_effect: float = LEAST_EFFECT,
    n_null: int = N_NULL,
    n_bootstrap: int = 1000,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    seed: int = 0,
    verdict_only: bool = False,
    progress: bool = True,
) -> Trial | list[Trial]:
    """Test a circuit hypothesis, or several on the same runs of the model, with interventions.

    Four kinds of test vote:

    - *necessity* of the circuit: ablating it hurts the pattern's tokens more than matched others;
    - *sufficiency*: with every other path through the inputs (Q, K or V) that its edges name
      ablated, or with all other components ablated where it has no edges, at least a tenth of the
      pattern's loss comes back. Edges at roles (``L0H1@S2 -> L1H2.V``) are kept at their role
      alone: the other paths are those of the same kinds at every role that the edges name and at
      all remaining positions, the named ones elsewhere among them;
    - *minimality* of every component: some context needs it;
    - every *edge*: ablating its path alone hurts the pattern's tokens more than matched others.

    A component or an edge is looked at in several contexts (the whole model; without one other
    part, which may hide what this one does; without all others) and counts where it shows best,
    its p-value corrected for that choice by how the effects move together over sequences.

    A test **holds** if its effect is at least ``least_effect`` (or that tenth), its p-value,
    corrected by Holm over all voting tests of the trial, is under 0.05, and (except minimality) it
    beats 95 % of its null: sets of other components with as many of each layer, sets of as many
    other paths, or other paths between the same layers; all of them where there are fewer than 20.
    Nulls are at the roles of what they stand in for.
    Where nothing else is left to compare with, its words say so and the p-value decides. It
    **fails** if its 95 % interval lies below that effect. Else it is undecided.

    **Supported**: all hold. **Contradicted**: at least one fails. **Undecided**: anything else.

    Noted beside them, without a vote: faithfulness (the components alone), self-repair,
    completeness, equivalence and independence, whether the circuit gets better with one more
    component or edge, or loses nothing with one less, the faithfulness curve, composition scores of
    the edges, and what the matrix of susceptibilities or per-token rLLCs says (``slt``). Where
    these and the interventions disagree, the trial says so.

    Args:
        model: HookedTransformer or TransformerBridge; it comes back as it was.
        tokens: ``[sequence, position]``; best not those that the hypothesis was made from.
        hypothesis: one, or several.
        patterns: bool (pattern, sequence, position) from :func:`lens_slt.label_patterns` of
            ``tokens``; made with the model's tokenizer by default. Or a bool array
            ``[sequence, position - 1]``, for hypotheses about one pattern. The pattern ``all`` is
            every prediction that counts, such as the answers where ``weights`` leave only these.
        slt: matrix, patterns of its probe and modes.
        composition: from :func:`lens_slt.composition_scores`; computed if there are edges.
        roles: positions of the roles that hypotheses name, such as ``prompts.roles``; as in
            :func:`lens_slt.ablate`. Roles that one hypothesis names share no position.
        how: of ablated outputs, as in :func:`lens_slt.ablate`.
        metric: an observable instead of the loss, as in :func:`lens_slt.ablate`.
        least_effect: in nats, or in units of the metric; smaller effects are none.
        n_null: random sets, and other paths, that the circuit is compared with.
        n_bootstrap: resamples of sequences for intervals.
        weights, mask, pad_id: which predictions count, as in :func:`lens_slt.sample`.
        seed: of random sets, the bootstrap, and ``how="resample"``.
        verdict_only: reach the same verdicts as cheaply as possible, where there are many false
            hypotheses: nothing is only noted, and a trial ends with the first test that fails.
        progress: show a progress bar.

    Returns:
        A :class:`Trial`, or a list of them.

    Raises:
        ValueError: components the model does not have, hypotheses for another model, an unknown
            pattern, roles that are missing or overlap, patterns of other tokens, too few tokens or
            sequences of a pattern, or too few other tokens to compare with unless there are none
            (the message says how many are needed).

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16, length=64)
        >>> mine = ls.circuit("L0H2 -> L1H2.K", pattern="induction")
        >>> few = dict(n_null=5, verdict_only=True, progress=False)
        >>> ls.cross_check(model, text, mine, **few).verdict
        'supported'
    """
    one_only = isinstance(hypothesis, CircuitHypothesis)
    hypotheses = [hypothesis] if isinstance(hypothesis, CircuitHypothesis) else list(hypothesis)
    number("least_effect", least_effect, above=0)
    integer("n_null", n_null, at_least=1)
    integer("n_bootstrap", n_bootstrap, at_least=100)
    integer("seed", seed, at_least=0)
    how = Ablation.of(how, seed)
    runs = Runs(
        adapt(model), tokens, how, weights=weights, mask=mask, pad_id=pad_id, metric=metric,
        roles=roles,
    )  # fmt: skip
    digest = weights_hash(runs.adapted)
    for one in hypotheses:
        check_case(one, runs, digest)
    if composition is not None:
        composition = require(composition, "composition_scores", argument="composition")
    masks = pattern_masks(hypotheses, patterns, runs, getattr(model, "tokenizer", None))
    contrasts = {
        name: Contrast(runs.base, where, weights=runs.weight, n_bootstrap=n_bootstrap, seed=seed)
        for name, where in masks.items()
    }
    edges = [] if verdict_only else [edge for one in hypotheses for edge in one.edges]
    if composition is None and any(map(composes, edges)):
        composition = composition_scores(model, seed=seed)
    settings = {
        "how": runs.how, "metric": runs.metric.name, "units": runs.metric.units,
        "least_effect": least_effect, "n_null": n_null, "n_bootstrap": n_bootstrap,
        "seed": seed, "sequences": len(runs.tokens), "length": int(runs.tokens.shape[1]),
        "model": runs.adapted.name, "weights": digest,
        "frozen_norm": runs.ablation.frozen_norm,
        "reference": runs.ablation.reference is not None,
        "roles": sorted(roles or {}), "verdict_only": verdict_only,
    }  # fmt: skip
    cases = [
        Case(one, runs, contrasts[one.pattern], least_effect, n_null, seed) for one in hypotheses
    ]
    # Before the runs, which what is wrong with it would otherwise throw away.
    beside = [[] if slt is None or verdict_only else slt_evidence(case, slt) for case in cases]
    with track("Trial", n_runs(hypotheses, runs, n_null), progress) as advance:
        runs.on_run = advance
        trials = [
            _shortest(case, settings) if verdict_only
            else _trial(case, noted, composition, settings)
            for case, noted in zip(cases, beside, strict=True)
        ]  # fmt: skip
    return trials[0] if one_only else trials


@typed
def compare_trials(trials: Sequence[Trial]) -> pd.DataFrame:
    """Hypotheses side by side: verdicts and main effects, the best first.

    Supported ones come first, then undecided, then contradicted; within each by sufficiency, the
    share of the loss that comes back with all other paths ablated. Raises ValueError where there
    are none.
    """
    if not trials:
        raise ValueError("trials must hold at least one")
    rows = []
    for trial in trials:
        main = {(one.test, one.part): one for one in trial.evidence}
        need, enough, share = (
            main.get((name, "circuit")) for name in ("necessity", "sufficiency", "faithfulness")
        )
        rows.append(
            {
                "hypothesis": str(trial.hypothesis), "verdict": trial.verdict,
                "components": len(trial.hypothesis.components),
                "edges": len(trial.hypothesis.edges),
                "necessity": NAN if need is None else need.effect,
                "sufficiency": NAN if enough is None else enough.effect,
                "faithfulness": NAN if share is None else share.effect,
                "cmd": NAN if trial.curve is None else float(trial.curve["cmd"]),
                "disagreements": len(trial.disagreements),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    order = table["verdict"].map({"supported": 0, "undecided": 1, "contradicted": 2})
    table = table.assign(order=order).sort_values(["order", "sufficiency"], ascending=[True, False])
    return table.drop(columns="order").reset_index(drop=True)


def _plain(value: Any) -> Any:
    """For JSON: what is not a number becomes None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _shortest(case: Case, settings: dict[str, Any]) -> Trial:
    """What decides alone. Whether a test fails does not depend on its null.

    Edges come first: a wrong one fails, and takes few runs.
    """
    without_nulls = replace(case, n_null=0)
    tried = (one for test in reversed(VOTING) for one in test(without_nulls))
    failed = next((one for one in tried if one.outcome == "failed"), None)
    voting = _corrected(case) if failed is None else [failed]
    verdict, reasons = verdict_of(voting)
    return Trial(case.hypothesis, verdict, tuple(reasons), (), tuple(voting), None, settings)


def _corrected(case: Case) -> list[Evidence]:
    """All tests that vote."""
    voting = [one for test in VOTING for one in test(case)]
    corrected = holm(np.array([one.p for one in voting]))
    return [after_correction(one, float(p)) for one, p in zip(voting, corrected, strict=True)]


def _trial(
    case: Case, beside: list[Evidence], composition: xr.Dataset | None, settings: dict[str, Any]
) -> Trial:
    voting = _corrected(case)
    noted = [*tests.faithfulness(case), *tests.self_repair(case), *tests.completeness(case)]
    noted += [*neighbours(case), *composition_evidence(case, composition), *beside]
    verdict, reasons = verdict_of(voting)
    if verdict == "supported":
        share = 100 * noted[0].effect
        reasons.append(f"(noted: with all other components ablated it recovers {share:.0f} %)")
    return Trial(
        case.hypothesis, verdict, tuple(reasons),
        tuple(disagreements(case, voting, noted)), (*voting, *noted), faithfulness_of(case),
        settings,
    )  # fmt: skip
