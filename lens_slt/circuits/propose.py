"""Guess circuits from per-token rLLCs or susceptibilities, modes, and composition on tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import networkx as nx
import numpy as np
import xarray as xr
from scipy import stats

from lens_slt.arguments import integer, typed
from lens_slt.circuits.composition_on_tokens import compositions_on_tokens
from lens_slt.circuits.hypothesis import CircuitHypothesis, Edge, circuit
from lens_slt.circuits.slt_evidence import SltEvidence, refined_on_pattern
from lens_slt.circuits.statistics import Measured
from lens_slt.data.inputs import read_inputs
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.models.names import is_head, is_mlp, layer_of
from lens_slt.statistics import SIGNIFICANT, false_discovery
from lens_slt.structure.modes import NOISE
from lens_slt.structure.pattern_enrichment import enrichment
from lens_slt.structure.standardize import values_of

LEAST_SHARE = 0.3  # of the largest value in its layer and later ones, for a node
ALIKE = 0.5  # of the value on the pattern's tokens of a head that is driven alike
LEAST_PART = 0.3  # of what drives a head, or of what a node writes, for an edge
LEAST_BEYOND = 0.2  # of relative excess over the median component, for a node by its level
LEAST_WIRE = 0.1  # the same, between nodes that other edges have joined


@typed
def propose_circuits(
    slt: SltEvidence,
    model: Any,
    tokens: Any,
    *,
    most: int = 6,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    seed: int = 0,
) -> list[CircuitHypothesis]:
    """Circuit hypotheses that singular learning theory suggests; nothing is ablated for them.

    For every pattern of tokens:

    1. *nodes*: heads, and MLPs that were sampled, whose rLLC (or expression) on the pattern's
       tokens exceeds that on matched other tokens (:func:`refined_on_pattern`): p < 0.05 after
       Benjamini–Hochberg over all nodes and patterns, and at least three tenths of the largest
       such value in their layer and later ones. Or whose excess over matched tokens, as a share of
       what it holds on both, is beyond that of the median one of its kind (heads, MLPs) in the
       model, clearly (corrected likewise, apart) and by a fifth, while it holds at least half as
       much on the pattern's tokens as any of its kind in its layer: tokens that a circuit serves
       well may be robust against whatever does not serve them, and heads that share the work hold
       no more there than elsewhere;
    2. *edges*: into each of these nodes from what brings at least three tenths, clearly more than
       a tenth, of what drives its attention through Q or K, or of what it writes through V
       (:func:`lens_slt.composition_on_tokens`, at the pattern's positions or at all). Such a source
       joins the circuit, and is followed further down. So does a head of the same layer that it
       drives through the same input, if its rLLC on the pattern's tokens is at least half as large:
       one of several that share the work may hold as much on other tokens;
    3. *shared edges*: several heads of a layer may bring together what none of them brings alone.
       Where they bring three tenths, those are sources that bring clearly more than a tenth, and
       at least three tenths of what the largest of them does.

    Each pattern gives at most two hypotheses: ``core``, the node that stands out most, by its value
    minus the median of its layer, what leads to it and what it leads to (without nodes that hold
    less than half as much as another one that it leads to, and without edges of less than half the
    share of another one from the same source), and ``wide``, all of its
    nodes and what they are joined to, also by shared edges, with every wire among them that clearly
    brings a tenth or more of what drives the one or of what it writes.

    Patterns that a stable mode knows come first, in the order of how surely it tells their tokens
    from the others (|AUC − 0.5| over its error); then the rest, by their clearest node.

    Args:
        slt: matrix, patterns of its probe's tokens, and modes with a bootstrap (else no mode
            orders the patterns).
        model: the model that was sampled.
        tokens: those of the probe, ``[sequence, position]``.
        most: hypotheses at most.
        weights, mask, pad_id: of the probe, as in :func:`lens_slt.sample`.
        seed: of the bootstrap.

    Returns:
        Hypotheses whose ``provenance`` holds each node's value with interval and corrected p, each
        edge's share with its standard error, and the mode that knows the pattern with its verdict,
        AUC and loadings. Empty where nothing stands out.

    Raises:
        ValueError: patterns of other tokens; no pattern with enough tokens.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=8, length=64)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L1H*", probes={"mix": text}, **how)
        >>> slt = ls.read_slt_evidence(draws, "mix", text)
        >>> found = ls.propose_circuits(slt, model, text, most=2)
        >>> {one.name for one in found} <= {"core", "wide"}
        True
    """
    integer("most", most, at_least=1)
    integer("seed", seed, at_least=0)
    refined = _refined(slt.matrix, slt.labels, seed)
    _check_tokens(slt, tokens)
    digest = weights_hash(adapt(model))
    known = _known_by_modes(slt)
    found: list[tuple[tuple[int, float], CircuitHypothesis]] = []
    levels = {pattern: _on_pattern(slt, pattern) for pattern in refined}
    responding = _responding(refined, levels)
    if not responding:
        return []
    wheres = [slt.patterns.sel(pattern=name).values.astype(bool) for name in responding]
    anywhere, *shares = compositions_on_tokens(
        model, tokens, [None, *wheres], weights=weights, mask=mask, pad_id=pad_id
    )
    for (pattern, nodes), here in zip(responding.items(), shares, strict=True):
        level = levels[pattern]
        clearest = max(nodes, key=lambda node: _standing_out(node, refined[pattern]))
        mode = known.get(pattern)
        rank = (0, -mode["strength"]) if mode else (1, -nodes[clearest]["z"])
        earlier = None
        for name, start, shared in (("core", [clearest], False), ("wide", [*nodes], True)):
            edges = _edges(nodes, (here, anywhere), shared)
            if not shared:
                edges = _through(clearest, edges, nodes)
            edges |= _driven_alike(edges, here, level, shared)
            chosen = _joined(start, edges)
            if shared:
                edges |= _wires(edges, here, chosen)
            inside = [e for e in edges if {e.source, e.target} <= chosen]
            if (chosen, {*inside}) == earlier:
                continue
            earlier = chosen, {*inside}
            provenance = {
                "quantity": str(slt.matrix.attrs["quantity"]),
                "nodes": {node: nodes[node] for node in sorted(chosen) if node in nodes},
                "shares": {str(edge): edges[edge] for edge in inside},
                "mode": None if mode is None else _of_mode(mode, sorted(chosen)),
            }
            text = "; ".join([*map(str, inside), *chosen])
            hypothesis = circuit(text, pattern, name=name, provenance=provenance, model=digest)
            found.append((rank, hypothesis))
    return [hypothesis for _, hypothesis in sorted(found, key=lambda pair: pair[0])][:most]


def _check_tokens(slt: SltEvidence, tokens: Any) -> None:
    """Raise ValueError where tokens are not those of the matrix."""
    ids = read_inputs(tokens).ids[:, 1:].numpy()
    shape, place = slt.patterns.shape[1:], (slt.matrix["sequence"], slt.matrix["position"])
    if ids.shape != shape or (ids[place] != slt.matrix["token_id"].values).any():
        raise ValueError(
            f"tokens, predicted {list(ids.shape)}, are not those of slt.matrix, {list(shape)}: "
            "pass the probe's"
        )


def _joined(nodes: Iterable[str], edges: Iterable[Edge]) -> set[str]:
    """Nodes and all that edges join to them, directly or not."""
    graph = nx.Graph([(edge.source, edge.target) for edge in edges])
    graph.add_nodes_from(nodes)
    return {other for node in nodes for other in nx.node_connected_component(graph, node)}


def _through(
    node: str, edges: dict[Edge, dict[str, float]], values: dict[str, dict[str, float]]
) -> dict[Edge, dict[str, float]]:
    """Edges on the ways to a node and from it; what its sources also feed lies beside it.

    So do heads that read it and hold less than half as much as another one that does, or are driven
    by a source less than half as much as another one is.
    """
    largest: dict[str, float] = {}
    for edge, one in edges.items():
        largest[edge.source] = max(one["share"], largest.get(edge.source, 0.0))
    edges = {e: one for e, one in edges.items() if one["share"] >= ALIKE * largest[e.source]}
    graph = nx.DiGraph([(edge.source, edge.target) for edge in edges])
    graph.add_node(node)
    held = {name: values[name]["value"] for name in nx.descendants(graph, node) if name in values}
    most = max(held.values(), default=0.0)  # where it is negative, they stand out by their level
    graph.remove_nodes_from(
        [name for name, value in held.items() if value < ALIKE * most and most > 0]
    )
    kept = {node} | nx.ancestors(graph, node) | nx.descendants(graph, node)
    return {e: values for e, values in edges.items() if {e.source, e.target} <= kept}


def _refined(
    matrix: xr.Dataset, labels: dict[str, Any], seed: int
) -> dict[str, dict[str, Measured]]:
    """Of every pattern with enough tokens, the value of every component."""
    refined, why = {}, ""
    names = [str(name) for name in matrix["component"].values]
    nodes = matrix.sel(component=[name for name in names if is_head(name) or is_mlp(name)])
    if not nodes.sizes["component"]:
        raise ValueError(
            f"slt.matrix has no head and no MLP, it has {', '.join(names)}: circuits are inferred "
            "from heads, sample components='heads'"
        )
    values_of(nodes)  # says what is not finite
    for name, mask in labels.items():
        try:
            refined[name] = refined_on_pattern(nodes, mask, seed=seed)
        except ValueError as error:  # too few tokens: no statement about this pattern
            why = str(error)
    if not refined:
        raise ValueError(f"slt.patterns: no pattern can be judged; {why}")
    return refined


def _responding(
    refined: dict[str, dict[str, Measured]], levels: dict[str, dict[str, float]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Of every pattern, the nodes that hold more on its tokens, with values for provenance."""
    pairs = [(pattern, head) for pattern, heads in refined.items() for head in heads]
    beyond = {name: _beyond_median(refined[name], levels[name]) for name in refined}
    p = [[refined[a][b].p for a, b in pairs], [beyond[a][b][1] for a, b in pairs]]
    q = dict(zip(pairs, np.transpose([false_discovery(np.array(one)) for one in p]),
                 strict=True))  # fmt: skip
    found: dict[str, dict[str, dict[str, float]]] = {}
    for pattern, heads in refined.items():
        for head, one in heads.items():
            # Noise in early layers disturbs all that follows, so later layers set the scale.
            behind = [v.value for name, v in heads.items() if layer_of(name) >= layer_of(head)]
            least = max(LEAST_SHARE * max(behind), 0)
            own = q[pattern, head][0] < SIGNIFICANT and one.value >= least
            relative = beyond[pattern][head][0]
            if own or (q[pattern, head][1] < SIGNIFICANT and relative >= LEAST_BEYOND):
                found.setdefault(pattern, {})[head] = {
                    "value": round(one.value, 4), "low": round(one.low, 4),
                    "high": round(one.high, 4), "q": float(q[pattern, head][0 if own else 1]),
                    "z": round(one.value / max(one.se, 1e-12), 3),
                }  # fmt: skip
                if np.isfinite(relative):
                    found[pattern][head]["beyond"] = round(relative, 3)
    return found


def _beyond_median(
    heads: dict[str, Measured], level: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """Relative excess over matched tokens beyond that of the median of its kind, and its p.

    The excess over the sum of both means. NaN and 1 where there are no levels, and for what holds
    less than half as much on the pattern's tokens as another one like it in its layer.
    """
    both = {name: 2 * level[name] - one.value for name, one in heads.items() if name in level}
    known = {name: heads[name].value / each for name, each in both.items() if each > 0}
    middle = {
        mlps: float(np.median([v for name, v in known.items() if is_mlp(name) == mlps] or [0.0]))
        for mlps in (False, True)
    }  # fmt: skip
    found = dict.fromkeys(heads, (float("nan"), 1.0))
    for name, relative in known.items():
        alike = [x for x in known if (layer_of(x), is_mlp(x)) == (layer_of(name), is_mlp(name))]
        largest = max(level[other] for other in alike)
        if level[name] >= ALIKE * largest:
            se = heads[name].se / both[name]
            beyond = relative - middle[is_mlp(name)]
            found[name] = (
                beyond,
                float(stats.t.sf(beyond / se, heads[name].freedom)) if se > 0 else 1.0,
            )
    return found


def _standing_out(node: str, values: dict[str, Measured]) -> float:
    """How much more it holds than the median node of its layer."""
    layer = [one.value for name, one in values.items() if layer_of(name) == layer_of(node)]
    return values[node].value - float(np.median(layer)) if len(layer) > 2 else values[node].value


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
        if head not in mode["component"].values:
            continue
        one = mode.sel(component=head)
        ends = [float(one[name]) for name in ("loading", "loading_low", "loading_high")]
        loadings[head] = [round(value, 4) for value in ends]
    return {
        "mode": int(mode["mode"]), "verdict": str(mode["verdict"].values),
        "auc": round(float(known["auc"]), 4), "loadings": loadings,
    }  # fmt: skip


def _on_pattern(slt: SltEvidence, pattern: str) -> dict[str, float]:
    """Mean rLLC of every component on the pattern's tokens; susceptibilities have no such level."""
    if slt.matrix.attrs["quantity"] != "llc":
        return {}
    means = slt.matrix["llc"].transpose("component", "token").values[:, slt.labels[pattern]].mean(1)
    return dict(zip(map(str, slt.matrix["component"].values), map(float, means), strict=True))


def _driven_alike(
    edges: dict[Edge, dict[str, float]], shares: xr.Dataset, level: dict[str, float], shared: bool
) -> dict[Edge, dict[str, float]]:
    """Edges from the same sources through the same input into heads of the same layers, which hold
    as much."""
    found = {}
    driven = [edge for edge in edges if is_head(edge.target) and edge.target in level]
    for other, value in level.items():
        alike = {
            (edge.source, edge.through)
            for edge in driven
            if is_head(other) and layer_of(other) == layer_of(edge.target)
            and value >= ALIKE * level[edge.target]
        }  # fmt: skip
        for edge, share, se in _sources(shares.sel(target=other), shared) if alike else ():
            if edge not in edges and (edge.source, edge.through) in alike:
                found[edge] = {"share": round(share, 4), "se": round(se, 4)}
    return found


def _wires(
    edges: dict[Edge, dict[str, float]], shares: xr.Dataset, chosen: set[str]
) -> dict[Edge, dict[str, float]]:
    """What else nodes that are in the circuit clearly bring to one another."""
    table = shares[["share", "se"]].to_dataframe().dropna().reset_index()
    clear = (table["share"] >= LEAST_WIRE) & (table["share"] > 2 * table["se"])
    inside = table["source"].isin(chosen) & table["target"].isin(chosen)
    found = {}
    for one in table[clear & inside].itertuples():
        edge = Edge(str(one.source), str(one.target), str(one.through))
        if edge not in edges:
            found[edge] = {"share": round(one.share, 4), "se": round(one.se, 4)}
    return found


def _edges(
    nodes: Iterable[str], shares: tuple[xr.Dataset, ...], shared: bool
) -> dict[Edge, dict[str, float]]:
    """What drives these nodes, and what drives that, with its share."""
    found: dict[Edge, dict[str, float]] = {}
    left, done = list(nodes), set()
    while left:
        target = left.pop()
        done.add(target)
        for one in shares:
            for edge, value, se in _sources(one.sel(target=target), shared):
                if value > found.get(edge, {"share": 0.0})["share"]:
                    found[edge] = {"share": round(value, 4), "se": round(se, 4)}
                if edge.source not in done:
                    left.append(edge.source)
    return dict(sorted(found.items()))


def _sources(into: xr.Dataset, shared: bool) -> Iterator[tuple[Edge, float, float]]:
    """Edges into one target with their shares and standard errors.

    Heads of a layer that share the work bring little each: with ``shared`` they are judged by what
    they bring together, and by one another.
    """
    names = [str(name) for name in into["source"].values]
    for through in into["through"].values:
        share, se = (into[key].sel(through=through).values for key in ("share", "se"))
        layers: dict[tuple[bool, int], list[int]] = {}
        for i in np.flatnonzero(share > 0).tolist():  # where it is no NaN
            layers.setdefault((is_mlp(names[i]), layer_of(names[i])), []).append(i)
        for members in layers.values():
            together = shared and share[members].sum() >= LEAST_PART
            least = LEAST_PART * (min(share[members].max(), 1.0) if together else 1.0)
            for i in members:
                if share[i] >= least and share[i] - 2 * se[i] > LEAST_PART / 3:
                    edge = Edge(names[i], str(into["target"].values), str(through))
                    yield edge, float(share[i]), float(se[i])
