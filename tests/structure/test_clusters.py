"""Graph quantities against direct computation, planted clusters, chance, and messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from lens_slt.structure.cluster_summary import cluster_summary
from lens_slt.structure.clusters import METHODS, cluster_stability, clusters
from lens_slt.structure.conductance import (
    best_cut,
    conductance,
    neighbour_graph,
    personalised_pagerank,
    sweep,
)
from tests.made_matrices import matrix_of

POSITIONS = 25


def blobs(
    n: int = 600, sizes=(0.4, 0.3, 0.3), spread: float = 0.35
) -> tuple[xr.Dataset, np.ndarray]:
    generator = np.random.default_rng(3)
    truth = generator.choice(len(sizes), size=n, p=sizes)
    centres = 2 * generator.normal(size=(len(sizes), 6))
    points = centres[truth] + spread * generator.normal(size=(n, 6))
    return matrix_of(points.T, POSITIONS, "chi"), truth


def cloud(kind: str, n: int = 1200, d: int = 6) -> xr.Dataset:
    generator = np.random.default_rng(1)
    draw = {
        "gaussian": lambda size: generator.normal(size=size),
        "uniform": lambda size: generator.random(size),
        "heavy": lambda size: generator.standard_t(3, size=size),
        "shared mode": lambda size: (
            generator.normal(size=(n, 1)) + 0.2 * generator.normal(size=size)
        ),
    }[kind]
    return matrix_of(draw((n, d)).T, POSITIONS, "chi")


@pytest.fixture(scope="module")
def found() -> xr.Dataset:
    return clusters(blobs()[0])


def two_triangles() -> sparse.csr_array:
    """0-1-2 and 3-4-5, joined by 2-3."""
    edges = [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3)]
    dense = np.zeros((6, 6))
    for a, b in edges:
        dense[a, b] = dense[b, a] = 1
    return sparse.csr_array(dense)


def test_conductance_of_a_graph_by_hand():
    graph = two_triangles()
    members = np.array([1, 1, 1, 0, 0, 0], dtype=bool)
    assert conductance(graph, members) == pytest.approx(1 / 7)
    assert conductance(graph, ~members) == pytest.approx(1 / 7)
    assert conductance(graph, np.array([1, 0, 0, 0, 0, 0], dtype=bool)) == 1
    assert conductance(graph, np.ones(6, dtype=bool)) == 1  # nothing to cut from


def test_sweep_is_the_conductance_of_every_prefix():
    graph = two_triangles()
    rank = personalised_pagerank(graph, np.array([0]), 0.1, 1e-9)[:, 0]
    found = sweep(graph, rank, 1e-9)
    assert sorted(found.nodes) == list(range(6)) and set(found.nodes[:3]) == {0, 1, 2}
    for i in range(6):
        members = np.isin(np.arange(6), found.nodes[: i + 1])
        assert found.conductance[i] == pytest.approx(conductance(graph, members))
    assert found.share[2] == pytest.approx(7 / 14)
    assert best_cut(found, "valley", 2, 0.6, 1.2) == best_cut(found, "lowest", 2, 0.6, 1.2) == 3
    assert best_cut(found, "valley", 4, 0.6, 1.2) is None


def test_valley_stops_at_the_first_cluster_where_lowest_joins_two():
    """Three cliques, the first two joined more closely: cutting off both is lower than one."""
    dense = np.kron(np.eye(4), np.ones((10, 10))) - np.eye(40)
    for a, b in [(0, 10), (1, 11), (2, 12), (0, 20), (20, 30), (21, 31), (22, 32)]:
        dense[a, b] = dense[b, a] = 1
    graph = sparse.csr_array(dense)
    found = sweep(graph, personalised_pagerank(graph, np.array([5]), 0.001, 1e-9)[:, 0], 1e-9)
    assert best_cut(found, "valley", 3, 0.6, 1.2) == 10
    assert best_cut(found, "lowest", 3, 0.6, 1.2) == 20


def test_pagerank_is_the_solution_of_its_linear_system_and_within_the_pushes_bound():
    points = np.random.default_rng(0).normal(size=(80, 3))
    graph, alpha = neighbour_graph(points, 6), 0.01
    dense = graph.toarray()
    assert (dense == dense.T).all() and dense.sum(0).min() >= 6 and not dense.diagonal().any()
    degree = dense.sum(0)
    lazy = (np.eye(80) + dense / degree[:, None]) / 2
    exact = np.linalg.solve((np.eye(80) - (1 - alpha) * lazy).T, alpha * np.eye(80))
    for tolerance in (1e-4, 1e-9):
        made = personalised_pagerank(graph, np.array([0, 7]), alpha, tolerance)
        assert np.abs((made - exact[:, [0, 7]]) / degree[:, None]).max() <= tolerance
    assert made.sum(0) == pytest.approx(1)
    pushed = push(dense, 7, alpha, 1e-4)
    assert np.abs((pushed - exact[:, 7]) / degree).max() <= 1e-4
    assert (pushed <= exact[:, 7] + 1e-12).all()


def push(dense: np.ndarray, seed: int, alpha: float, tolerance: float) -> np.ndarray:
    """Andersen, Chung & Lang's algorithm, for comparison."""
    degree = dense.sum(0)
    rank, residual = np.zeros(len(dense)), np.zeros(len(dense))
    residual[seed] = 1.0
    while (residual / degree).max() >= tolerance:
        u = int((residual / degree).argmax())
        amount, residual[u] = residual[u], (1 - alpha) * residual[u] / 2
        rank[u] += alpha * amount
        residual += (1 - alpha) * amount / 2 * dense[u] / degree[u]
    return rank


@pytest.mark.parametrize("method", METHODS)
def test_planted_clusters_are_found(method):
    matrix, truth = blobs()
    made = clusters(matrix, method=method)
    assert adjusted_rand_score(truth, made["cluster"].values) > 0.9
    assert made["beyond_chance"].values.all() and made.sizes["label"] == 3
    size = made["size"].values
    assert (np.diff(size) <= 0).all() and size.sum() == (made["cluster"].values >= 0).sum()
    assert (made["conductance"] < 0.3 * made["reference"]).all()
    assert (made["n_sequences"] == 24).all()
    quality = made["probability" if method == "hdbscan" else "seed_token"].values
    if method == "hdbscan":
        assert ((quality > 0.5) & (quality <= 1)).all()
    else:
        assert (made["cluster"].values[quality] == made["label"].values).all()


def test_touching_clusters_are_not_merged():
    generator = np.random.default_rng(2)
    truth = generator.integers(8, size=1600)
    centres = 2.5 * generator.normal(size=(8, 8))
    matrix = matrix_of((centres[truth] + generator.normal(size=(1600, 8))).T, POSITIONS, "chi")
    made = {cut: clusters(matrix, cut=cut)["cluster"].values for cut in ("valley", "lowest")}
    assert adjusted_rand_score(truth, made["valley"]) > 0.9
    assert adjusted_rand_score(truth, made["lowest"]) < adjusted_rand_score(truth, made["valley"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["gaussian", "uniform", "heavy", "shared mode"])
def test_clouds_without_clusters_give_none_or_are_flagged(method, kind):
    made = clusters(cloud(kind), method=method)
    assert not made["beyond_chance"].values.any()
    if method == "spectroscopy":
        assert (made["cluster"] == -1).all() and made.sizes["label"] == 0


def test_given_threshold_replaces_the_one_of_chance():
    made = clusters(cloud("gaussian"), max_conductance=0.9)
    assert made.sizes["label"] and (made["conductance"] <= 0.9).all()
    assert not made["beyond_chance"].values.any()


def test_same_seed_same_result_and_global_random_states_stay(found):
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    again = clusters(blobs()[0])
    xr.testing.assert_identical(found, again)
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_scale_of_a_column_does_not_matter(found):
    matrix, _ = blobs()
    matrix["chi"] = matrix["chi"] * np.array([1, 10, 0.1, 1, 5, 1])[:, None]
    assert (clusters(matrix)["cluster"] == found["cluster"]).all()


def test_stability_is_one_against_itself_and_chance_on_shuffled_labels(found):
    same = cluster_stability(found, found)
    assert float(same["rand"]) == float(same["information"]) == 1
    assert (same["jaccard"] == 1).all() and (same["match"] == found["label"]).all()
    shuffled = found.copy()
    labels = np.random.default_rng(5).permutation(found["cluster"].values)
    shuffled["cluster"] = ("token", labels)
    chance = cluster_stability(found, shuffled)
    assert abs(float(chance["rand"])) < 0.02 and abs(float(chance["information"])) < 0.02
    assert np.allclose(chance["jaccard"], chance["jaccard_chance"], atol=0.05)


def test_stability_matches_tokens_by_place_and_counts_those_in_both(found):
    part = found.isel(token=slice(None, None, -2)).copy()
    part["cluster"] = ("token", np.where(np.arange(300) < 30, -1, part["cluster"].values))
    made = cluster_stability(found, part)
    here = found["cluster"].values[1::2][::-1] >= 0
    assert int(made["n_both"]) == (here & (np.arange(300) >= 30)).sum()
    assert float(made["rand"]) == 1
    with pytest.raises(
        ValueError, match="first \\(600 tokens\\) and second \\(300 tokens\\) share"
    ):
        cluster_stability(found, part.assign_coords(sequence=part["sequence"] + 100))


def test_nothing_found_is_compared_without_error(found):
    none = clusters(cloud("gaussian"))
    assert np.isnan(float(cluster_stability(none, none)["rand"]))
    made = cluster_stability(found, none)
    assert (made["jaccard"] == 0).all() and (made["match"] == -1).all()


def test_summary_counts_by_hand(found):
    matrix, _ = blobs()
    member = found["cluster"].values == 0
    other = np.random.default_rng(0).permutation(600) < 200
    labels = np.stack([member, other]).reshape(2, 24, POSITIONS)
    made = cluster_summary(found, patterns_of(labels), matrix, permutations=99)
    assert list(made["size"]) == list(found["size"])
    x = matrix["chi"].values[2]
    expected = ((x - x.mean()) / x.std())[member].mean()
    assert float(made["mean"].sel(label=0, component="L0H2")) == pytest.approx(expected)
    row = made.sel(label=0, pattern="b")
    a = (member & labels[1].ravel()).sum()
    b, c, d = member.sum() - a, 200 - a, 400 - member.sum() + a
    assert float(row["share"]) == pytest.approx(a / (a + b))
    assert float(row["share_outside"]) == pytest.approx(c / (c + d))
    odds = (a + 0.5) * (d + 0.5) / (b + 0.5) / (c + 0.5)
    error = np.sqrt(sum(1 / (cell + 0.5) for cell in (a, b, c, d)))
    assert float(row["odds_ratio"]) == pytest.approx(odds)
    assert float(row["odds_high"]) == pytest.approx(odds * np.exp(1.96 * error), rel=1e-4)
    own = made.sel(label=0, pattern="a")
    assert float(own["share"]) == 1 and float(own["share_outside"]) == 0
    assert float(own["p"]) == 2 / 100 and float(own["p_token"]) < 1e-50
    assert 0.05 < float(row["p"]) <= 1


def test_p_counts_sequences_not_tokens(found):
    """A pattern and a cluster that meet in a single sequence are no evidence, however many meet."""
    matrix, _ = blobs()
    one = found.copy()
    one["cluster"] = ("token", np.where(np.arange(600) < 25, 0, -1))
    one = one.isel(label=[0])
    labels = np.zeros((1, 24, POSITIONS), dtype=bool)
    labels[0, 0] = True
    made = cluster_summary(one, patterns_of(labels), matrix, permutations=999)
    assert float(made["p_token"].squeeze()) < 1e-20
    assert float(made["p"].squeeze()) == pytest.approx(2 / 24, abs=0.03)


def test_p_is_uniform_without_a_relation_and_q_is_corrected(found):
    matrix, _ = blobs()
    labels = np.random.default_rng(0).random((60, 24, POSITIONS)) < 0.2
    names = [str(i) for i in range(60)]
    made = cluster_summary(found, patterns_of(labels, names), matrix, permutations=199)
    p = made["p"].values
    assert np.mean(p < 0.1) == pytest.approx(0.1, abs=0.06)
    assert (made["q"] >= made["p"]).all() and float(made["q"].min()) > 0.05


def test_summary_of_nothing_is_empty():
    matrix = cloud("gaussian")
    labels = np.zeros((1, 48, POSITIONS), dtype=bool)
    made = cluster_summary(clusters(matrix), patterns_of(labels, ["a"]), matrix, permutations=9)
    assert made["p"].shape == (0, 1)


def patterns_of(labels: np.ndarray, names: list[str] | None = None) -> xr.DataArray:
    names = names or ["a", "b"][: len(labels)]
    return xr.DataArray(labels, dims=("pattern", "sequence", "position"), coords={"pattern": names})


def test_summary_messages(found):
    matrix, _ = blobs()
    labels = patterns_of(np.zeros((1, 23, POSITIONS), dtype=bool))
    with pytest.raises(ValueError, match="patterns label 23 sequences of 25 positions; the matrix"):
        cluster_summary(found, labels, matrix)
    with pytest.raises(ValueError, match="result has clusters of 600 tokens and matrix has 599"):
        cluster_summary(found, labels, matrix.isel(token=slice(599)))
    with pytest.raises(ValueError, match="permutations must be an integer of at least 1; got 0"):
        cluster_summary(found, labels, matrix, permutations=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(method="hdbskan"), "method must be one of spectroscopy, hdbscan; got 'hdbskan'; did"),
        (dict(cut="low"), "cut must be one of valley, lowest; got 'low'; did you mean 'lowest'"),
        (dict(n_neighbors=0), "n_neighbors must be an integer of at least 1; got 0"),
        (dict(min_size=1), "min_size must be an integer of at least 2; got 1"),
        (dict(alpha=1.0), "alpha must be a finite number above 0 and below 1; got 1.0"),
        (
            dict(max_conductance=2),
            "max_conductance must be .* above 0 and below 1; got 2",
        ),
        (dict(n_neighbors=600), "needs at least 601 tokens; the matrix has 600: .* at most"),
    ],
)
def test_messages(settings, message):
    with pytest.raises(ValueError, match=message):
        clusters(blobs()[0], **settings)


def test_what_cannot_be_standardised_is_refused():
    matrix, _ = blobs()
    holes = matrix.copy(deep=True)
    holes["chi"][2, :5] = np.nan
    with pytest.raises(ValueError, match="5 values that are not finite, in L0H2"):
        clusters(holes)
    constant = matrix.copy(deep=True)
    constant["chi"][4] = 3.0
    with pytest.raises(ValueError, match="the column of L0H4 is constant"):
        clusters(constant)
    with pytest.raises(ValueError, match="5 tokens for 6 components"):
        clusters(matrix.isel(token=slice(5)))
