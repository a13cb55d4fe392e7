"""Figures of where in the weights a change sits."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.colours import COLOURS, DASHES, SYMBOLS
from lens_slt.report.figure import Figure, labels
from lens_slt.report.plots import ROW_PIXELS
from lens_slt.report.stacked import legend_below, titled
from lens_slt.schema import require

PANEL_HEIGHT = 320  # pixels
MOST_BELOW = -0.5  # of the gain: what grafts lose beyond is not shown
IN_WORDS = {
    "size": "largest changes first", "random": "null: as many of each matrix, at random",
    "components": "whole components", "curvature": "stiffest directions",
}  # fmt: skip


def plot_locality(result: xr.Dataset) -> go.Figure:
    """The share of a gain that some of the weights keep, over how many they are.

    ``result`` is from :func:`lens_slt.locality`.

    Example:
        >>> import lens_slt as ls
        >>> run, text = ls.checkpoints("attn-2l"), ls.load_tokens("mix", n_sequences=8, length=32)
        >>> found = ls.locality(run.load(100), run.load(2900), text, n_null=1, progress=False)
        >>> figure = ls.plot_locality(found)
        >>> figure.layout.title.text.split("<br>")[0]
        'How few weights carry the gain'
    """
    result = require(result, "locality", argument="result")
    figure = Figure()
    for i, ranking in enumerate(labels(result["ranking"].values)):
        one = result.isel(ranking=i).dropna("share", subset=["kept"])
        x, y = one["share"].values, one["kept"].values
        figure.add_trace(
            go.Scatter(
                x=x, y=y, name=IN_WORDS.get(ranking, ranking), mode="lines+markers",
                error_y=dict(
                    array=one["kept_high"].values - y, arrayminus=y - one["kept_low"].values,
                    thickness=1, width=2,
                ),
                line=dict(color=COLOURS[i % len(COLOURS)], dash=DASHES[i % len(DASHES)], width=1.5),
                marker=dict(symbol=SYMBOLS[i % len(SYMBOLS)], size=6),
                hovertemplate="%{x:.2%} keep %{y:.1%}<extra>%{fullData.name}</extra>",
            )
        )  # fmt: skip
    target = float(result.attrs["target"])
    figure.add_hline(y=target, line=dict(dash="dot", width=1, color="grey"))
    lowest = float(np.nanmin(result["kept"].values))
    below = ", cut below" if lowest < MOST_BELOW else ""
    figure.update_xaxes(
        type="log", dtick=1, tickformat="~%", title_text="share of all weights that are replaced"
    )
    figure.update_yaxes(title_text="kept of the gain", range=[max(lowest, MOST_BELOW) - 0.05, 1.1])
    figure.update_layout(legend=legend_below(PANEL_HEIGHT))
    gain, se = (float(result.attrs[key]) for key in ("gain", "gain_se"))
    titled(
        figure, "How few weights carry the gain",
        f"gain: {gain:.2f} ± {se:.2f} nats per token, all weights replaced by those after; bars: "
        f"95 % over sequences{below}; dotted: {target:.0%} of it",
        PANEL_HEIGHT,
    )  # fmt: skip
    return figure


def plot_weight_change(result: xr.Dataset) -> go.Figure:
    """Stable rank of the change of every component's matrices; how far they moved in words.

    ``result`` is from :func:`lens_slt.weight_change`.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l")
        >>> found = ls.weight_change(run.load(1000), run.load(2900), "L0H2, L1H2")
        >>> figure = ls.plot_weight_change(found)
        >>> figure.layout.title.text.split("<br>")[0]
        'In how many directions the weights moved'
    """
    result = require(result, "weight_change", argument="result")
    names, matrices = (labels(result[dim].values) for dim in ("component", "matrix"))
    rank = result["stable_rank"].transpose("component", "matrix").values
    moved = result["relative_norm"].transpose("component", "matrix").values
    figure = Figure(
        go.Heatmap(
            z=rank, x=matrices, y=names, zmin=1, colorscale="Cividis", xgap=1, ygap=1,
            customdata=moved, text=np.round(rank, 1), texttemplate="%{text}",
            showscale=False,
            hovertemplate="%{y}, %{x}: stable rank %{z:.1f}, moved by %{customdata:.0%} of its norm"
            "<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="matrix", type="category")
    figure.update_yaxes(title_text="component", autorange="reversed", type="category", dtick=1)
    titled(
        figure, "In how many directions the weights moved",
        "stable rank of the change of each matrix, ‖ΔW‖² / ‖ΔW‖₂²: 1 is one direction",
        ROW_PIXELS * len(names),
    )  # fmt: skip
    return figure


def plot_moved_directions(result: xr.Dataset) -> go.Figure:
    """How much of every component's change lies in the directions.

    ``result`` is from :func:`lens_slt.moved_directions`.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l")
        >>> found = ls.moved_directions(run.load(2100), run.load(2600), "L0H2, L1H2", rank=2)
        >>> figure = ls.plot_moved_directions(found)
        >>> figure.layout.title.text.split("<br>")[0]
        'How much of the change the directions hold'
    """
    result = require(result, "moved_directions", argument="result")
    names, n = labels(result["component"].values), result.sizes["direction"]
    figure = Figure(
        go.Bar(
            x=result["captured"].values, y=names, orientation="h", marker_color=COLOURS[0],
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="share of ‖ΔW‖²", range=[0, 1.02], tickformat=".0%")
    figure.update_yaxes(title_text="component", autorange="reversed", type="category", dtick=1)
    which = "leading singular vectors of each matrix's change" if not result.attrs["random"] else (
        "random singular vectors, the control"
    )  # fmt: skip
    titled(
        figure, "How much of the change the directions hold",
        f"{n} directions a component, of {result.sizes['parameter']}: {which} (rank "
        f"{result.attrs['rank']})",
        ROW_PIXELS * len(names),
    )  # fmt: skip
    return figure
