"""What susceptibilities and per-token rLLCs say about a hypothesis, beside the interventions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from lens_slt.arguments import integer, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.circuits.case import Case
from lens_slt.circuits.evidence import Evidence, Outcome
from lens_slt.circuits.roles import node_of
from lens_slt.circuits.statistics import Contrast, Measured
from lens_slt.data.patterns import label_patterns
from lens_slt.models.names import is_head
from lens_slt.models.shipped import tokenizer_of
from lens_slt.observables.per_token_llc import per_token_llc
from lens_slt.sampling.result import component_names
from lens_slt.schema import require
from lens_slt.schemas import MATRICES
from lens_slt.statistics import ENDS, SIGNIFICANT
from lens_slt.structure.modes import modes
from lens_slt.structure.overview import View
from lens_slt.structure.pattern_enrichment import labels_of
from lens_slt.structure.standardize import values_of

RELIABLE = 0.5  # split-half correlation below which a column says little


@dataclass(frozen=True)
class SltEvidence:
    """A matrix with the patterns of its probe's tokens, and its modes if they are to be judged.

    ``matrix`` from :func:`lens_slt.per_token_llc` or :func:`lens_slt.susceptibility`, ``patterns``
    from :func:`lens_slt.label_patterns` of the probe's tokens, ``modes`` from
    :func:`lens_slt.modes` of the matrix.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> slt = ls.SltEvidence(ls.per_token_llc(draws), ls.label_patterns(text))
        >>> slt.modes is None  # they are not needed
        True
    """

    matrix: xr.Dataset
    patterns: xr.DataArray
    modes: xr.Dataset | None = None

    def __post_init__(self) -> None:
        known: dict[str, tuple[str, ...]] = {"matrix": MATRICES, "patterns": ("patterns",)}
        if self.modes is not None:
            known["modes"] = ("modes",)
        for name, kinds in known.items():  # with dimensions in their order
            object.__setattr__(self, name, require(getattr(self, name), *kinds, argument=name))

    @property
    def labels(self) -> dict[str, BoolArray]:
        """Labels of the matrix's tokens, by pattern; ValueError where they belong to others."""
        names = (str(name) for name in self.patterns["pattern"].values)
        return dict(zip(names, labels_of(self.matrix, self.patterns), strict=True))


@typed
def read_slt_evidence(
    draws: xr.DataTree, probe: str, tokens: Any, tokenizer: Any = None, *, seed: int = 0
) -> SltEvidence:
    """Per-token rLLC of the heads on a probe, its patterns, and its noise-whitened modes.

    Args:
        draws: from :func:`lens_slt.sample`, of heads (others are left out).
        probe: its name.
        tokens: the probe's tokens, for the patterns.
        tokenizer: of the model; may be left out for the shipped models' tokens. Of others only
            repeats are labelled then, with a warning.
        seed: of the bootstrap.

    Raises ValueError where the draws hold no head, or fewer tokens than heads.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> slt = ls.read_slt_evidence(draws, "mix", text)
        >>> slt.matrix["llc"].dims, slt.modes["loading"].dims
        (('component', 'token'), ('mode', 'component'))
    """
    integer("seed", seed, at_least=0)
    draws = require(draws, "draws", argument="draws")
    heads = [name for name in component_names(draws) if is_head(name)]
    if not heads:
        raise ValueError(
            f"draws hold no head ({', '.join(component_names(draws))}): circuits are inferred from "
            "heads, sample components='heads'"
        )
    matrix = per_token_llc(draws.sel(component=heads), probe)
    matrix = matrix.sel(component=matrix["mean"].notnull())
    found = modes(matrix, whiten=True, seed=seed) if "blocks" in matrix else None
    tokenizer = tokenizer_of(draws.attrs) if tokenizer is None else tokenizer
    return SltEvidence(matrix, label_patterns(tokens, tokenizer), found)


def evidence_of(view: View, patterns: xr.DataArray) -> SltEvidence:
    """What a view of per-token rLLCs says about circuits; its modes are those that are shown."""
    usable = view.matrix["mean"].notnull().values
    heads = [
        str(name) for name, ok in zip(view.matrix["component"].values, usable, strict=True)
        if ok and is_head(str(name))
    ]  # fmt: skip
    return SltEvidence(view.matrix.sel(component=heads), patterns, view.modes)


def slt_evidence(case: Case, slt: SltEvidence) -> list[Evidence]:
    """Per head: does the matrix single out the pattern, does that come back, is it reliable?

    - ``data-refined rLLC``: rLLC of the head on the pattern's tokens minus that on matched others
      (see :func:`refined_on_pattern`);
    - ``reliability``: split-half correlation of the head's column.
    - ``loading``: the head's loading on the mode that tells the pattern best, on its side.

    None of them votes: the verdict rests on interventions, and what disagrees is listed with it.
    """
    known = slt.matrix[slt.matrix.attrs["quantity"]].notnull().all("token")
    matrix = slt.matrix.sel(component=known)  # without components of which no chain can be used
    names = set(matrix["component"].values.tolist())
    there = dict.fromkeys(node_of(name) for name in case.hypothesis.components)
    heads = [name for name in there if name in names]  # a matrix knows no roles
    labels = slt.labels
    pattern = case.hypothesis.pattern
    if pattern not in labels or not heads:
        return []
    matrix = matrix.sel(component=heads)
    refined = refined_on_pattern(matrix, labels[pattern], seed=case.seed)
    found = []
    for name in heads:
        one = refined[name]
        found.append(
            Evidence(
                "data-refined rLLC", name, one.value, one.low, one.high,
                "λ̂" if matrix.attrs["quantity"] == "llc" else "SD", one.p,
                outcome=_sign(one),
                words="on the pattern's tokens − matched others",
            )
        )  # fmt: skip
        reliability = float(matrix["split_half"].sel(component=name))
        outcome: Outcome = "held" if reliability >= RELIABLE else "undecided"
        found.append(
            Evidence(
                "reliability", name, reliability, unit="correlation", outcome=outcome,
                words="of the head's column, first half of the draws against the second",
            )
        )  # fmt: skip
    return found + (_loadings(slt.modes, labels[pattern], heads) if slt.modes is not None else [])


def refined_on_pattern(
    matrix: xr.Dataset, labels: BoolArray, *, seed: int = 0
) -> dict[str, Measured]:
    """Of every component: what it holds on the pattern's tokens more than on matched others.

    A component is compared with itself on other tokens, not with other heads: in a small model most
    of these may be in the circuit. Noise in any head disturbs whatever later heads do with the
    stream, so on tokens that a circuit serves all heads of the layers before it hold a little more.
    Susceptibilities are standardised and negated, so that positive is expression. Errors hold both
    the choice of sequences and the sampling noise, except where the pattern is all there is: an
    rLLC of all tokens is never below zero whatever they are, so only its noise matters.

    Args:
        matrix: from ``per_token_llc`` or ``susceptibility``.
        labels: of its tokens, ``[token]``.
        seed: of the bootstrap over sequences.

    Raises ValueError for a pattern with too few tokens, or that covers nearly all of them.
    """
    sequence, position = matrix["sequence"].values, matrix["position"].values
    shape = int(sequence.max()) + 1, int(position.max()) + 1

    def grid(values: FloatArray) -> FloatArray:
        whole = np.full(shape, np.nan)
        whole[sequence, position] = values
        return whole

    mask = np.zeros(shape, dtype=bool)
    mask[sequence, position] = labels
    contrast = Contrast(grid(matrix["base_loss"].values), mask, seed=seed)
    names = [str(name) for name in matrix["component"].values]
    values = values_of(matrix).T
    scale = -values.std(1) if matrix.attrs["quantity"] == "chi" else np.ones(len(values))
    own: FloatArray = np.asarray(values / scale[:, None], dtype=np.float64)
    alone = not contrast.others.any()
    blocks = []
    if "blocks" in matrix and matrix.sizes["block"] > 1:
        for block in matrix["blocks"].transpose("block", "component", "token").values:
            blocks.append(np.asarray(block / scale[:, None], dtype=np.float64))
    found = {}
    for i, name in enumerate(names):
        one = contrast.matched(grid(own[i]))
        if blocks:
            parts = [contrast.value(grid(block[i])) for block in blocks]
            if alone:  # a mean of what is never below zero, not a difference
                one = replace(one, se=0.0)
            one = _with_noise(one, np.array(parts))
        found[name] = one
    return found


def _with_noise(found: Measured, blocks: FloatArray) -> Measured:
    """A value whose error also holds the spread between blocks of draws.

    Few blocks know their spread badly, which matters as far as it is a part of the error: degrees
    of freedom are Welch and Satterthwaite's.
    """
    over_draws = float(blocks.std(ddof=1)) / np.sqrt(len(blocks))
    se = float(np.hypot(found.se, over_draws))
    spread = found.se**4 / found.freedom + over_draws**4 / (len(blocks) - 1)
    freedom = se**4 / spread if spread > 0 else found.freedom
    half = float(stats.t.ppf(ENDS[1], freedom)) * se
    p = float(found.value <= 0) if se == 0 else float(stats.t.sf(found.value / se, freedom))
    return Measured(found.value, found.value - half, found.value + half, p, se, freedom)


def _loadings(found_modes: xr.Dataset, labels: BoolArray, heads: list[str]) -> list[Evidence]:
    if "loading_low" not in found_modes:
        return []
    score = found_modes["score"].transpose("mode", "token").values
    apart = score[:, labels].mean(1) - score[:, ~labels].mean(1)
    best = int(np.abs(apart).argmax())
    side = float(np.sign(apart[best]))
    if found_modes.attrs.get("quantity") == "chi":
        side = -side  # low susceptibility is expression
    mode = found_modes.isel(mode=best)
    found = []
    for name in heads:
        if name not in found_modes["component"].values:
            continue
        one = mode.sel(component=name)
        ends = sorted([side * float(one["loading_low"]), side * float(one["loading_high"])])
        outcome: Outcome = "held" if ends[0] > 0 else "failed" if ends[1] < 0 else "undecided"
        found.append(
            Evidence(
                "loading", name, side * float(one["loading"]), ends[0], ends[1], "loading",
                outcome=outcome,
                words=f"on mode {int(mode['mode'])} ({mode['verdict'].values}), the pattern's side",
            )
        )  # fmt: skip
    return found


def _sign(found: Measured) -> Outcome:
    if found.p < SIGNIFICANT / 2:
        return "held"
    return "failed" if found.high < 0 else "undecided"
