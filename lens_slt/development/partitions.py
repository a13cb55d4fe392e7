"""Partitions of a few things from the distances between them, many sets of distances at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import squareform

from lens_slt.arrays import FloatArray

STARTS = 10  # of k-means, at places drawn as by k-means++
ROUNDS = 30
ROUNDING = 1e-9  # of the largest eigenvalue: a coordinate that is none

Labels = NDArray[np.int_]


def coordinates(distance: FloatArray) -> FloatArray:
    """Classical scaling: points ``[set, thing, coordinate]`` at distances ``[set, thing, thing]``.

    Exact for Euclidean distances; of others what no Euclidean space can show is left out.
    """
    square = distance**2
    rows = square.mean(-1, keepdims=True)
    inner = -0.5 * (square - rows - rows.swapaxes(-1, -2) + square.mean((-1, -2), keepdims=True))
    size, vectors = np.linalg.eigh(inner)
    size = np.where(size > ROUNDING * size[:, -1:], size, 0)
    return np.asarray(vectors * np.sqrt(size)[:, None])


def k_means(points: FloatArray, k: int, generator: np.random.Generator) -> Labels:
    """Labels ``[set, thing]`` of points ``[set, thing, coordinate]``: the best of ten starts.

    All sets and starts at once: scikit-learn takes a few ms for each of thousands of small sets.
    """
    n_sets, n, _ = points.shape
    x = np.repeat(points, STARTS, 0)
    centres = _starts(x, k, generator)
    labels = _nearest(x, centres).argmin(-1)
    for _ in range(ROUNDS):
        member = labels[:, :, None] == np.arange(k)
        count = member.sum(1)
        means = np.einsum("snk,snd->skd", member, x) / np.maximum(count, 1)[..., None]
        centres = np.where(count[..., None] > 0, means, centres)
        again = _nearest(x, centres).argmin(-1)
        if np.array_equal(again, labels):
            break
        labels = again
    spread = _nearest(x, centres).min(-1).sum(-1).reshape(n_sets, STARTS)
    return np.asarray(labels.reshape(n_sets, STARTS, n)[np.arange(n_sets), spread.argmin(1)])


def _starts(x: FloatArray, k: int, generator: np.random.Generator) -> FloatArray:
    """Centres by k-means++: each at a thing drawn by its squared distance from those before."""
    sets = np.arange(len(x))
    centres = x[sets, generator.integers(x.shape[1], size=len(x))][:, None]
    for _ in range(k - 1):
        cost = _nearest(x, centres).min(-1)
        cumulated = cost.cumsum(1)
        place = generator.random(len(x)) * cumulated[:, -1]
        chosen = (cumulated < place[:, None]).sum(1).clip(max=x.shape[1] - 1)
        centres = np.concatenate([centres, x[sets, chosen][:, None]], 1)
    return centres


def _nearest(x: FloatArray, centres: FloatArray) -> FloatArray:
    """Squared distances ``[set, thing, centre]``."""
    cross = np.einsum("snd,skd->snk", x, centres)
    square = (x**2).sum(-1)[..., None] - 2 * cross + (centres**2).sum(-1)[:, None]
    return np.asarray(np.maximum(square, 0))


def hierarchical(distance: FloatArray, numbers: Sequence[int], method: str) -> Labels:
    """Labels ``[number, thing]`` from a tree over ``[thing, thing]``, cut into each of ``numbers``;
    ``method`` is one of scipy's."""
    tree = linkage(squareform(distance, checks=False), method)
    return np.stack([fcluster(tree, k, "maxclust") - 1 for k in numbers])


def silhouette(distance: FloatArray, labels: Labels) -> float:
    """Mean over things of (b − a)/max(a, b): a to those of its cluster, b to the nearest other.

    Things alone in their cluster count 0.
    """
    member = labels[:, None] == np.unique(labels)
    count = member.sum(0)
    if len(count) < 2:
        return 0.0
    total = distance @ member
    own = count[member.argmax(1)]
    inside = total[member] / np.maximum(own - 1, 1)
    outside = np.where(member, np.inf, total / count).min(1)
    largest = np.maximum(inside, outside)
    value = np.divide(outside - inside, largest, out=np.zeros_like(inside), where=largest > 0)
    return float(np.where(own > 1, value, 0).mean())


def rand_index(one: Labels, other: Labels) -> FloatArray:
    """Adjusted Rand index of labels ``[..., thing]``: 1 for equal partitions, 0 in the mean for
    unrelated ones (Hubert & Arabie 1985)."""
    here, there = (labels[..., :, None] == labels[..., None, :] for labels in (one, other))
    n = one.shape[-1]
    in_one, in_other, in_both = (
        (pairs.sum((-1, -2)) - n) / 2 for pairs in (here, there, here & there)
    )
    chance = in_one * in_other / (n * (n - 1) / 2)
    most = (in_one + in_other) / 2
    same = np.isclose(most, chance)  # both put all things together, or all apart
    return np.where(same, 1.0, (in_both - chance) / np.where(same, 1.0, most - chance))


def rand_within(one: Labels, other: Labels, groups: Labels) -> FloatArray:
    """Mean over groups of the adjusted Rand index of their members."""
    inside = [groups == group for group in np.unique(groups)]
    return np.asarray(np.mean([rand_index(one[..., g], other[..., g]) for g in inside], axis=0))


def together(labels: Labels) -> FloatArray:
    """Share of partitions ``[partition, thing]`` in which two things are in one cluster."""
    return np.asarray((labels[:, :, None] == labels[:, None]).mean(0))


def matched(labels: Labels, to: Labels) -> Labels:
    """Labels renamed like those of another partition with which they share most things; −1 where
    a cluster has no counterpart."""
    names, own = np.unique(labels, return_inverse=True)
    theirs = np.unique(to)
    shared = (own[:, None, None] == np.arange(len(names))[:, None]) & (to[:, None, None] == theirs)
    rows, columns = linear_sum_assignment(-shared.sum(0))
    new = np.full(len(names), -1)
    new[rows] = theirs[columns]
    return new[own]
