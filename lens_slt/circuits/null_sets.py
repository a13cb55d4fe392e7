"""What a circuit is compared with: random sets of components of its shape, and other paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import comb, prod
from typing import Any

import numpy as np

from lens_slt.circuits.hypothesis import LOGITS, THROUGH, Edge
from lens_slt.circuits.paths import as_read
from lens_slt.circuits.roles import at_role, meet, split_role
from lens_slt.circuits.runs import Runs
from lens_slt.models.names import EMBEDDINGS, is_head, is_mlp, layer_of

Kind = tuple[str, str, str]  # of an edge: what writes, what reads, through what


@dataclass(frozen=True)
class NullSets:
    """Sets of nodes, or of edges, that share nothing with the tested one."""

    members: tuple[frozenset, ...]
    words: str


def same_shape(nodes: frozenset[str], runs: Runs, n: int, seed: int) -> NullSets:
    """Sets with as many heads from each layer, and as many MLPs from any, as ``nodes``, by role.

    In a circuit that works in series any part of it does what the whole does, so none of it is in
    them. Where a layer has too few other heads, all of them are taken, and heads of other layers
    for those that lack; embeddings, of which there are no others, are left out.
    """
    counts = Counter(
        ("MLP" if is_mlp(node) else layer_of(node), role)
        for node, role in map(split_role, nodes) if node not in EMBEDDINGS
    )  # fmt: skip
    pools: list[tuple[list[str], int]] = []
    lacking: Counter[str] = Counter()
    for (kind, role), k in sorted(counts.items(), key=str):
        of_kind = _others([x for x in runs.nodes if _is_of(x, kind)], role, nodes)
        lacking[role] += max(0, k - len(of_kind))
        pools.append((of_kind, min(k, len(of_kind))))
    words = "sets of others with as many heads of each layer"
    if any(kind == "MLP" for kind, _ in counts):
        words += ", as many MLPs"
    if lacking.total():
        taken = {x for pool, _ in pools for x in pool}
        for role, k in lacking.items():
            heads = [x for x in _others(runs.heads, role, nodes) if x not in taken]
            pools.append((heads, min(k, len(heads))))
        words = "sets of others, as far as layers have them as many of each"
    if any(role for _, role in counts):
        words += ", at the same roles"
    return _drawn(pools, n, seed, words) or NullSets((), "no other components to compare with")


def _others(names: Iterable[str], role: str, nodes: frozenset[str]) -> list[str]:
    """Nodes at a role that share nothing with some nodes."""
    taken = {node for node, other in map(split_role, nodes) if meet(role, other)}
    return [at_role(x, role) for x in names if x not in taken]


def _drawn(
    pools: Sequence[tuple[Sequence[Any], int]], n: int, seed: int, words: str
) -> NullSets | None:
    """Sets of so many members of each pool: all where they are at most ``n``, else random ones."""
    pools = [(pool, k) for pool, k in pools if k]
    if not pools:
        return None
    total = prod(comb(len(pool), k) for pool, k in pools)
    if total <= n:
        parts = product(*(combinations(pool, k) for pool, k in pools))
        members = tuple(frozenset(name for part in chosen for name in part) for chosen in parts)
        return NullSets(members, f"all {total} {words}")
    generator = np.random.default_rng(seed)
    found: dict[frozenset, None] = {}
    while len(found) < n:
        chosen = [(pool, generator.choice(len(pool), k, replace=False)) for pool, k in pools]
        found[frozenset(pool[i] for pool, places in chosen for i in places)] = None
    return NullSets(tuple(found), f"{n} random {words}")


def _is_of(node: str, kind: int | str) -> bool:
    return is_mlp(node) if kind == "MLP" else is_head(node) and layer_of(node) == kind


def other_paths(edge: Edge, edges: Sequence[Edge], runs: Runs, n: int, seed: int) -> NullSets:
    """Other paths from nodes like an edge's source to nodes like its target.

    Like a head are the heads of its layer, like an MLP all MLPs; heads read through Q, K or V. They
    are at the edge's role.
    """
    targets = [LOGITS] if edge.target == LOGITS else _like(edge.target, runs)
    rest = [
        as_read(Edge(source, target, through, edge.role), runs.adapted)
        for source in _like(edge.source, runs) for target in targets
        if runs.can_read(target, source)
        for through in (THROUGH if is_head(target) else ("",))
    ]  # fmt: skip
    edges = [as_read(one, runs.adapted) for one in edges]
    rest = _apart_from(dict.fromkeys(rest), edges)
    if len(rest) > n:
        chosen = np.random.default_rng(seed).choice(len(rest), n, replace=False)
        rest = [rest[i] for i in sorted(chosen)]
    members = tuple(frozenset([other]) for other in rest)
    heads = is_head(edge.source) and not is_mlp(edge.target)
    what = "between these layers" if heads else "between nodes like these"
    what += ", at the same role" if edge.role else ""
    return NullSets(members, f"{len(rest)} other paths {what}")


def kind_of(edge: Edge) -> Kind:
    """What writes, what reads (a head, an MLP, an embedding, the logits), and through what."""
    return _node_kind(edge.source), _node_kind(edge.target), edge.through


def kinds_in_words(kinds: Iterable[Kind]) -> str:
    """What paths of some kinds lead from and into, such as "between heads through K"."""
    plural = {"head": "heads", "MLP": "MLPs", "embedding": "embeddings"}
    through: dict[tuple[str, str], list[str]] = {}
    for source, target, part in sorted(kinds):
        through.setdefault((source, target), []).append(part)
    words = []
    for (source, target), parts in through.items():
        ends = f"from {plural[source]} into {plural[target]}"
        if source == target == "head":
            ends = "between heads"
        words.append(ends + (f" through {', '.join(parts)}" if any(parts) else ""))
    return " and ".join(words)


def all_paths(runs: Runs, kinds: Iterable[Kind]) -> frozenset[Edge]:
    """Every path of some kinds; of those into the keys and values of a group one."""
    nodes = (*EMBEDDINGS, *runs.nodes)
    by_kind: dict[str, list[str]] = {}
    for node in nodes:
        by_kind.setdefault(_node_kind(node), []).append(node)
    return frozenset(
        as_read(Edge(source, target, through), runs.adapted)
        for written, read, through in kinds
        for source in by_kind.get(written, ())
        for target in by_kind.get(read, ())
        if runs.can_read(target, source) and _is_there(source, runs)
    )


def random_paths(mine: Collection[Edge], paths: Iterable[Edge], n: int, seed: int) -> NullSets:
    """Sets of as many other paths as ``mine`` at each of its roles, or all where they are fewer.

    ``paths`` are those of the same kinds, everywhere.
    """
    paths = sorted(paths)
    pools = []
    for role, k in sorted(Counter(edge.role for edge in mine).items()):
        others = _apart_from([replace(path, role=role) for path in paths], mine)
        pools.append((others, min(k, len(others))))
    words = "sets of as many other paths of these kinds"
    if sum(k for _, k in pools) < len(mine):
        words = "set of the other paths of these kinds, which are fewer"
    if any(edge.role for edge in mine):
        words += ", at the same roles"
    return _drawn(pools, n, seed, words) or NullSets((), "no other paths of these kinds")


def _apart_from(paths: Iterable[Edge], edges: Iterable[Edge]) -> list[Edge]:
    """Those of some paths that share nothing with edges."""
    taken: dict[tuple[str, str, str], list[str]] = {}
    for edge in edges:
        taken.setdefault(edge.path, []).append(edge.role)
    return [
        one for one in paths if not any(meet(one.role, role) for role in taken.get(one.path, ()))
    ]


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
