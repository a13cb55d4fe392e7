"""Figures of what is read off curves hold its numbers, and take its texts as texts."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.report.show import kind_of
from tests.development.test_alignment import SIZES
from tests.development.test_alignment import planted as planted_modes
from tests.development.test_migration import planted as planted_migration
from tests.development.test_pattern_influence import patterns
from tests.development.test_pattern_influence import run as planted_influence
from tests.made_curves import STEPS, as_result, planted_clusters
from tests.report.hostile import hostile


@pytest.fixture(scope="module")
def results() -> dict[str, xr.Dataset]:
    curves, kind = planted_clusters(n_heads=8)
    llc = as_result(curves)
    types = {head: f"type {k}" for head, k in zip(curves.heads, kind, strict=True)}
    rises = xr.DataArray(
        1 / (1 + np.exp(-6 * (np.log1p(STEPS) - np.log1p([[30], [900]])))),
        coords={"pattern": ["early", "late"], "checkpoint": STEPS},
    )
    migrating = as_result(planted_migration())
    return {
        "head_trajectories": ls.head_trajectories(llc, types=types, n_bootstrap=4),
        "differentiation": ls.differentiation(llc, n_bootstrap=20),
        "migration": ls.migration(migrating, probe="llc", n_bootstrap=20),
        "mode_development": ls.mode_development(planted_modes(SIZES), n_modes=2, n_bootstrap=8),
        "pattern_influence": ls.pattern_influence(planted_influence(), patterns()),
        "critical_checkpoints": ls.critical_checkpoints(rises),
    }


def traces(figure: go.Figure, mode: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if getattr(trace, "mode", None) == mode]


KINDS = (
    "head_trajectories", "differentiation", "migration", "mode_development", "pattern_influence",
    "critical_checkpoints",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_has_a_figure_in_which_texts_are_texts(kind, results):
    assert kind_of(results[kind]) == kind
    assert ls.plot(results[kind]).layout.title.text
    figure = ls.plot(hostile(results[kind])).to_json()
    for raw in ("\\u003cimg", "<img", "\\u003ca ", "<a ", "%{attacked}", "$", "\\u001b"):
        assert raw not in figure, raw


def test_trajectories_are_means_of_clusters_with_bands(results):
    found = results["head_trajectories"]
    figure = ls.plot(found)
    drawn = traces(figure, "lines+markers")
    assert len(drawn) == found.sizes["label"]
    np.testing.assert_allclose(drawn[1].y, found["centre"].isel(label=1, refinement=0))
    upper, lower = traces(figure, "lines")[2:4]
    np.testing.assert_allclose(
        np.array(upper.y) - lower.y,
        2 * 1.96 * found["centre_se"].isel(label=1, refinement=0),
        rtol=1e-4,
    )
    (shares,) = (trace for trace in figure.data if trace.type == "heatmap")
    one, other = shares.x[0], shares.x[1]
    assert shares.z[0][1] == found["together"].sel(component=one, other_component=other)
    assert shares.y[0].startswith(f"{one} type")
    whole = found.isel(label=slice(0))  # too noisy: no clusters
    assert [trace.type for trace in ls.plot(whole).data] == ["heatmap"]


def test_the_error_of_a_clusters_mean_is_that_of_independent_curves(results):
    found, (curves, _) = results["head_trajectories"], planted_clusters(n_heads=8)
    own = found["cluster"].values == found["label"].values[0]
    expected = np.sqrt((curves.se[0, own] ** 2).sum(0)) / own.sum()
    np.testing.assert_allclose(found["centre_se"].isel(label=0, refinement=0), expected)


def test_differentiation_is_where_it_happens(results):
    found = results["differentiation"].isel(refinement=0)
    figure = ls.plot(results["differentiation"])
    (drawn,) = traces(figure, "markers+text")
    np.testing.assert_allclose(drawn.x, np.log1p(found["step"]))
    there = np.isfinite(found["step_high"].values)
    low = np.array(drawn.x) - drawn.error_x.arrayminus
    np.testing.assert_allclose(low[there], np.log1p(found["step_low"])[there])
    assert list(figure.layout.yaxis.ticktext) == list(found["component"].values)
    marks = {"above": "▲", "below": "▼"}
    assert list(drawn.text) == [marks[side] for side in found["side"].values]


def test_migration_shows_layers_and_changes_of_heads(results):
    found = results["migration"]
    figure = ls.plot(found)
    layers = {trace.name: trace for trace in traces(figure, "lines+markers")}
    assert list(layers) == ["L0H*", "L1H*"]
    np.testing.assert_allclose(layers["L1H*"].y, found["llc"].sel(component="L1H*"))
    for trace in traces(figure, "markers"):
        rows = found.sel(component=list(trace.y))
        np.testing.assert_allclose(trace.x, rows["change"])
        np.testing.assert_allclose(np.array(trace.x) + trace.error_x.array, rows["change_high"])
        clear = [not symbol.endswith("-open") for symbol in trace.marker.symbol]
        assert clear == list(rows["word"].values != "no change shown")
    lines_at = [shape.x0 for shape in figure.layout.shapes if shape.type == "line"]
    assert np.log1p(found.attrs["before_step"]) in lines_at
    assert found.attrs["verdict"] in figure.layout.title.text


def test_modes_are_as_like_as_they_are(results):
    found = results["mode_development"]
    figure = ls.plot(found)
    cosine, correlation = traces(figure, "lines+markers")[:2]
    np.testing.assert_allclose(cosine.y, np.cos(np.radians(found["angle"].isel(mode=0))))
    np.testing.assert_allclose(correlation.y, found["correlation"].isel(mode=0))
    upper = traces(figure, "lines")[0]
    np.testing.assert_allclose(upper.y, np.cos(np.radians(found["angle_low"].isel(mode=0))))
    at = float(np.log1p(found["step"][0]))
    assert at in [shape.x0 for shape in figure.layout.shapes if shape.type == "line"]


def test_influence_is_drawn_for_pairs_of_different_patterns(results):
    found = results["pattern_influence"]
    drawn = traces(ls.plot(found), "lines+markers")
    assert len(drawn) == 2  # of each on the other
    pair = found.sel(query="first", source="second")
    np.testing.assert_allclose(drawn[0].y, pair["influence"])
    filled = [not symbol.endswith("-open") for symbol in drawn[0].marker.symbol]
    assert filled == list(pair["effect"].values != "unclear")
    other = traces(ls.plot_pattern_influence(found, quantity="correlation"), "lines+markers")
    np.testing.assert_allclose(other[0].y, pair["correlation"])
    with pytest.raises(ValueError, match="quantity must be one of influence, correlation"):
        ls.plot_pattern_influence(found, quantity="size")


def test_critical_checkpoints_are_marked_with_their_shares(results):
    found = results["critical_checkpoints"]
    assert found.sizes["critical"] == 2
    figure = ls.plot(found)
    (speed,) = traces(figure, "lines+markers")
    np.testing.assert_allclose(speed.y, found["speed"])
    lines_at = [shape.x0 for shape in figure.layout.shapes if shape.type == "line"]
    np.testing.assert_allclose(lines_at, np.log1p(found["at_step"]))
    first, _ = traces(figure, "markers")
    names = list(figure.layout.yaxis2.ticktext)
    np.testing.assert_allclose(first.x, found["share"].sel(observable=names).isel(critical=0))
    none = ls.plot(found.isel(critical=slice(0)))
    assert not traces(none, "markers") and "stands out" in none.layout.title.text
