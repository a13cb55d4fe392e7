"""Clusters of heads by how their refined LLCs develop, and whether there are any.

Wang et al. 2024 (arXiv 2410.02984) cluster the curves of heads, and published configurations differ
in the method (k-means, k-means under dynamic time warping, a hierarchy, shapes), in the scale of
the curves (none, standardised, min-max), and in whether all heads are clustered together or those
of each layer. All are done here, on curves at places even in log(step + 1), and held against each
other, against noise, and against what heads do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arguments import integer, typed
from lens_slt.arrays import FloatArray
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.distances import SCALINGS, distances, on_even_grid, scaled_curves
from lens_slt.development.head_curves import HeadCurves, node_of, read_head_curves
from lens_slt.development.partitions import (
    Labels,
    coordinates,
    hierarchical,
    k_means,
    matched,
    rand_index,
    rand_within,
    silhouette,
    together,
)
from lens_slt.schema import require, stamped
from lens_slt.statistics import ENDS, SIGNIFICANT, rank_p

METHODS = {  # of clustering: distance, and whether by k-means or a tree
    "k-means": ("euclidean", True), "k-means, warped": ("warped", True),
    "hierarchical": ("euclidean", False), "shape": ("shape", True),
}  # fmt: skip
SCOPES = ("model", "layer")
FEWEST_HEADS = 4  # to be clustered
FEWEST_CHECKPOINTS = 5
LARGEST_NUMBER = 6  # of clusters that are tried
GRID = 32  # places
NULL = 99  # simulations
PERMUTATIONS = 999
STABLE = 0.5  # mean adjusted Rand index with clusters of resampled curves
NOISY, CONTINUUM, CLUSTERS = (
    "too noisy to cluster", "no clusters beyond a continuum", "clusters",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to cluster curves."""

    method: str
    scaling: str
    scope: str

    def __str__(self) -> str:
        return f"{self.method}, {self.scaling}, {self.scope}"


@dataclass(frozen=True)
class Trajectories:
    """Clusters of heads; labels are numbers from 0, −1 where there are none."""

    verdict: str
    n_clusters: int
    cluster: Labels  # [head] the consensus
    sure: FloatArray  # [head] share of clusterings that put a head there
    together: FloatArray  # [head, head] share of clusterings that put two into one cluster
    variants: tuple[Variant, ...]
    labels: Labels  # [variant, head] of the curves as they are
    stability: FloatArray  # [variant] mean adjusted Rand index with resampled curves
    silhouette: FloatArray  # [variant]
    agreement: FloatArray  # [variant, variant] adjusted Rand index
    resampled: Labels  # [resample, head] the consensus of resampled curves
    p_noise: float  # that errors alone make heads differ so much
    p_continuum: float  # that heads without clusters look so clustered


def find_trajectories(
    curves: HeadCurves, *, n_clusters: int | None = None, n_bootstrap: int = 50, seed: int = 0
) -> Trajectories:
    """Clusters of heads: the function under :func:`head_trajectories`, on arrays.

    Raises ValueError for fewer than four heads or five checkpoints, bad numbers.
    """
    heads = len(curves.heads)
    if heads < FEWEST_HEADS or len(curves.steps) < FEWEST_CHECKPOINTS:
        raise ValueError(
            f"clusters of trajectories need at least {FEWEST_HEADS} heads and {FEWEST_CHECKPOINTS} "
            f"checkpoints; got {heads} and {len(curves.steps)}"
        )
    integer("n_bootstrap", n_bootstrap, at_least=2)
    integer("seed", seed, at_least=0)
    if n_clusters is not None:
        integer("n_clusters", n_clusters, at_least=2, at_most=heads - 1)
    generator = np.random.default_rng(seed)
    sets = curves.values + np.concatenate(
        [np.zeros((1, *curves.values.shape)), curves.noise(n_bootstrap, generator)]
    )
    gridded = on_even_grid(curves.x, sets, GRID)
    chosen, p_continuum = _number_of_clusters(gridded[0], generator)
    p_noise = _noise_p(curves, generator)
    k = n_clusters or chosen
    measured = _Clusterings(gridded, curves.layers, k, generator)
    return _judged(measured, p_noise, p_continuum)


@typed
def head_trajectories(
    development: xr.DataTree | xr.Dataset,
    *,
    refinements: Sequence[str] | None = None,
    n_clusters: int | None = None,
    types: xr.Dataset | Mapping[str, str] | None = None,
    n_bootstrap: int = 50,
    seed: int = 0,
) -> xr.Dataset:
    """Clusters of heads by how their refined LLCs develop, and whether there are any.

    A *variant* is a method (``k-means``; ``k-means, warped``: under dynamic time warping;
    ``hierarchical``: Ward's; ``shape``: by cross-correlation), a scale of the curves (``none``,
    ``standardised``, ``min-max``) and a scope (the whole ``model``, or each ``layer`` alone, where
    all have four heads or more). Resampled curves are the measured ones with errors like theirs
    added, so they are noisier than the measured ones: stability is not flattered.

    Args:
        development: from :func:`lens_slt.develop`, or curves of refined LLCs, or of rLLCs on the
            tokens of patterns (:func:`lens_slt.pattern_llc`), whose contrasts are clustered.
        refinements: ``"llc"`` and names of probes, or patterns; all by default, together.
        n_clusters: by default the number of 2 to 6 with the largest mean silhouette of Ward's
            hierarchy over the three scales.
        types: what heads do, to compare with: of :func:`lens_slt.behaviour_scores`, or a type by
            head. By default those of the last checkpoint of ``development``, if it has them.
        n_bootstrap: resampled curves.
        seed: of the resampling.

    Returns:
        Dataset. Over component (the heads): ``cluster``, the consensus of all variants of scope
        ``model``; ``sure``, the share of clusterings of resampled curves that put the head there;
        ``head_type``. ``together``, the share that put two heads into one cluster. Over label (the
        clusters): ``size``, and ``centre``, the mean curve by checkpoint and refinement, with
        ``centre_se``. Over
        variant: ``variant_cluster``, ``stability`` (mean adjusted Rand index with its clusters of
        resampled curves), ``silhouette``, ``agreement`` with other variants (adjusted Rand index;
        with one of scope ``layer`` within layers), ``variant_type_ari``. ``type_ari``, adjusted
        Rand index of the consensus and the types, with the interval that the noise of the curves
        makes, ``type_p`` among permutations of the types over all heads, and ``type_p_in_layers``
        among those within layers, which knows that layers differ. ``p_noise``: that errors alone
        make the heads' curves differ so; ``p_continuum``: that heads drawn from one Gaussian cloud
        of curves look so clustered. Attribute ``verdict``: ``too noisy to cluster`` (heads differ
        no more than errors do, or half of the variants have a stability under 0.5; the clusters
        are −1 then), ``no clusters beyond a continuum`` (clusters are a way to cut it), else
        ``clusters``.

    Raises:
        TypeError, ValueError: no curves of heads, too few heads or checkpoints, gaps in them,
            unknown refinements, heads without a type.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([0, 300, 1000, 1800, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=12, chains=2, steps_per_draw=1), progress=False)
        >>> draws = {
        ...     step: ls.sample(run.load(step), text, "L1H0, L1H1, L1H2, L1H3", **how)
        ...     for step in run
        ... }
        >>> curves = ls.join_checkpoints({step: ls.refined_llc(one) for step, one in draws.items()})
        >>> ls.head_trajectories(curves, n_bootstrap=10)["stability"].dims
        ('variant',)
    """
    curves = read_head_curves(development, refinements)
    found = find_trajectories(curves, n_clusters=n_clusters, n_bootstrap=n_bootstrap, seed=seed)
    names, variants = list(curves.heads), [str(v) for v in found.variants]
    labels = np.unique(found.cluster[found.cluster >= 0])
    means = curves.means_over_heads(
        {str(label): np.flatnonzero(found.cluster == label) for label in labels}
    )
    pairs = ("component", "other_component"), ("variant", "other_variant")
    data: dict[str, Any] = {
        "cluster": ("component", found.cluster), "sure": ("component", found.sure),
        "together": (pairs[0], found.together),
        "size": ("label", (found.cluster == labels[:, None]).sum(1)),
        "centre": ((CHECKPOINT, "label", "refinement"), means.values.T),
        "centre_se": ((CHECKPOINT, "label", "refinement"), means.se.T),
        "variant_cluster": (("variant", "component"), found.labels),
        "stability": ("variant", found.stability), "silhouette": ("variant", found.silhouette),
        "agreement": (pairs[1], found.agreement),
        "p_noise": found.p_noise, "p_continuum": found.p_continuum,
    }  # fmt: skip
    kinds = _types(types, development, names)
    if kinds is not None:
        data |= {"head_type": ("component", kinds)}
        data |= _against(found, np.unique(kinds, return_inverse=True)[1], curves.layers, seed)
    coords: dict[str, Any] = {
        CHECKPOINT: curves.steps.astype(int), "component": names, "other_component": names,
        "refinement": list(curves.refinements), "label": labels, "variant": variants,
        "other_variant": variants,
    }  # fmt: skip
    coords |= {
        key: ("variant", [getattr(variant, key) for variant in found.variants])
        for key in ("method", "scaling", "scope")
    }
    attrs = {"verdict": found.verdict, "n_clusters": found.n_clusters, "n_bootstrap": n_bootstrap}
    return stamped(xr.Dataset(data, coords, attrs), "head_trajectories")


@dataclass
class _Clusterings:
    """All variants on the measured curves, which are the first of the sets, and resampled ones."""

    curves: FloatArray  # [set, refinement, head, place]
    layers: Labels
    k: int
    generator: np.random.Generator

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        _, sizes = np.unique(self.layers, return_counts=True)
        scopes = SCOPES if len(sizes) > 1 and sizes.min() >= FEWEST_HEADS else SCOPES[:1]
        return tuple(Variant(m, s, scope) for scope in scopes for m in METHODS for s in SCALINGS)

    @cached_property
    def distance(self) -> dict[tuple[str, str], FloatArray]:
        """By scaling and kind ``[set, head, head]``."""
        found = {}
        for scaling in SCALINGS:
            scaled = scaled_curves(self.curves, scaling)
            for kind in dict.fromkeys(kind for kind, _ in METHODS.values()):
                found[scaling, kind] = distances(scaled, kind)
        return found

    @cached_property
    def labels(self) -> Labels:
        """``[variant, set, head]``."""
        return np.stack([self._labels(variant) for variant in self.variants])

    def of(self, variant: Variant) -> FloatArray:
        return self.distance[variant.scaling, METHODS[variant.method][0]]

    def groups(self, scope: str) -> Labels:
        return self.layers if scope == "layer" else np.zeros_like(self.layers)

    def _labels(self, variant: Variant) -> Labels:
        groups, distance = self.groups(variant.scope), self.of(variant)
        found = np.zeros((len(distance), len(groups)), dtype=int)
        for g, group in enumerate(np.unique(groups)):
            inside = np.flatnonzero(groups == group)
            k = self.k if variant.scope == "model" else max(2, min(self.k, len(inside) // 2))
            among = distance[:, inside[:, None], inside]
            found[:, inside] = g * self.k + self._clustered(among, k, METHODS[variant.method][1])
        return found

    def _clustered(self, distance: FloatArray, k: int, by_means: bool) -> Labels:
        if by_means:
            return k_means(coordinates(distance), k, self.generator)
        return np.stack([hierarchical(one, [k], "ward")[0] for one in distance])

    def agreement(self, one: int, other: int) -> FloatArray:
        """Of a variant on the measured curves with another on every set, ``[set]``."""
        scopes = {self.variants[one].scope, self.variants[other].scope}
        groups = self.groups("layer" if "layer" in scopes else "model")
        return rand_within(self.labels[one, :1], self.labels[other], groups)


def _judged(of: _Clusterings, p_noise: float, p_continuum: float) -> Trajectories:
    """Consensus, stability and verdict."""
    n_variants, n_sets = of.labels.shape[:2]
    n_heads = len(of.layers)
    pairs = range(n_variants)
    stability = np.array([of.agreement(v, v)[1:].mean() for v in pairs])
    whole = np.array([variant.scope == "model" for variant in of.variants])
    votes = of.labels[whole]
    shares = together(votes[:, 1:].reshape(-1, n_heads))
    consensus = hierarchical(1 - shares, [of.k], "average")[0]
    resampled = np.stack(
        [hierarchical(1 - together(votes[:, s]), [of.k], "average")[0] for s in range(1, n_sets)]
    )
    placed = np.stack([matched(v, consensus) for v in votes[:, 1:].reshape(-1, n_heads)])
    sure = (placed == consensus).mean(0)
    noisy = p_noise > SIGNIFICANT or np.median(stability[whole]) < STABLE
    verdict = NOISY if noisy else CONTINUUM if p_continuum > SIGNIFICANT else CLUSTERS
    return Trajectories(
        verdict, of.k, np.full(n_heads, -1) if noisy else consensus,
        np.full(n_heads, np.nan) if noisy else sure, shares, of.variants, of.labels[:, 0],
        stability,
        np.array(
            [silhouette(of.of(v)[0], row[0]) for v, row in zip(of.variants, of.labels, strict=True)]
        ),
        np.array([[of.agreement(a, b)[0] for b in pairs] for a in pairs]),
        resampled, p_noise, p_continuum,
    )  # fmt: skip


def _noise_p(curves: HeadCurves, generator: np.random.Generator) -> float:
    """That errors alone let heads differ so much, if all had one curve."""
    weight = 1 / np.maximum(curves.se, np.finfo(float).tiny) ** 2

    def spread(values: FloatArray) -> FloatArray:
        mean = (weight * values).sum(-2, keepdims=True) / weight.sum(-2, keepdims=True)
        return np.asarray((weight * (values - mean) ** 2).sum((-1, -2, -3)))

    null = spread(curves.noise(NULL, generator))
    return rank_p(float(spread(curves.values)), null)


def _number_of_clusters(curves: FloatArray, generator: np.random.Generator) -> tuple[int, float]:
    """The number with the largest silhouette of ``[refinement, head, place]``, and the share of
    Gaussian clouds of curves with the same mean and covariance that have one as large."""
    n = curves.shape[1]
    numbers = range(2, min(LARGEST_NUMBER, n - 1) + 1)
    mean = curves.mean(1, keepdims=True)
    mixed = generator.normal(size=(NULL, n, n)) / np.sqrt(n - 1)
    cloud = mean + np.einsum("sij,rjp->srip", mixed, curves - mean)
    sets = np.concatenate([curves[None], cloud])
    by_scaling, p = [], []
    for scaling in SCALINGS:
        apart = distances(scaled_curves(sets, scaling), "euclidean")
        found = np.array([_silhouettes(one, numbers) for one in apart])
        by_scaling.append(found[0])
        p.append(rank_p(float(found[0].max()), found[1:].max(1)))
    best = int(np.mean(by_scaling, axis=0).argmax())
    return numbers[best], min(1.0, len(SCALINGS) * min(p))


def _silhouettes(distance: FloatArray, numbers: Sequence[int]) -> list[float]:
    return [silhouette(distance, row) for row in hierarchical(distance, numbers, "ward")]


def _types(types: Any, development: Any, names: list[str]) -> Any:
    """Types of the heads, if they are known."""
    if types is None:
        scores = node_of(development, "behaviour_scores")
        if scores is None:
            return None
        types = scores.isel({CHECKPOINT: -1})
    if isinstance(types, xr.Dataset):
        found = require(types, "behaviour_scores", argument="types")
        types = dict(
            zip(found["component"].values.tolist(), found["head_type"].values, strict=True)
        )
    missing = [name for name in names if name not in types]
    if missing:
        raise ValueError(f"types: {', '.join(missing)} have none")
    return np.array([str(types[name]) for name in names])


def _against(found: Trajectories, kinds: Labels, layers: Labels, seed: int) -> dict[str, Any]:
    """Agreement with types by behaviour; NaN where there are no clusters."""
    generator = np.random.default_rng(seed)
    by_variant = [
        float(rand_within(row, kinds, layers) if v.scope == "layer" else rand_index(row, kinds))
        for v, row in zip(found.variants, found.labels, strict=True)
    ]
    data: dict[str, Any] = {"variant_type_ari": ("variant", by_variant)}
    names = ("type_ari", "type_ari_low", "type_ari_high", "type_p", "type_p_in_layers")
    if found.verdict == NOISY:
        return data | dict.fromkeys(names, np.nan)
    value = float(rand_index(found.cluster, kinds))
    low, high = np.quantile(rand_index(found.resampled, kinds), ENDS)
    p = []
    for groups in (np.zeros_like(layers), layers):
        p.append(rank_p(value, rand_index(found.cluster, _permuted(kinds, groups, generator))))
    return data | dict(zip(names, (value, min(low, value), max(high, value), *p), strict=True))


def _permuted(kinds: Labels, groups: Labels, generator: np.random.Generator) -> Labels:
    """Permutations ``[permutation, head]`` within groups of heads."""
    found = np.empty((PERMUTATIONS, len(kinds)), dtype=kinds.dtype)
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)
        repeated = np.tile(kinds[inside], (PERMUTATIONS, 1))
        found[:, inside] = generator.permuted(repeated, axis=1)
    return found
