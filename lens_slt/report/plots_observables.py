"""Figures of observables: their refined values, and their response to shifts of the data."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.colours import COLOURS, SYMBOLS
from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.schema import require
from lens_slt.statistics import HALF_WIDTH
from lens_slt.text import figure_text


def plot_observables(result: xr.Dataset) -> go.Figure:
    """Shift of every observable under each component's local posterior, with 95 % intervals.

    ``result`` is from :func:`lens_slt.refined_observable`. Intervals cover the draws; the wide,
    thin ones the choice of sequences as well.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> probe = ls.Probe(text, observables=ls.Accuracy())
        >>> draws = ls.sample(model, text, "L0H0", probes={"mix": probe}, **how)
        >>> figure = ls.plot_observables(ls.refined_observable(draws))
        >>> figure.layout.title.text.split("<br>")[0]
        "Refined observables: what each component's freedom does"
    """
    result = require(result, "refined_observable", argument="result")
    names, components = labels(result["observable"].values), labels(result["component"].values)
    figure = subplots(cols=len(names), shared_yaxes=True, subplot_titles=names)
    for column, name in enumerate(result["observable"].values):
        one = result.sel(observable=name)
        both = np.hypot(one["se"].values, np.nan_to_num(one["text_se"].values))
        for width, error in ((1, both), (3, one["se"].values)):
            figure.add_trace(
                go.Scatter(
                    x=one["shift"].values, y=components, mode="markers", showlegend=False,
                    marker=dict(color=COLOURS[0], size=9),
                    error_x=dict(array=HALF_WIDTH * error, thickness=width, width=0),
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


def plot_response(result: xr.Dataset) -> go.Figure:
    """Predicted change of an observable over the strength of a shift, one line a component.

    ``result`` is from :func:`lens_slt.response`. Open symbols are not reliable.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> few = ls.Settings(draws=40, chains=2, steps_per_draw=1, full_loss=True)
        >>> draws = ls.sample(
        ...     model, text, "L0H0", settings=few, probes={"mix": text}, progress=False
        ... )
        >>> figure = ls.plot_response(ls.response(draws, "mix", strengths=[0.1, 0.2]))
        >>> figure.layout.title.text.split("<br>")[0]
        'Predicted change of loss when mix gets more weight'
    """
    result = require(result, "response", argument="result")
    figure = Figure()
    for i, name in enumerate(result["component"].values):
        one = result.sel(component=name)
        reliable = one["reliable"].values
        symbol = SYMBOLS[i % len(SYMBOLS)]
        figure.add_trace(
            go.Scatter(
                x=one["strength"].values, y=one["predicted"].values, mode="lines+markers",
                name=figure_text(str(name)), line=dict(color=COLOURS[i % len(COLOURS)]),
                marker=dict(symbol=[symbol if ok else f"{symbol}-open" for ok in reliable], size=9),
                error_y=dict(array=HALF_WIDTH * one["predicted_se"].values),
            )
        )  # fmt: skip
    what = figure_text(
        f"{result.attrs['observable']} when {result.attrs['shift']} gets more weight"
    )
    figure.update_layout(
        template="plotly_white", height=460, margin=dict(t=100),
        title=f"Predicted change of {what}<br><sup>95 % intervals over draws; open: not reliable, "
        "sample at the shifted data</sup>",
        xaxis_title="share of the weight that moves", yaxis_title="change of the expectation",
    )  # fmt: skip
    return figure
