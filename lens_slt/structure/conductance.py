"""Sets of low conductance in the graph of nearest neighbours, found around single tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from lens_slt.arrays import BoolArray, FloatArray

AT_ONCE = 16  # a block of right-hand sides costs little more than one
REFERENCE_SEEDS = 48


@dataclass(frozen=True)
class Sweep:
    """Nodes in sweep order; ``conductance[i]`` and ``share[i]`` of volume are of i + 1 nodes."""

    nodes: np.ndarray
    conductance: FloatArray
    share: FloatArray


def neighbour_graph(points: FloatArray, n_neighbors: int) -> sparse.csr_array:
    """Adjacency (0 or 1, symmetric) of ``points [token, component]``.

    Two tokens are joined when either is among the ``n_neighbors`` nearest of the other.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=n_neighbors, n_jobs=1).fit(points)
    directed = search.kneighbors_graph(mode="connectivity")
    graph = sparse.csr_array(directed.maximum(directed.T))
    graph.sort_indices()
    return graph


def degrees(graph: sparse.csr_array) -> FloatArray:
    """Number of edges of every node."""
    return np.asarray(graph.sum(0)).ravel()


def conductance(graph: sparse.csr_array, members: BoolArray) -> float:
    """Edges that leave a set of nodes over its volume or that of the rest, the smaller of both.

    Volume is the sum of the degrees. 1 where either side has no edges.
    """
    degree = degrees(graph)
    volume = degree[members].sum()
    smaller = min(volume, degree.sum() - volume)
    inside = graph[members][:, members].sum()
    return float((volume - inside) / smaller) if smaller > 0 else 1.0


def personalised_pagerank(
    graph: sparse.csr_array, seeds: np.ndarray, alpha: float, tolerance: float
) -> FloatArray:
    """PageRank ``[node, seed]`` of lazy random walks that jump back to their seed.

    Solves p = α·s + (1 − α)·p·W with W = (1 + D⁻¹A)/2 (Andersen, Chung & Lang 2006, Local Graph
    Partitioning using PageRank Vectors). The bound on the error is that of their push algorithm,
    |error(v)| ≤ tolerance · degree(v). The solver is conjugate gradients on the symmetric form of
    the system: at α = 0.001 pushes visit every edge thousands of times, this some tens of times.
    """
    root = np.sqrt(np.maximum(degrees(graph), 1.0))
    scale = sparse.diags_array(1 / root)
    walk = sparse.csr_array(scale @ graph @ scale)
    lazy = (1 - alpha) / 2
    residual = np.zeros((graph.shape[0], len(seeds)))
    residual[seeds, np.arange(len(seeds))] = alpha / root[seeds]
    solution = np.zeros_like(residual)
    direction = residual.copy()
    power = (residual**2).sum(0)
    # In units of degree the inverse of the system has norm 1/α, so this bounds the error.
    while np.max(np.abs(residual) / root[:, None]) > alpha * tolerance:
        image = (1 - lazy) * direction - lazy * (walk @ direction)
        step = power / np.maximum((direction * image).sum(0), np.finfo(float).tiny)
        solution += step * direction
        residual -= step * image
        before, power = power, (residual**2).sum(0)
        direction = residual + power / np.maximum(before, np.finfo(float).tiny) * direction
    return solution * root[:, None]


def sweep(graph: sparse.csr_array, rank: FloatArray, tolerance: float) -> Sweep:
    """Conductance of every set of the nodes of highest ``rank / degree``.

    Nodes at ``tolerance`` or below are left out: a push would not have reached them.
    """
    degree = degrees(graph)
    score = rank / np.maximum(degree, 1.0)
    reached = np.flatnonzero(score > tolerance)
    nodes = reached[np.argsort(-score[reached], kind="stable")]
    place = np.full(len(rank), len(nodes))
    place[nodes] = np.arange(len(nodes))
    row = np.repeat(np.arange(len(rank)), np.diff(graph.indptr))
    later = np.maximum(place[row], place[graph.indices])  # an edge is inside from there on
    inside = np.bincount(later, minlength=len(nodes) + 1)[: len(nodes)].cumsum()
    volume, total = degree[nodes].cumsum(), degree.sum()
    smaller = np.minimum(volume, total - volume)
    cut = np.where(smaller > 0, (volume - inside) / np.where(smaller > 0, smaller, 1), 1.0)
    return Sweep(nodes, cut, volume / total)


def best_cut(found: Sweep, cut: str, min_size: int, max_share: float, rise: float) -> int | None:
    """Size of the set at which to cut a sweep, or None.

    ``lowest``: the lowest conductance. ``valley``: the smallest set such that no smaller one has
    lower conductance, and that conductance climbs ``rise`` times as high before it falls below.
    """
    values = found.conductance[min_size - 1 :]
    allowed = found.share[min_size - 1 :] <= max_share
    if not allowed.any():
        return None
    if cut == "lowest":
        return int(np.argmin(np.where(allowed, values, np.inf))) + min_size
    records = np.flatnonzero(values == np.minimum.accumulate(values))
    highest = np.maximum.reduceat(values, records)
    if found.share[-1] < 1:  # what the walk does not reach lies behind the highest wall
        highest[-1] = np.inf
    good = (highest >= rise * values[records]) & (highest > values[records]) & allowed[records]
    return int(records[np.argmax(good)]) + min_size if good.any() else None


def reference_conductance(
    points: FloatArray, n_neighbors: int, alpha: float, tolerance: float, rng: np.random.Generator
) -> FloatArray:
    """Lowest conductance ``[size − 1]`` that sweeps find in a Gaussian cloud without clusters.

    The cloud has as many tokens as ``points [token, component]`` and the same covariance: what a
    graph of nearest neighbours of this size and shape can be cut into by chance.
    """
    value, vector = np.linalg.eigh(np.cov(points, rowvar=False).reshape(points.shape[1], -1))
    cloud = rng.normal(size=points.shape) * np.sqrt(np.maximum(value, 0)) @ vector.T
    graph = neighbour_graph(cloud, n_neighbors)
    seeds = rng.choice(len(cloud), min(REFERENCE_SEEDS, len(cloud)), replace=False)
    lowest = np.ones(len(cloud))
    for start in range(0, len(seeds), AT_ONCE):
        ranks = personalised_pagerank(graph, seeds[start : start + AT_ONCE], alpha, tolerance)
        for rank in ranks.T:
            found = sweep(graph, rank, tolerance).conductance
            lowest[: len(found)] = np.minimum(lowest[: len(found)], found)
    return lowest
