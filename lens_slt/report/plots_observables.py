"""Figures of observables: their refined values, and their response to shifts of the data."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.colours import COLOURS, SYMBOLS
from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.report.plots import INTERVAL
from lens_slt.schema import require
from lens_slt.text import figure_text


def plot_observables(found: xr.Dataset) -> go.Figure:
    """Shift of every observable under each component's local posterior, with 95 % intervals.

    ``found`` is from :func:`lens_slt.refined_observable`. Intervals cover the draws; the wide, thin
    ones the choice of sequences as well.
    """
    found = require(found, "refined_observable", argument="found")
    names, components = labels(found["observable"].values), labels(found["component"].values)
    figure = subplots(cols=len(names), shared_yaxes=True, subplot_titles=names)
    for column, name in enumerate(found["observable"].values):
        one = found.sel(observable=name)
        both = np.hypot(one["se"].values, np.nan_to_num(one["text_se"].values))
        for width, error in ((1, both), (3, one["se"].values)):
            figure.add_trace(
                go.Scatter(
                    x=one["shift"].values, y=components, mode="markers", showlegend=False,
                    marker=dict(color=COLOURS[0], size=9),
                    error_x=dict(array=INTERVAL * error, thickness=width, width=0),
                    hovertemplate="%{y}: %{x:.4g}<extra></extra>",
                ),
                row=1, col=column + 1,
            )  # fmt: skip
        figure.add_vline(x=0, line=dict(dash="dot", width=1), row=1, col=column + 1)
        figure.update_xaxes(title_text="E[φ] − φ(w*)", row=1, col=column + 1)
    figure.update_layout(
        template="plotly_white", height=200 + 24 * len(components), margin=dict(t=100),
        title="Refined observables: what each component's freedom does"
        "<br><sup>95 % intervals: thick over draws, thin over draws and sequences</sup>",
    )  # fmt: skip
    return figure


def plot_response(found: xr.Dataset) -> go.Figure:
    """Predicted change of an observable over the strength of a shift, one line a component.

    ``found`` is from :func:`lens_slt.response`. Open symbols are not reliable.
    """
    found = require(found, "response", argument="found")
    figure = Figure()
    for i, name in enumerate(found["component"].values):
        one = found.sel(component=name)
        reliable = one["reliable"].values
        symbol = SYMBOLS[i % len(SYMBOLS)]
        figure.add_trace(
            go.Scatter(
                x=one["strength"].values, y=one["predicted"].values, mode="lines+markers",
                name=figure_text(str(name)), line=dict(color=COLOURS[i % len(COLOURS)]),
                marker=dict(symbol=[symbol if ok else f"{symbol}-open" for ok in reliable], size=9),
                error_y=dict(array=INTERVAL * one["predicted_se"].values),
            )
        )  # fmt: skip
    what = figure_text(f"{found.attrs['observable']} when {found.attrs['shift']} gets more weight")
    figure.update_layout(
        template="plotly_white", height=460, margin=dict(t=100),
        title=f"Predicted change of {what}<br><sup>95 % intervals over draws; open: not reliable, "
        "sample at the shifted data</sup>",
        xaxis_title="share of the weight that moves", yaxis_title="change of the expectation",
    )  # fmt: skip
    return figure
