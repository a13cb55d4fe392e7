"""Guess circuits from per-token rLLCs or susceptibilities, their modes, and composition scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import networkx as nx
import numpy as np
import xarray as xr
from scipy import stats

from lens_slt.arguments import integer, typed
from lens_slt.circuits.composition import composition_scores
from lens_slt.circuits.hypothesis import CircuitHypothesis, Edge
from lens_slt.circuits.slt_evidence import SltEvidence, refined_on_pattern
from lens_slt.circuits.statistics import SIGNIFICANT, Measured
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.models.names import is_head, layer_of
from lens_slt.schema import require
from lens_slt.structure.pattern_enrichment import enrichment

LEAST_SHARE = 0.25  # of the largest value in its layer, for a head
LEAST_EXCESS = 0.5  # of the largest excess of a composition score over chance, for an edge
NOISE = "may be noise"


@typed
def propose_circuits(
    slt: SltEvidence,
    model: Any,
    *,
    most: int = 6,
    composition: xr.Dataset | None = None,
    seed: int = 0,
) -> list[CircuitHypothesis]:
    """Circuit hypotheses that singular learning theory suggests; nothing is ablated for them.

    For every pattern of tokens:

    1. *heads*: those whose rLLC (or expression) on the pattern's tokens exceeds that on matched
       other tokens, beyond the median head of their layer (:func:`refined_on_pattern`): p < 0.05
       after Benjamini–Hochberg over all heads and patterns, and at least a quarter of the largest
       such value in their layer;
    2. *edges*: pairs of these heads whose composition score is significant against both nulls and
       exceeds chance by at least half as much as the strongest pair among them does.

    Each pattern gives at most two hypotheses: ``core``, the head with the clearest value and those
    that edges join to it, and ``wide``, all of its heads.

    Patterns that a stable mode knows come first, in the order of how surely it tells their tokens
    from the others (|AUC − 0.5| over its error); then the rest, by their clearest head.

    Args:
        slt: matrix, patterns of its probe's tokens, and modes with a bootstrap (else no mode
            orders the patterns).
        model: whose composition scores and weights' hash are taken.
        most: hypotheses at most.
        composition: from :func:`lens_slt.composition_scores`, if it is there already.
        seed: of the composition scores' nulls and the bootstrap.

    Returns:
        Hypotheses whose ``provenance`` holds each head's value with interval and corrected p, each
        edge's score and q, and the mode that knows the pattern with its verdict, AUC and loadings.

    Raises:
        ValueError: patterns of other tokens; no pattern with enough tokens.
    """
    integer("most", most, at_least=1)
    integer("seed", seed, at_least=0)
    refined = _refined(slt.matrix, slt.labels, seed)
    if composition is None:
        composition = composition_scores(model, seed=seed)
    composition = require(composition, "composition_scores", argument="composition")
    digest = weights_hash(adapt(model))
    known = _known_by_modes(slt)
    found: list[tuple[tuple[int, float], CircuitHypothesis]] = []
    for pattern, heads in _responding(refined).items():
        edges = _edges([head for head in heads if is_head(head)], composition)
        clearest = max(heads, key=lambda head: heads[head]["z"])
        joined = _joined(clearest, edges)
        core = [head for head in heads if head in joined]
        mode = known.get(pattern)
        rank = (0, -mode["strength"]) if mode else (1, -heads[clearest]["z"])
        for name, chosen in (("core", core), ("wide", list(heads))):
            if name == "wide" and len(core) == len(heads):
                continue
            provenance = {
                "quantity": str(slt.matrix.attrs["quantity"]),
                "heads": {head: heads[head] for head in chosen},
                "composition": {
                    str(edge): scores
                    for edge, scores in edges.items()
                    if {edge.source, edge.target} <= {*chosen}
                },
                "mode": None if mode is None else _of_mode(mode, chosen),
            }
            inside = tuple(e for e in edges if e.source in chosen and e.target in chosen)
            hypothesis = CircuitHypothesis(
                tuple(sorted(chosen, key=lambda head: (layer_of(head), head))), inside,
                pattern, name, provenance, digest,
            )  # fmt: skip
            found.append((rank, hypothesis))
    return [hypothesis for _, hypothesis in sorted(found, key=lambda pair: pair[0])][:most]


def _joined(head: str, edges: Iterable[Edge]) -> set[str]:
    """A head and all that edges join to it, directly or not."""
    graph = nx.Graph([(edge.source, edge.target) for edge in edges])
    graph.add_node(head)
    return set(nx.node_connected_component(graph, head))


def _refined(
    matrix: xr.Dataset, labels: dict[str, Any], seed: int
) -> dict[str, dict[str, Measured]]:
    """Of every pattern with enough tokens, the value of every component."""
    refined, why = {}, ""
    heads = matrix.sel(component=[c for c in matrix["component"].values if is_head(str(c))])
    for name, mask in labels.items():
        try:
            refined[name] = refined_on_pattern(heads, mask, seed=seed)
        except ValueError as error:  # too few tokens: no statement about this pattern
            why = str(error)
    if not refined:
        raise ValueError(f"slt.patterns: no pattern has enough tokens; {why}")
    return refined


def _responding(
    refined: dict[str, dict[str, Measured]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Of every pattern, the heads that hold more on its tokens, with values for provenance."""
    pairs = [(pattern, head) for pattern, heads in refined.items() for head in heads]
    p = np.array([refined[pattern][head].p for pattern, head in pairs])
    q = dict(zip(pairs, stats.false_discovery_control(p), strict=True))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for pattern, heads in refined.items():
        largest: dict[int, float] = {}
        for head, one in heads.items():
            layer = layer_of(head)
            largest[layer] = max(largest.get(layer, 0), one.value)
        for head, one in heads.items():
            least = LEAST_SHARE * largest[layer_of(head)]
            if q[pattern, head] < SIGNIFICANT and one.value >= max(least, 0):
                width = max(one.high - one.low, 1e-12)
                found.setdefault(pattern, {})[head] = {
                    "value": round(one.value, 4), "low": round(one.low, 4),
                    "high": round(one.high, 4), "q": float(q[pattern, head]),
                    "z": round(2 * one.value / width, 3),
                }  # fmt: skip
    return found


def _known_by_modes(slt: SltEvidence) -> dict[str, dict[str, Any]]:
    """Of every pattern that a stable mode tells best, that mode."""
    if slt.modes is None or "loading_low" not in slt.modes:
        return {}
    enriched = enrichment(slt.modes, slt.patterns)
    known: dict[str, dict[str, Any]] = {}
    for i in range(slt.modes.sizes["mode"]):
        mode, one = slt.modes.isel(mode=i), enriched.isel(mode=i)
        auc = one["auc"].values
        strength = np.abs(auc - 0.5) / (one["high"].values - one["low"].values)
        strength = np.where(one["q"].values < SIGNIFICANT, strength, np.nan)
        if str(mode["verdict"].values) == NOISE or np.isnan(strength).all():
            continue
        best = int(np.nanargmax(strength))
        pattern = str(one["pattern"].values[best])
        if strength[best] > known.get(pattern, {}).get("strength", 0):
            known[pattern] = {"mode": mode, "auc": auc[best], "strength": float(strength[best])}
    return known


def _of_mode(known: dict[str, Any], heads: list[str]) -> dict[str, Any]:
    """A mode as plain values, with the loadings of some heads."""
    mode = known["mode"]
    loadings = {}
    for head in heads:
        one = mode.sel(component=head)
        ends = [float(one[name]) for name in ("loading", "loading_low", "loading_high")]
        loadings[head] = [round(value, 4) for value in ends]
    return {
        "mode": int(mode["mode"]), "verdict": str(mode["verdict"].values),
        "auc": round(float(known["auc"]), 4), "loadings": loadings,
    }  # fmt: skip


def _edges(heads: list[str], composition: xr.Dataset) -> dict[Edge, dict[str, float]]:
    """The pairs of heads that compose far more than chance, with their scores."""
    inside = composition.sel(source=heads, target=heads)
    chance = float(composition.attrs["chance_score"])
    scores: dict[Edge, tuple[float, float]] = {}
    for source in heads:
        for target in heads:
            for through in inside["through"].values:
                one = inside.sel(source=source, target=target, through=through)
                q = max(float(one["q_random"]), float(one["q_rotation"]))
                if np.isfinite(float(one["score"])) and q < SIGNIFICANT:
                    scores[Edge(source, target, str(through))] = float(one["score"]), q
    largest = max((score - chance for score, _ in scores.values()), default=0)
    return {
        edge: {"score": round(score, 4), "q": q}
        for edge, (score, q) in sorted(scores.items())
        if score - chance >= LEAST_EXCESS * largest
    }
