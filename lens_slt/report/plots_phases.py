"""Figures of phases: where free energies cross, and which phase is the lowest."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.colours import COLOURS, DASHES, SYMBOLS
from lens_slt.report.figure import Figure, labels
from lens_slt.schema import require
from lens_slt.statistics import HALF_WIDTH
from lens_slt.text import figure_text

BAND = "rgba(0,114,178,0.18)"


def plot_crossing(result: xr.Dataset) -> go.Figure:
    """The difference of two phases' free energies over n, with its band and its zeros.

    ``result`` is from :func:`lens_slt.crossing`.

    Example:
        >>> import lens_slt as ls
        >>> five = ls.Phase("5", loss=0.06874, llc=7, constant=3.62417)
        >>> six = ls.Phase("6", loss=0.04819, llc=8.5, constant=6.37767)
        >>> figure = ls.plot_crossing(ls.crossing(five, six))
        >>> figure.layout.title.text.split("<br>")[0]
        'Free energy of 6 above that of 5'
    """
    result = require(result, "crossing", argument="result")
    n, value = result["n_grid"].values, result["difference"].values
    wide = HALF_WIDTH * result["difference_se"].values
    figure = Figure()
    edge = dict(x=n, mode="lines", line=dict(width=0), hoverinfo="skip", showlegend=False)
    figure.add_trace(go.Scatter(y=value - wide, **edge))
    figure.add_trace(go.Scatter(y=value + wide, fill="tonexty", fillcolor=BAND, **edge))
    line = dict(color=COLOURS[0])
    figure.add_trace(go.Scatter(x=n, y=value, mode="lines", line=line, showlegend=False))
    high = result["n_high"].values
    figure.add_trace(
        go.Scatter(
            x=result["n"].values, y=np.zeros(result.sizes["crossing"]), mode="markers",
            marker=dict(symbol=SYMBOLS[1], size=11, color=COLOURS[1]), showlegend=False,
            error_x=dict(
                symmetric=False,
                array=np.where(np.isfinite(high), high, n[-1]) - result["n"].values,
                arrayminus=result["n"].values - result["n_low"].values,
            ),
            hovertemplate="n = %{x:.4g}<extra></extra>",
        )
    )  # fmt: skip
    figure.add_hline(y=0, line=dict(dash="dot", width=1))
    one, other = (figure_text(result.attrs[key]) for key in ("one", "other"))
    shown = np.abs(value[n <= n[-1] / 10]).max()
    figure.update_layout(
        template="plotly_white", height=460, margin=dict(t=100),
        title=f"Free energy of {other} above that of {one}<br><sup>band: 95 % of the errors of "
        "losses and λ̂; diamonds: crossings with intervals</sup>",
        xaxis=dict(title="number of data n", type="log"),
        yaxis=dict(title="difference of free energies (nats)", range=[-shown, shown]),
    )  # fmt: skip
    return figure


def plot_phase_diagram(result: xr.Dataset) -> go.Figure:
    """Free energies above the lowest over n; over shares of a pattern, which phase is the lowest.

    ``result`` is from :func:`lens_slt.phase_diagram`. In the map, colours are paler where another
    phase may be the lowest within the errors.

    Example:
        >>> import lens_slt as ls
        >>> five = ls.Phase("5", loss=0.06874, llc=7, constant=3.62417)
        >>> six = ls.Phase("6", loss=0.04819, llc=8.5, constant=6.37767)
        >>> figure = ls.plot_phase_diagram(ls.phase_diagram([five, six], [500, 600, 700]))
        >>> figure.layout.title.text.split("<br>")[0]
        'Free energies above the lowest'
    """
    result = require(result, "phase_diagram", argument="result")
    figure = _map(result) if result.sizes["share"] > 1 else _lines(result)
    figure.update_layout(template="plotly_white", height=460, margin=dict(t=100))
    figure.update_xaxes(title="number of data n", type="log")
    return figure


def plot_limit(result: xr.Dataset) -> go.Figure:
    """λ̂ of every component over nβ/γ, the fitted curve, and its limit as a dotted line.

    ``result`` is from :func:`lens_slt.limit_llc`.

    Example:
        >>> import lens_slt as ls, torch
        >>> rungs = [
        ...     ls.sample_function(lambda w: w.square().sum(-1) / 2, torch.zeros(2), settings=one)
        ...     for one in ls.ladder([1, 3, 10], [1], ls.Settings(draws=100))
        ... ]
        >>> figure = ls.plot_limit(ls.limit_llc([ls.refined_llc(rung) for rung in rungs]))
        >>> figure.layout.title.text.split("<br>")[0]
        'λ̂ as the prior gets wider'
    """
    result = require(result, "limit_llc", argument="result")
    figure = Figure()
    ratio = result["ratio"].values
    for i, name in enumerate(labels(result["component"].values)):
        one, colour = result.isel(component=i), COLOURS[i % len(COLOURS)]
        figure.add_trace(
            go.Scatter(
                x=ratio, y=one["rung_llc"].values, mode="markers", name=name,
                marker=dict(color=colour, symbol=SYMBOLS[i % len(SYMBOLS)], size=9),
                error_y=dict(array=HALF_WIDTH * one["rung_se"].values),
            )
        )  # fmt: skip
        line = dict(color=colour, width=1)
        figure.add_trace(
            go.Scatter(x=ratio, y=one["fit"].values, mode="lines", line=line, showlegend=False)
        )
        figure.add_hline(y=float(one["llc"]), line=dict(color=colour, dash="dot"))
    figure.update_layout(
        template="plotly_white", height=460, margin=dict(t=100), yaxis_title="λ̂",
        title="λ̂ as the prior gets wider<br><sup>95 % intervals; dotted: the fitted limit</sup>",
        xaxis=dict(title="nβ/γ", type="log"),
    )  # fmt: skip
    return figure


def _lines(found: xr.Dataset) -> Figure:
    figure = Figure()
    for i, name in enumerate(labels(found["phase"].values)):
        figure.add_trace(
            go.Scatter(
                x=found["n"].values, y=found["free_energy"].values[0, :, i], mode="lines",
                name=name, line=dict(color=COLOURS[i % len(COLOURS)], dash=DASHES[i % len(DASHES)]),
            )
        )  # fmt: skip
    figure.update_layout(title="Free energies above the lowest", yaxis_title="F − lowest F")
    return figure


def _map(found: xr.Dataset) -> Figure:
    """One layer of a colour for each phase, as opaque as it is probable."""
    figure = Figure()
    lowest, chance = found["lowest"].values, found["probability"].values
    for i, name in enumerate(labels(found["phase"].values)):
        own = np.where(lowest == found["phase"].values[i], chance[:, :, i], np.nan)
        colour = COLOURS[i % len(COLOURS)]
        figure.add_trace(
            go.Heatmap(
                x=found["n"].values,
                y=found["share"].values,
                z=own,
                zmin=0,
                zmax=1,
                showscale=False,
                colorscale=[[0, "#FFFFFF"], [1, colour]],
                hovertemplate=f"{name}<br>n %{{x:.4g}}, share %{{y}}: %{{z:.0%}}<extra></extra>",
            )
        )
        if np.isfinite(own).any():
            mark = dict(symbol="square", size=12, color=colour)
            figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=mark, name=name))
    figure.update_layout(
        title="Phase of lowest free energy<br><sup>paler: less sure within the errors</sup>",
        yaxis_title=f"share of {figure_text(found.attrs['pattern'])}",
    )
    return figure
