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
from lens_slt.models.names import is_mlp, layer_of


@dataclass(frozen=True)
class NullSets:
    """Sets of nodes, or of edges, that share nothing with the tested one."""

    members: tuple[frozenset, ...]
    words: str


def same_shape(nodes: frozenset[str], runs: Runs, n: int, seed: int) -> NullSets:
    """Sets with as many heads from each layer, and as many MLPs from any, as ``nodes``.

    In a circuit that works in series any part of it does what the whole does, so none of it is in
    them. There are none where a layer has too few other heads.
    """
    pools = []
    counts = Counter("MLP" if is_mlp(node) else layer_of(node) for node in nodes)
    for kind, k in sorted(counts.items(), key=str):
        if kind == "MLP":
            pool = [node for node in runs.nodes if is_mlp(node)]
        else:
            pool = [head for head in runs.heads if layer_of(head) == kind]
        pools.append(([node for node in pool if node not in nodes], k))
    words = "sets of others with as many heads of each layer"
    if "MLP" in counts:
        words += ", as many MLPs"
    total = prod(comb(len(pool), k) for pool, k in pools)
    if total <= n:
        parts = product(*(combinations(pool, k) for pool, k in pools))
        members = tuple(frozenset(name for part in chosen for name in part) for chosen in parts)
        return NullSets(members, f"all {total} {words}" if total else "no other heads to compare")
    generator = np.random.default_rng(seed)
    found: dict[frozenset, None] = {}
    while len(found) < n:
        found[
            frozenset(
                str(name) for pool, k in pools for name in generator.choice(pool, k, replace=False)
            )
        ] = None
    return NullSets(tuple(found), f"{n} random {words}")


def other_paths(edge: Edge, edges: Sequence[Edge], runs: Runs, n: int, seed: int) -> NullSets:
    """Other paths from the layer of an edge's source to that of its target, through Q, K or V."""
    layer = layer_of(edge.source)
    sources = [head for head in runs.heads if layer_of(head) == layer]
    if edge.target == LOGITS:
        rest = [Edge(source, LOGITS) for source in sources]
    else:
        into = layer_of(edge.target)
        targets = [head for head in runs.heads if layer_of(head) == into]
        rest = [Edge(s, t, q) for s in sources for t in targets for q in THROUGH]
    rest = [other for other in rest if other not in edges]
    if len(rest) > n:
        chosen = np.random.default_rng(seed).choice(len(rest), n, replace=False)
        rest = [rest[i] for i in sorted(chosen)]
    members = tuple(frozenset([other]) for other in rest)
    return NullSets(members, f"{len(rest)} other paths between these layers")


def all_paths(runs: Runs, through: Iterable[str]) -> frozenset[Edge]:
    """Every path from a head into a later head through some of Q, K and V."""
    places = [(head, layer_of(head)) for head in runs.heads]
    return frozenset(
        Edge(source, target, q)
        for source, layer in places for target, later in places if layer < later for q in through
    )  # fmt: skip


def random_paths(mine: frozenset[Edge], universe: frozenset[Edge], n: int, seed: int) -> NullSets:
    """Sets of as many other paths out of a universe."""
    rest, k = sorted(universe - mine), len(mine)
    words = "sets of as many other paths through these inputs"
    total = comb(len(rest), k)
    if total <= n:
        return NullSets(tuple(map(frozenset, combinations(rest, k))), f"all {total} {words}")
    generator = np.random.default_rng(seed)
    found: dict[frozenset, None] = {}
    while len(found) < n:
        chosen = generator.choice(len(rest), k, replace=False)
        found[frozenset(rest[i] for i in chosen)] = None
    return NullSets(tuple(found), f"{n} random {words}")
