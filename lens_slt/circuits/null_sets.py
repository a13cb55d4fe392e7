"""What a circuit is compared with: random sets of components of its shape, and other paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, prod

import numpy as np

from lens_slt.circuits.hypothesis import LOGITS, THROUGH, Edge
from lens_slt.circuits.runs import Runs
from lens_slt.models.names import EMBEDDINGS, is_head, is_mlp, layer_of

Kind = tuple[str, str, str]  # of an edge: what writes, what reads, through what


@dataclass(frozen=True)
class NullSets:
    """Sets of nodes, or of edges, that share nothing with the tested one."""

    members: tuple[frozenset, ...]
    words: str


def same_shape(nodes: frozenset[str], runs: Runs, n: int, seed: int) -> NullSets:
    """Sets with as many heads from each layer, and as many MLPs from any, as ``nodes``.

    In a circuit that works in series any part of it does what the whole does, so none of it is in
    them. Where a layer has too few other heads, all of them are taken, and heads of other layers
    for those that lack; embeddings, of which there are no others, are left out.
    """
    counts = Counter("MLP" if is_mlp(x) else layer_of(x) for x in nodes if x not in EMBEDDINGS)
    pools: list[tuple[list[str], int]] = []
    lacking = 0
    for kind, k in sorted(counts.items(), key=str):
        of_kind = [x for x in runs.nodes if _is_of(x, kind) and x not in nodes]
        lacking += max(0, k - len(of_kind))
        pools.append((of_kind, min(k, len(of_kind))))
    words = "sets of others with as many heads of each layer"
    if "MLP" in counts:
        words += ", as many MLPs"
    if lacking:
        taken = {x for pool, _ in pools for x in pool}
        rest = [x for x in runs.nodes if is_head(x) and x not in nodes and x not in taken]
        pools.append((rest, min(lacking, len(rest))))
        words = "sets of others, as far as layers have them as many of each"
    pools = [(pool, k) for pool, k in pools if k]
    if not pools:
        return NullSets((), "no other components to compare with")
    total = prod(comb(len(pool), k) for pool, k in pools)
    if total <= n:
        parts = product(*(combinations(pool, k) for pool, k in pools))
        members = tuple(frozenset(name for part in chosen for name in part) for chosen in parts)
        return NullSets(members, f"all {total} {words}")
    generator = np.random.default_rng(seed)
    found: dict[frozenset, None] = {}
    while len(found) < n:
        found[
            frozenset(
                str(name) for pool, k in pools for name in generator.choice(pool, k, replace=False)
            )
        ] = None
    return NullSets(tuple(found), f"{n} random {words}")


def _is_of(node: str, kind: int | str) -> bool:
    return is_mlp(node) if kind == "MLP" else is_head(node) and layer_of(node) == kind


def other_paths(edge: Edge, edges: Sequence[Edge], runs: Runs, n: int, seed: int) -> NullSets:
    """Other paths from nodes like an edge's source to nodes like its target.

    Like a head are the heads of its layer, like an MLP all MLPs; heads read through Q, K or V.
    """
    targets = [LOGITS] if edge.target == LOGITS else _like(edge.target, runs)
    rest = [
        Edge(source, target, through)
        for source in _like(edge.source, runs) for target in targets
        if runs.can_read(target, source)
        for through in (THROUGH if is_head(target) else ("",))
    ]  # fmt: skip
    rest = [other for other in rest if other not in edges]
    if len(rest) > n:
        chosen = np.random.default_rng(seed).choice(len(rest), n, replace=False)
        rest = [rest[i] for i in sorted(chosen)]
    members = tuple(frozenset([other]) for other in rest)
    heads = is_head(edge.source) and not is_mlp(edge.target)
    what = "between these layers" if heads else "between nodes like these"
    return NullSets(members, f"{len(rest)} other paths {what}")


def kind_of(edge: Edge) -> Kind:
    """What writes, what reads (a head, an MLP, an embedding, the logits), and through what."""
    return _node_kind(edge.source), _node_kind(edge.target), edge.through


def all_paths(runs: Runs, kinds: Iterable[Kind]) -> frozenset[Edge]:
    """Every path of some kinds."""
    nodes = (*EMBEDDINGS, *runs.nodes)
    by_kind: dict[str, list[str]] = {}
    for node in nodes:
        by_kind.setdefault(_node_kind(node), []).append(node)
    return frozenset(
        Edge(source, target, through)
        for written, read, through in kinds
        for source in by_kind.get(written, ())
        for target in by_kind.get(read, ())
        if runs.can_read(target, source) and _is_there(source, runs)
    )


def random_paths(mine: frozenset[Edge], universe: frozenset[Edge], n: int, seed: int) -> NullSets:
    """Sets of as many other paths out of a universe, or all others where they are fewer."""
    rest = sorted(universe - mine)
    k = min(len(mine), len(rest))
    if not k:
        return NullSets((), "no other paths of these kinds")
    words = "sets of as many other paths of these kinds"
    if k < len(mine):
        words = "set of the other paths of these kinds, which are fewer"
    total = comb(len(rest), k)
    if total <= n:
        return NullSets(tuple(map(frozenset, combinations(rest, k))), f"all {total} {words}")
    generator = np.random.default_rng(seed)
    found: dict[frozenset, None] = {}
    while len(found) < n:
        chosen = generator.choice(len(rest), k, replace=False)
        found[frozenset(rest[i] for i in chosen)] = None
    return NullSets(tuple(found), f"{n} random {words}")


def _node_kind(node: str) -> str:
    if node == LOGITS:
        return LOGITS
    return "embedding" if node in EMBEDDINGS else "MLP" if is_mlp(node) else "head"


def _is_there(node: str, runs: Runs) -> bool:
    return node not in EMBEDDINGS or f"{node}.{'W_E' if node == 'embed' else 'W_pos'}" in (
        runs.adapted.leaves
    )


def _like(node: str, runs: Runs) -> list[str]:
    """Nodes of the same kind: heads of the same layer, all MLPs, the embeddings."""
    if node in EMBEDDINGS:
        return [x for x in EMBEDDINGS if _is_there(x, runs)]
    if is_mlp(node):
        return [x for x in runs.nodes if is_mlp(x)]
    return [x for x in runs.heads if layer_of(x) == layer_of(node)]
