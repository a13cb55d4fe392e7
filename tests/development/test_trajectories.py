"""Clusters of heads: distances and partitions against other code, verdicts on planted curves."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

import lens_slt as ls
from lens_slt.development.distances import distances, on_even_grid, scaled_curves, warped
from lens_slt.development.head_curves import HeadCurves, read_head_curves
from lens_slt.development.partitions import (
    coordinates,
    k_means,
    matched,
    rand_index,
    rand_within,
    silhouette,
)
from lens_slt.development.trajectories import CLUSTERS, CONTINUUM, NOISY, find_trajectories
from tests.made_curves import SHARED, as_result, curves_of, part_of_run, planted_clusters, shapes

GENERATOR = np.random.default_rng(0)


def plain_warping(a: np.ndarray, b: np.ndarray, width: int) -> float:
    """Dynamic time warping of two ``[place, channel]`` by the textbook's recursion."""
    n = len(a)
    cost = np.full((n + 1, n + 1), np.inf)
    cost[0, 0] = 0
    for i in range(n):
        for j in range(n):
            if abs(i - j) <= width:
                before = min(cost[i, j], cost[i, j + 1], cost[i + 1, j])
                cost[i + 1, j + 1] = before + ((a[i] - b[j]) ** 2).sum()
    return float(np.sqrt(cost[n, n]))


def test_warping_is_the_textbooks() -> None:
    a, b = GENERATOR.normal(size=(2, 3, 10, 2, 4))  # set, place, channel, pair
    found = warped(a, b)
    for s, p in np.ndindex(3, 4):
        assert found[s, p] == pytest.approx(plain_warping(a[s, ..., p], b[s, ..., p], 2))


def test_a_shifted_curve_is_near_under_warping_and_by_shape() -> None:
    x = np.linspace(0, 1, 40)
    curves = np.stack([np.exp(-((x - c) ** 2) / 0.005) for c in (0.45, 0.52, 0.45)])
    curves[2] *= -1
    sets = curves[None, None]
    for kind in ("warped", "shape"):
        found = distances(sets, kind)[0]
        assert found[0, 1] < 0.1 * distances(sets, kind)[0][0, 2]
        assert np.allclose(found, found.T)
    assert distances(sets, "shape")[0][0, 1] < 0.02


def test_the_shape_distance_is_that_of_numpys_correlation() -> None:
    curves = GENERATOR.normal(size=(1, 1, 2, 12))
    a, b = curves[0, 0]
    best = np.correlate(a, b, "full").max() / np.linalg.norm(a) / np.linalg.norm(b)
    assert distances(curves, "shape")[0, 0, 1] == pytest.approx(1 - best)


def test_euclidean_distances_are_scipys_and_their_coordinates_keep_them() -> None:
    curves = GENERATOR.normal(size=(2, 3, 6, 5))
    flat = curves.transpose(0, 2, 1, 3).reshape(2, 6, -1)
    found = distances(curves, "euclidean")
    points = coordinates(found)
    for s in range(2):
        assert np.allclose(found[s], cdist(flat[s], flat[s]))
        assert np.allclose(cdist(points[s], points[s]), found[s])


def test_a_grid_is_even_and_lines_stay_lines() -> None:
    x = np.array([0.0, 1, 4, 10])
    assert np.allclose(on_even_grid(x, 2 * x + 1, 6), 2 * np.linspace(0, 10, 6) + 1)


def test_scales() -> None:
    curves = 3 + 5 * GENERATOR.normal(size=(2, 4, 9))
    assert np.allclose(scaled_curves(curves, "standardised").std(-1), 1)
    assert np.allclose(np.ptp(scaled_curves(curves, "min-max"), -1), 1)
    ratio = np.ptp(scaled_curves(curves, "none"), -1) / np.ptp(curves, -1)
    assert np.allclose(ratio, ratio[:, :1])  # heads keep their sizes, channels get one scale


def test_k_means_finds_what_scikit_learn_finds() -> None:
    for seed in range(3):
        centres = 6 * np.random.default_rng(seed).normal(size=(3, 4))
        points = np.repeat(centres, 7, 0) + GENERATOR.normal(size=(21, 4))
        labels = k_means(points[None], 3, np.random.default_rng(seed))[0]
        theirs = KMeans(3, n_init=10, random_state=0).fit_predict(points)
        assert adjusted_rand_score(labels, theirs) == 1


def test_rand_index_and_silhouette_are_scikit_learns() -> None:
    one, other = GENERATOR.integers(0, 3, (2, 5, 12))
    theirs = [adjusted_rand_score(a, b) for a, b in zip(one, other, strict=True)]
    assert np.allclose(rand_index(one, other), theirs)
    assert rand_index(np.zeros(5, int), np.zeros(5, int)) == 1
    points = GENERATOR.normal(size=(12, 2))
    labels = np.array([0] * 5 + [1] * 6 + [2])
    distance = cdist(points, points)
    assert silhouette(distance, labels) == pytest.approx(
        silhouette_score(distance, labels, metric="precomputed")
    )


def test_within_groups_labels_of_other_groups_do_not_count() -> None:
    one, other = np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2, 2, 3, 3])
    assert rand_within(one, other, np.repeat([0, 1], 4)) == 1
    assert rand_index(one, other) < 1


def test_labels_are_renamed_like_others() -> None:
    assert matched(np.array([5, 5, 2, 2, 2, 7]), np.array([0, 0, 1, 1, 1, 1])).tolist() == [
        0, 0, 1, 1, 1, -1,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_planted_clusters_are_found_and_sure(seed: int) -> None:
    curves, kind = planted_clusters(seed=seed)
    found = find_trajectories(curves, n_bootstrap=20)
    assert found.verdict == CLUSTERS
    assert found.n_clusters == 4
    assert rand_index(found.cluster, kind) == 1
    assert found.sure.min() > 0.8
    assert np.median(found.stability) > 0.8


def test_a_head_between_two_clusters_is_less_sure() -> None:
    curves, _ = planted_clusters(noise=0.4)
    values = curves.values.copy()
    values[0, 0] = (shapes()[0] + shapes()[1]) / 2
    found = find_trajectories(
        HeadCurves(curves.steps, curves.heads, curves.refinements, values, curves.se),
        n_clusters=4, n_bootstrap=20,
    )  # fmt: skip
    assert found.sure.argmin() == 0
    assert found.sure[0] < np.median(found.sure) - 0.05


@pytest.mark.parametrize("n_blocks", [0, 12])
def test_heads_that_differ_by_noise_alone_are_too_noisy(n_blocks: int) -> None:
    values = np.repeat(shapes()[:1], 16, 0)[None]
    for seed in range(2):
        found = find_trajectories(
            curves_of(values, 0.3, n_blocks=n_blocks, seed=seed), n_bootstrap=10
        )
        assert found.verdict == NOISY
        assert (found.cluster == -1).all()


def test_a_cloud_of_curves_is_no_clusters() -> None:
    u = part_of_run()
    ways = np.stack([u, np.sin(4 * u), u**3])
    values = np.random.default_rng(0).normal(size=(16, 3)) @ ways
    found = find_trajectories(curves_of(values[None], 0.05), n_bootstrap=10)
    assert found.verdict == CONTINUUM
    assert found.cluster.min() == 0  # a way to cut it, all the same


def test_refinements_help_together() -> None:
    """Two kinds differ in one refinement, two in the other: together there are four."""
    rising, late = shapes()[0], shapes()[1]
    kind = np.arange(16) % 4
    values = np.stack([
        np.where((kind % 2)[:, None], rising, late), np.where((kind // 2)[:, None], rising, late),
    ])  # fmt: skip
    curves = curves_of(values, 0.2, refinements=("llc", "code"))
    assert rand_index(find_trajectories(curves, n_bootstrap=5).cluster, kind) == 1
    result = as_result(curves)
    alone = ls.head_trajectories(result, refinements=["llc"], n_bootstrap=5)
    assert rand_index(alone["cluster"].values, kind % 2) == 1


def test_the_result_says_how_clusters_go_with_types() -> None:
    curves, kind = planted_clusters()
    result = as_result(curves)
    types = dict(zip(curves.heads, (f"type {k}" for k in kind), strict=True))
    found = ls.head_trajectories(result, types=types, n_bootstrap=10)
    assert found["type_ari"] == 1
    assert found["type_p"] < 0.01
    assert found["type_p_in_layers"] < 0.05
    assert found["centre"].dims == ("checkpoint", "label", "refinement")
    own = found["centre"].sel(label=found["cluster"].sel(component="L0H3").item())
    assert np.allclose(own.isel(refinement=0), curves.values[0, kind == 3].mean(0))
    assert (found["agreement"].values.diagonal() == 1).all()
    mixed = dict(zip(curves.heads, np.random.default_rng(0).permutation(kind), strict=True))
    other = ls.head_trajectories(
        result, types={k: str(v) for k, v in mixed.items()}, n_bootstrap=10
    )
    assert other["type_p"] > 0.05


def test_types_by_layer_alone_are_told() -> None:
    """Clusters that are the layers agree with types that are the layers, and say no more."""
    values = np.repeat(shapes()[[0, 3]], 8, 0)[None]
    types = {f"L{i // 8}H{i % 8}": f"layer {i // 8}" for i in range(16)}
    found = ls.head_trajectories(as_result(curves_of(values, 0.3)), types=types, n_bootstrap=5)
    assert found["type_p"] < 0.01
    assert found["type_p_in_layers"] == 1


def test_noise_goes_together_as_blocks_do() -> None:
    values = np.zeros((1, 8, 20))
    drawn = curves_of(values, 0.3, n_blocks=12).noise(400, np.random.default_rng(0))
    assert drawn.std(0).mean() == pytest.approx(0.3, rel=0.1)
    own = (2 * (1 - SHARED)) ** 0.5
    assert np.diff(drawn, axis=-1).std() == pytest.approx(0.3 * own, rel=0.25)
    apart = curves_of(values, 0.3).noise(400, np.random.default_rng(0))
    assert np.diff(apart, axis=-1).std() == pytest.approx(0.3 * 2**0.5, rel=0.1)


def test_what_cannot_be_clustered_is_refused() -> None:
    curves, _ = planted_clusters()
    result = as_result(curves)
    with pytest.raises(ValueError, match="at least 4 heads"):
        ls.head_trajectories(result.isel(component=slice(3)))
    with pytest.raises(ValueError, match="5 checkpoints; got 16 and 3"):
        ls.head_trajectories(result.isel(checkpoint=slice(3)))
    with pytest.raises(ValueError, match=r"refinements\[0\].*did you mean 'llc'"):
        ls.head_trajectories(result, refinements=["lc"])
    with pytest.raises(ValueError, match="curves over checkpoints"):
        ls.head_trajectories(result.isel(checkpoint=0))
    with pytest.raises(ValueError, match="n_clusters"):
        ls.head_trajectories(result, n_clusters=16)
    with pytest.raises(ValueError, match="types: L0H1"):
        ls.head_trajectories(result, types={"L0H0": "other"})
    gap = result.copy(deep=True)
    gap["llc"][3, 2] = np.nan
    with pytest.raises(ValueError, match=r"L0H2 at step .* has no llc"):
        ls.head_trajectories(gap)
    assert len(read_head_curves(gap.dropna("checkpoint", subset=["llc"])).steps) == 19
    with pytest.raises(ValueError, match="no heads"):
        ls.head_trajectories(result.isel(component=[0]).assign_coords(component=["L0MLP"]))


def test_curves_over_probes_are_read_in_order() -> None:
    values = np.arange(2 * 3 * 20.0).reshape(2, 3, 20)
    curves = curves_of(values, 0.1, refinements=("llc", "code"), n_blocks=8)
    read = read_head_curves(as_result(curves))
    assert read.refinements == ("llc", "code")
    assert read.blocks is not None
    assert np.allclose(read.values, curves.values)
    assert np.allclose(read.blocks, curves.blocks)
    assert isinstance(as_result(curves), xr.Dataset)
