"""Maps keep planted groups apart, are reproducible, and agreement has the right ends."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.metrics import silhouette_score

from lens_slt.report.plots_maps import MOST_NAMES, plot_map, plot_stability
from lens_slt.schema import stamped
from lens_slt.structure.clusters import cluster_stability, clusters
from lens_slt.structure.maps import map_stability, token_map
from tests.made_matrices import matrix_of

N = 240


def blobs() -> tuple[xr.Dataset, np.ndarray]:
    generator = np.random.default_rng(0)
    truth = np.arange(N) % 3
    values = 3 * np.eye(3, 5)[truth] + 0.4 * generator.normal(size=(N, 5))
    return matrix_of(values.T, 20), truth


@pytest.fixture(scope="module")
def made() -> xr.Dataset:
    """The session's first map: UMAP's compilation is what these tests cost."""
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    pytorch, threads = torch.get_rng_state(), torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*n_jobs.*")
        found = token_map(blobs()[0], n_neighbors=15, seed=1)
    assert (np.random.get_state()[1] == numpy[1]).all()  # noqa: NPY002
    assert np.random.get_state()[2] == numpy[2]  # noqa: NPY002
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), pytorch)
    assert torch.get_num_threads() == threads  # numba sets that of the process
    return found


def random_map(seed: int) -> xr.Dataset:
    matrix, _ = blobs()
    points = np.random.default_rng(seed).normal(size=(N, 2))
    return stamped(xr.Dataset({"map": (("token", "axis"), points)}, matrix.coords), "token_map")


def test_groups_lie_apart_and_the_seed_decides(made):
    matrix, truth = blobs()
    assert made["map"].dims == ("token", "axis") and made["map"].shape == (N, 2)
    assert list(made["axis"].values) == ["UMAP 1", "UMAP 2"]
    assert silhouette_score(made["map"].values, truth) > 0.6
    np.random.seed(7)  # noqa: NPY002
    xr.testing.assert_identical(token_map(matrix, n_neighbors=15, seed=1), made)


def test_agreement_with_itself_with_chance_and_in_between(made):
    same = map_stability(made, made)
    assert float(same["agreement"]) == 1 and same["jaccard"].shape == (N,)
    chance = [map_stability(random_map(i), random_map(i + 50)) for i in range(8)]
    agreement = np.mean([float(one["agreement"]) for one in chance])
    assert agreement == pytest.approx(float(chance[0]["chance"]), rel=0.1)
    assert float(chance[0]["chance"]) == pytest.approx(15 / 239 / 2, rel=0.1)
    moved = made.copy()
    moved["map"] = (("token", "axis"), made["map"].values @ np.array([[0.0, 2], [-2, 0]]) + 3)
    assert float(map_stability(made, moved.isel(token=slice(None, None, -1)))["agreement"]) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(n_neighbors=240), "n_neighbors = 240 needs at least 241 tokens; the matrix has 240"),
        (dict(n_neighbors=1.5), "n_neighbors must be an integer of at least 2; got 1.5"),
        (dict(min_dist=-1), "min_dist must be a finite number at least 0 and at most 1; got -1"),
        (dict(n_axes=0), "n_axes must be an integer of at least 1; got 0"),
    ],
)
def test_messages(settings, message):
    with pytest.raises(ValueError, match=message):
        token_map(blobs()[0], **settings)


def test_map_stability_messages():
    first = random_map(0)
    with pytest.raises(ValueError, match="n_neighbors = 15 needs at least 16 tokens; .* has 10"):
        map_stability(first, first.isel(token=slice(10)))
    with pytest.raises(ValueError, match=r"second must .*; it has no position \(token\)"):
        map_stability(first, first.drop_vars("position"))
    twice = xr.concat([first, first], "token")
    with pytest.raises(ValueError, match="first has the same sequence and position more than once"):
        map_stability(twice, first)


def test_figure_colours_clusters_and_shows_texts():
    labels = np.arange(N) % 9 - 1
    figure = plot_map(random_map(0), labels, [f"text {i}" for i in range(N)], label="cluster")
    assert [trace.name for trace in figure.data] == [
        "no cluster", *(f"cluster {i}" for i in range(8))
    ]  # fmt: skip
    looks = {(trace.marker.color, trace.marker.symbol) for trace in figure.data}
    assert len(looks) == 9
    assert list(figure.data[1].text[:2]) == ["text 1", "text 10"]
    assert {trace.type for trace in figure.data} == {"scattergl"}
    assert sum(len(trace.x) for trace in figure.data) == N
    assert figure.layout.yaxis.scaleanchor == "x" and figure.layout.yaxis.scaleratio == 1


def test_figure_of_numbers_booleans_and_many_names():
    coords = random_map(0).assign_coords(axis=["UMAP 1", "UMAP 2"])
    figure = plot_map(coords, np.linspace(0, 1, N), label="loss (nats)")
    assert figure.data[0].marker.colorbar.title.text == "loss (nats)"
    assert figure.layout.xaxis.title.text == "UMAP 1"
    names = [trace.name for trace in plot_map(coords, np.arange(N) < 5).data]
    assert names == ["no", "yes"]
    many = plot_map(coords, [f"name {i % 60}" for i in range(N)])
    assert len(many.data) == MOST_NAMES + 1 and many.data[-1].name == "other"
    with pytest.raises(ValueError, match="color must have one value for each of the 240 tokens"):
        plot_map(coords, np.arange(10))
    with pytest.raises(ValueError, match="hover must have one value for each of the 240"):
        plot_map(coords, None, ["a"])


def test_stability_figure_draws_chance():
    matrix, _ = blobs()
    found = clusters(matrix, n_neighbors=15)
    compared = {"seeds 0 and 1": cluster_stability(found, clusters(matrix, n_neighbors=15, seed=1))}
    shared = {"seeds 0 and 1": map_stability(random_map(0), random_map(1))}
    figure = plot_stability(compared, shared)
    shown = {trace.name: list(trace.x) for trace in figure.data}
    assert shown["adjusted Rand index"] == [1] and shown["chance (both indices)"] == [0]
    assert shown["Jaccard overlap of each cluster"] == [1, 1, 1]
    assert shown["chance (neighbours)"] == [float(shared["seeds 0 and 1"]["chance"])]
    assert len(plot_stability(maps=shared).data) == 2
    with pytest.raises(ValueError, match="got neither"):
        plot_stability()
