"""Clusters of tokens that the components respond to alike."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arguments import choice, integer, number, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.schema import require, stamped
from lens_slt.structure.conductance import (
    AT_ONCE,
    best_cut,
    conductance,
    degrees,
    neighbour_graph,
    personalised_pagerank,
    reference_conductance,
    sweep,
)
from lens_slt.structure.standardize import standardized

METHODS = ("spectroscopy", "hdbscan")
CUTS = ("valley", "lowest")
MAX_SHARE = 0.6  # of the graph's volume: beyond, a cut describes what lies outside the set
RISE = 1.2
PROBES, SMALLER = 8, 0.8  # walks that check a cluster for smaller ones, and how much smaller
BEYOND_CHANCE = 0.7  # times the reference: Gaussian and uniform clouds stayed above
SHUFFLES = 20
WHERE = ("sequence", "position", "token_id")


@typed
def clusters(
    matrix: xr.Dataset,
    *,
    method: str = "spectroscopy",
    n_neighbors: int = 45,
    min_size: int = 20,
    max_conductance: float | None = None,
    cut: str = "valley",
    alpha: float = 0.001,
    tolerance: float = 1e-7,
    centre_rows: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Clusters of tokens in the space of standardised susceptibilities or per-token rLLCs.

    ``spectroscopy`` follows Gordon et al. 2026, Towards Spectroscopy: Susceptibility Clusters in
    Language Models (arXiv 2601.12703): take a token as seed, walk from it with jumps back
    (personalised PageRank) on the graph of nearest neighbours, cut the walk's ranking where
    conductance is low, keep what passes as a cluster, go on with the tokens that are left. 45
    neighbours and α = 0.001 are the published values. The rest is this library's choice and need
    not be the paper's: edges without weights that one of the two neighbours suffices for; seeds in
    random order; a refused seed's neighbours are no seeds; the graph stays whole while clusters are
    taken, and a token keeps its first cluster; walks from eight members of a set may replace it by
    a smaller one; cut and threshold as below; no early stop.

    ``hdbscan`` is scikit-learn's (Campello et al. 2013), with ``min_size`` as smallest cluster.

    Both are held against chance: ``reference`` is the lowest conductance at the cluster's size
    that the same sweeps find in a Gaussian cloud of the same covariance. In Gaussian and uniform
    clouds, with and without a shared mode, sets stayed above 0.7 times it (measured: 0.73), so
    ``beyond_chance`` asks for less. Heavy tails along a shared mode can pass all the same: see
    whether such clusters come back in the other half of the draws.

    Args:
        matrix: from ``susceptibility`` or ``per_token_llc``.
        method: ``spectroscopy`` or ``hdbscan``.
        n_neighbors: of the graph. Sets much smaller than this cannot have low conductance.
        min_size: fewest tokens of a cluster.
        max_conductance: of a cluster of ``spectroscopy``. None asks for ``beyond_chance``.
        cut: ``valley``, the smallest set before conductance rises by a fifth, or ``lowest``, the
            lowest conductance of all, which merges neighbouring clusters. Either within 60 % of
            the graph's volume. Like the next two for ``spectroscopy``.
        alpha: probability of the jump back to the seed.
        tolerance: largest error of PageRank, per degree.
        centre_rows: also take away each token's mean over the components.
        seed: of the order of seeds and of the reference. The global random state is not touched.

    Returns:
        Dataset with ``cluster`` (token): numbers by falling size, −1 for none; and over ``label``
        these numbers: ``size`` in tokens, ``n_sequences``, ``conductance`` (0 to 1, low is good),
        ``reference``, ``beyond_chance``, and the mean membership ``probability`` (hdbscan) or the
        ``seed_token`` (spectroscopy).

    Raises ValueError for unknown names, numbers out of range, too few tokens, and for what
    ``standardized`` refuses.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> found = ls.clusters(ls.per_token_llc(draws), n_neighbors=10, min_size=5)
        >>> found["cluster"].dims
        ('token',)
    """
    choice("method", method, METHODS)
    choice("cut", cut, CUTS)
    integer("seed", seed, at_least=0, at_most=2**32 - 1)
    _check_numbers(n_neighbors, min_size, alpha, tolerance, max_conductance)
    points = standardized(matrix, centre_rows=centre_rows)
    check_enough(len(points), n_neighbors)
    rng = np.random.default_rng(seed)
    graph = neighbour_graph(points, n_neighbors)
    reference = reference_conductance(points, n_neighbors, alpha, tolerance, rng)
    more: dict[str, Any] = {}
    if method == "hdbscan":
        from sklearn.cluster import HDBSCAN

        fitted = HDBSCAN(min_cluster_size=min_size, n_jobs=1, copy=True).fit(points)
        labels, order = _by_size(fitted.labels_.astype(int))
        chance = [fitted.probabilities_[labels == k].mean() for k in range(len(order))]
        more["probability"] = ("label", np.array(chance, dtype=float))
    else:
        bounds = BEYOND_CHANCE * reference
        if max_conductance is not None:
            bounds = np.full(len(points), max_conductance)
        search = _Search(graph, bounds, cut, min_size, alpha, tolerance)
        labels, seeds = _spectroscopy(search, rng)
        labels, order = _by_size(labels)
        more["seed_token"] = ("label", np.array(seeds, dtype=int)[order])
    data = _qualities(matrix, graph, labels, reference) | more
    settings = dict(
        method=method, n_neighbors=n_neighbors, min_size=min_size, seed=seed,
        centre_rows=int(centre_rows), quantity=matrix.attrs["quantity"],
    )  # fmt: skip
    if method == "spectroscopy":
        settings |= dict(cut=cut, alpha=alpha, tolerance=tolerance)
        settings |= {} if max_conductance is None else dict(max_conductance=max_conductance)
    coords = token_coordinates(matrix) | {"label": np.arange(len(order))}
    return stamped(xr.Dataset(data, coords=coords, attrs=settings), "clusters")


def cluster_stability(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """Agreement of two clusterings of the same tokens: of two seeds, two halves of the draws.

    Tokens are matched by sequence and position.

    Returns:
        Dataset with ``rand``, the adjusted Rand index, and ``information``, the adjusted mutual
        information, over the ``n_both`` tokens that have a cluster in both (0 by chance, 1 if
        equal; NaN without such tokens); ``jaccard`` over ``label``, for each cluster of ``first``
        its highest overlap with a cluster of ``second``, ``match`` the number of that cluster (−1
        for none), and ``jaccard_chance``, the mean of the same for shuffled labels.

    Raises ValueError where the two share no token.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> options = dict(method="hdbscan", min_size=5)
        >>> one, two = (ls.clusters(half, **options) for half in ls.halves(ls.per_token_llc(draws)))
        >>> ls.cluster_stability(one, two)["jaccard"].dims
        ('label',)
    """
    first = require(first, "clusters", argument="first")
    second = require(second, "clusters", argument="second")
    here, there = matched_tokens(first, second)
    a = first["cluster"].values[here]
    b = second["cluster"].values[there]
    both = (a >= 0) & (b >= 0)
    rand = information = float("nan")
    if both.any():
        from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

        rand = adjusted_rand_score(a[both], b[both])
        information = adjusted_mutual_info_score(a[both], b[both])
    names = first["label"].values
    overlap = _jaccard(a, b, names, second["label"].values)
    rng = np.random.default_rng(0)
    chance = [
        _jaccard(a, rng.permutation(b), names, second["label"].values).max(1, initial=0.0)
        for _ in range(SHUFFLES)
    ]
    match = np.full(len(names), -1)
    if overlap.shape[1]:
        match = np.where(overlap.max(1) > 0, second["label"].values[overlap.argmax(1)], -1)
    found = xr.Dataset(
        {
            "rand": ((), rand),
            "information": ((), information),
            "n_both": ((), int(both.sum())),
            "jaccard": ("label", overlap.max(1, initial=0.0)),
            "match": ("label", match),
            "jaccard_chance": ("label", np.mean(chance, axis=0)),
        },
        coords={"label": names},
    )
    return stamped(found, "cluster_stability")


def check_enough(n_tokens: int, n_neighbors: int) -> None:
    """Refuse fewer tokens than a token and its neighbours."""
    if n_tokens <= n_neighbors:
        raise ValueError(
            f"n_neighbors = {n_neighbors} needs at least {n_neighbors + 1} tokens; the matrix has "
            f"{n_tokens}: use a larger probe, or at most n_neighbors={max(n_tokens - 1, 1)}"
        )


def token_coordinates(matrix: xr.Dataset) -> dict[Hashable, Any]:
    """Where the tokens of a result come from: its coordinates over ``token``."""
    return {name: ("token", matrix[name].values) for name in WHERE if name in matrix.variables}


def matched_tokens(first: xr.Dataset, second: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Places of the tokens that two results share, by sequence and position."""
    places: list[dict[tuple[int, int], int]] = []
    for name, result in (("first", first), ("second", second)):
        keys = zip(*(result[where].values.tolist() for where in WHERE[:2]), strict=True)
        places.append({key: i for i, key in enumerate(keys)})
        if len(places[-1]) < result.sizes["token"]:
            raise ValueError(f"{name} has the same sequence and position more than once")
    shared = [(i, places[1][key]) for key, i in places[0].items() if key in places[1]]
    if not shared:
        raise ValueError(
            f"first ({len(places[0])} tokens) and second ({len(places[1])} tokens) share no "
            "token: compare results from the same probe"
        )
    here, there = np.array(shared).T
    return here, there


@dataclass(frozen=True)
class _Search:
    """What decides over the set that a walk from one token ends in."""

    graph: Any
    bounds: FloatArray  # [size − 1], of conductance
    cut: str
    min_size: int
    alpha: float
    tolerance: float

    def ranks(self, seeds: np.ndarray) -> FloatArray:
        """A row for each seed: PageRank ``[seed, node]``."""
        return personalised_pagerank(self.graph, seeds, self.alpha, self.tolerance).T

    def cluster_in(self, rank: FloatArray, free: BoolArray) -> BoolArray | None:
        """Members, among the ``free`` tokens, of the set that the walk is cut to, if it passes."""
        found = sweep(self.graph, rank, self.tolerance)
        size = best_cut(found, self.cut, self.min_size, MAX_SHARE, RISE)
        members = np.zeros(len(free), dtype=bool)
        members[found.nodes[: size or 0]] = True
        members &= free
        size = int(members.sum())
        if size < self.min_size or conductance(self.graph, members) > self.bounds[size - 1]:
            return None
        return members


def _spectroscopy(search: _Search, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """Labels of the tokens and the seed of each cluster."""
    graph = search.graph
    labels = np.full(graph.shape[0], -1)
    is_seed = degrees(graph) > 0
    order = rng.permutation(graph.shape[0])
    seeds: list[int] = []
    while is_seed.any():
        block = order[is_seed[order]][:AT_ONCE]
        for token, rank in zip(block, search.ranks(block), strict=True):
            if not is_seed[token]:
                continue
            members = search.cluster_in(rank, labels < 0)
            if members is None:  # walks from its neighbours would end in the same sets
                is_seed[token] = False
                is_seed[graph.indices[graph.indptr[token] : graph.indptr[token + 1]]] = False
                continue
            if search.cut == "valley":
                token, members = _smallest_within(search, int(token), members, labels < 0, rng)
            labels[members] = len(seeds)
            seeds.append(int(token))
            is_seed[members] = False
    return labels, seeds


def _smallest_within(
    search: _Search, token: int, members: BoolArray, free: BoolArray, rng: np.random.Generator
) -> tuple[int, BoolArray]:
    """The smallest cluster that walks from some members end in, and its seed.

    A walk that starts between clusters that touch may see them as one.
    """
    inside = np.flatnonzero(members)
    tried = rng.choice(inside, min(PROBES, len(inside)), replace=False)
    for other, rank in zip(tried, search.ranks(tried), strict=True):
        smaller = search.cluster_in(rank, free)
        if smaller is not None and smaller.sum() < SMALLER * members.sum():
            token, members = int(other), smaller
    return token, members


def _qualities(
    matrix: xr.Dataset, graph: Any, labels: np.ndarray, reference: FloatArray
) -> dict[str, Any]:
    n_found = labels.max(initial=-1) + 1
    sizes = np.bincount(labels[labels >= 0], minlength=n_found)
    cuts = np.array([conductance(graph, labels == k) for k in range(n_found)], dtype=float)
    chance = reference[sizes - 1] if n_found else np.zeros(0)
    sequence = matrix["sequence"].values
    counts = [len(np.unique(sequence[labels == k])) for k in range(n_found)]
    return {
        "cluster": ("token", labels),
        "size": ("label", sizes),
        "n_sequences": ("label", np.array(counts, dtype=int)),
        "conductance": ("label", cuts),
        "reference": ("label", chance),
        "beyond_chance": ("label", cuts < BEYOND_CHANCE * chance),
    }


def _by_size(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels renumbered by falling size, and which old one each new one was."""
    sizes = np.bincount(labels[labels >= 0])
    order = np.argsort(-sizes, kind="stable")
    place = np.empty(len(order) + 1, dtype=int)
    place[order] = np.arange(len(order))
    place[-1] = -1  # label −1 reads the last entry
    return place[labels], order


def _jaccard(a: np.ndarray, b: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> FloatArray:
    """Overlap of every cluster of ``a`` with every cluster of ``b``: shared / either."""
    in_a = (a[None] == rows[:, None]).astype(float)
    in_b = (b[None] == columns[:, None]).astype(float)
    shared = in_a @ in_b.T
    either = in_a.sum(1)[:, None] + in_b.sum(1)[None] - shared
    return shared / np.maximum(either, 1.0)


def _check_numbers(
    n_neighbors: int, min_size: int, alpha: float, tolerance: float, highest: float | None
) -> None:
    integer("n_neighbors", n_neighbors, at_least=1)
    integer("min_size", min_size, at_least=2)
    for name, value in (("alpha", alpha), ("tolerance", tolerance), ("max_conductance", highest)):
        if value is not None or name != "max_conductance":
            number(name, value, above=0, below=1)
