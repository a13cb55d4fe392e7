"""Figures of spectra: λ̂ over nβ, directions by curvature, fits of λ and m, density of states."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.development.curves import CHECKPOINT
from lens_slt.report.colours import COLOURS, DASHES, SYMBOLS
from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.schema import require
from lens_slt.statistics import HALF_WIDTH
from lens_slt.text import figure_text

MOST_PANELS = 6
MOST_BOUNDS = 8  # components whose bounds are drawn
BAND = "rgba(0,114,178,0.18)"
LOG = dict(type="log", exponentformat="power")


def plot_spectrum(result: xr.Dataset) -> go.Figure:
    """λ̂ of every component over nβ; one panel for each γ, or for each checkpoint.

    ``result`` is from :func:`lens_slt.spectrum`; over checkpoints up to six are shown, at the first
    γ. Rungs that are not certified are left out.

    Example:
        >>> import lens_slt as ls, torch
        >>> rungs = [
        ...     ls.sample_function(lambda w: w.square().sum(-1) / 2, torch.zeros(2), settings=one)
        ...     for one in ls.ladder([1, 3, 10], [1], ls.Settings(draws=100))
        ... ]
        >>> figure = ls.plot_spectrum(ls.spectrum(rungs))
        >>> figure.layout.title.text.split("<br>")[0]
        'λ̂ over nβ'
    """
    result = require(result, "spectrum", argument="result", leading=(CHECKPOINT,))
    if CHECKPOINT in result.dims:
        result, panel, word = result.isel(gamma=0), CHECKPOINT, "step "
        places = np.linspace(0, result.sizes[panel] - 1, min(MOST_PANELS, result.sizes[panel]))
        result = result.isel({panel: places.round().astype(int)})
    else:
        panel, word = "gamma", "γ = "
    titles = [f"{word}{value:g}" for value in result[panel].values]
    figure = subplots(
        rows=1, cols=len(titles), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03
    )
    names = labels(result["component"].values)
    for column in range(len(titles)):
        for i, name in enumerate(names):
            row = result.isel({panel: column, "component": i})
            figure.add_trace(
                go.Scatter(
                    x=row["n_beta"].values, y=row["llc"].values, mode="lines+markers", name=name,
                    error_y=dict(array=HALF_WIDTH * row["se"].values, thickness=1, width=2),
                    legendgroup=name, showlegend=column == 0, text=labels(row["why"].values),
                    hovertemplate=f"{figure_text(name)}, nβ %{{x}}: %{{y:.3g}}<br>%{{text}}"
                    "<extra></extra>", **_style(i),
                ), row=1, col=column + 1,
            )  # fmt: skip
    figure.update_xaxes(title="nβ", **LOG)
    figure.update_yaxes(title="λ̂", col=1)
    figure.update_layout(
        template="plotly_white", height=460, margin=dict(t=110),
        title="λ̂ over nβ<br><sup>a regularised curvature spectrum: a direction counts ½ where it "
        "is stiffer than γ/nβ; 95 % intervals</sup>",
    )  # fmt: skip
    return figure


def plot_curvatures(result: xr.Dataset) -> go.Figure:
    """Directions stiffer than a curvature, and whether few stiff or many flat ones make up λ̂.

    ``result`` is from :func:`lens_slt.curvatures`. Left: 2λ̂ over γ/nβ, the count smoothed over a
    decade; of up to eight components vertical bars with all numbers that the ladder allows. Right:
    at the finest rung, how stiff the directions of every component are and how many share λ̂.

    Example:
        >>> import lens_slt as ls, torch
        >>> rungs = [
        ...     ls.sample_function(lambda w: w.square().sum(-1) / 2, torch.zeros(2), settings=one)
        ...     for one in ls.ladder([1, 3, 10], [1], ls.Settings(draws=100))
        ... ]
        >>> figure = ls.plot_curvatures(ls.curvatures(ls.spectrum(rungs)))
        >>> figure.layout.title.text.split("<br>")[0]
        'Curvatures'
    """
    result = require(result, "curvatures", argument="result")
    figure = subplots(
        rows=1, cols=2, horizontal_spacing=0.12,
        subplot_titles=["directions stiffer than h", "what makes up λ̂"],
    )  # fmt: skip
    names = labels(result["component"].values)
    for i, name in enumerate(names):
        one, style = result.isel(component=i), _style(i)
        common: dict[str, Any] = dict(legendgroup=name, name=name)
        figure.add_trace(
            go.Scatter(
                x=one["resolution"].values, y=one["smoothed"].values, mode="lines+markers",
                hovertemplate=f"{figure_text(name)}: %{{y:.3g}} above %{{x:.3g}}<extra></extra>",
                **common, **style,
            ), row=1, col=1,
        )  # fmt: skip
        if len(names) <= MOST_BOUNDS:
            figure.add_trace(_bars(one, i, len(names), common), row=1, col=1)
        figure.add_trace(
            go.Scatter(
                x=[float(one["stiffness"])], y=[float(one["effective_directions"])],
                mode="markers+text", text=[name], textposition="top center", showlegend=False,
                error_x=dict(array=[HALF_WIDTH * float(one["stiffness_se"])], thickness=1),
                error_y=dict(
                    array=[HALF_WIDTH * float(one["effective_directions_se"])], thickness=1
                ),
                hovertemplate=f"{figure_text(name)}: {figure_text(str(one['verdict'].values))}"
                "<extra></extra>",
                marker=style["marker"], **common,
            ), row=1, col=2,
        )  # fmt: skip
    figure.add_vline(x=0.5, line=dict(dash="dot", width=1), row=1, col=2)
    figure.update_xaxes(title="curvature h (nats per squared unit of weight)", col=1, **LOG)
    figure.update_xaxes(title="stiffness: 0 flat, 1 stiff", range=[-0.05, 1.1], col=2)
    figure.update_yaxes(title="number of directions", rangemode="tozero", col=1)
    figure.update_yaxes(title="directions that share λ̂", col=2, **LOG)
    figure.update_layout(
        template="plotly_white", height=480, margin=dict(t=110),
        title="Curvatures<br><sup>lines: 2λ̂, a count smoothed over a decade; bars: every number "
        "that λ̂ and variances allow</sup>",
    )  # fmt: skip
    return figure


def plot_multiplicity(result: xr.Dataset) -> go.Figure:
    """λ̂ over nβ with the best form, and λ as a dotted line where it is claimed.

    ``result`` is from :func:`lens_slt.multiplicity`. Names of components without a claim stand in
    parentheses; the reason is on hover.

    Example:
        >>> import lens_slt as ls, torch
        >>> rungs = [
        ...     ls.sample_function(lambda w: w.square().sum(-1) / 2, torch.zeros(2), settings=one)
        ...     for one in ls.ladder([1, 3, 10], [1], ls.Settings(draws=100))
        ... ]
        >>> figure = ls.plot_multiplicity(ls.multiplicity(ls.spectrum(rungs)))
        >>> figure.layout.title.text.split("<br>")[0]
        'λ and multiplicity m'
    """
    result = require(result, "multiplicity", argument="result")
    figure = Figure()
    names, several = labels(result["component"].values), result.sizes["gamma"] > 1
    for place, (g, c) in enumerate(np.ndindex(result.sizes["gamma"], len(names))):
        one, style = result.isel(gamma=g, component=c), _style(place)
        claimed = np.isfinite(float(one["llc"]))
        name = names[c] + (f", γ {float(one['gamma']):g}" if several else "")
        shown = f"{name}: m = {float(one['multiplicity']):g}" if claimed else f"({name})"
        figure.add_trace(
            go.Scatter(
                x=one["n_beta"].values, y=one["rung_llc"].values, mode="markers", name=shown,
                error_y=dict(array=HALF_WIDTH * one["rung_se"].values, thickness=1),
                marker=style["marker"], text=labels([one["verdict"].item()]) * one.sizes["n_beta"],
                hovertemplate="nβ %{x}: %{y:.3g}<br>%{text}<extra></extra>",
            )
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=one["n_beta"].values, y=one["fit"].values, mode="lines", line=style["line"],
                showlegend=False, hoverinfo="skip",
            )
        )  # fmt: skip
        if claimed:
            line = dict(color=style["line"]["color"], dash="dot")
            figure.add_hline(y=float(one["llc"]), line=line)
    figure.update_layout(
        template="plotly_white", height=460, margin=dict(t=100), yaxis_title="λ̂",
        title="λ and multiplicity m<br><sup>lines: the best form; dotted: λ where it is claimed; "
        "in parentheses: not identifiable</sup>", xaxis=dict(title="nβ", **LOG),
    )  # fmt: skip
    return figure


def plot_density_of_states(result: xr.Dataset) -> go.Figure:
    """Free energies of the rungs by MBAR and by integration; the volume of weights under a loss.

    ``result`` is from :func:`lens_slt.density_of_states`.

    Example:
        >>> import lens_slt as ls, torch
        >>> rungs = [
        ...     ls.sample_function(lambda w: w.square().sum(-1) / 2, torch.zeros(2), settings=one)
        ...     for one in ls.ladder([1, 3, 10], [1], ls.Settings(draws=100))
        ... ]
        >>> figure = ls.plot_density_of_states(ls.density_of_states(rungs))
        >>> figure.layout.title.text.split("<br>")[0]
        'Density of states of function, γ 1'
    """
    result = require(result, "density_of_states", argument="result")
    figure = subplots(
        rows=1, cols=2, horizontal_spacing=0.14,
        subplot_titles=["free energy of rungs", "share of the prior below a loss"],
    )  # fmt: skip
    x = result["n_beta"].values
    for i, (key, name) in enumerate((("free_energy", "MBAR"), ("integrated", "integration"))):
        style = _style(i)
        figure.add_trace(
            go.Scatter(
                x=x, y=result[key].values, name=name, mode="lines+markers", **style,
                error_y=dict(array=HALF_WIDTH * result[f"{key}_se"].values, thickness=1),
            ), row=1, col=1,
        )  # fmt: skip
    loss, value = result["loss"].values, result["log_volume"].values
    wide = HALF_WIDTH * result["log_volume_se"].values
    edge: dict[str, Any] = dict(
        x=loss, mode="lines", line=dict(width=0), hoverinfo="skip", showlegend=False
    )
    known = np.isfinite(value) & np.isfinite(wide)
    low, high = (np.where(known, end, np.nan) for end in (value - wide, value + wide))
    figure.add_trace(go.Scatter(y=low, **edge), row=1, col=2)
    figure.add_trace(go.Scatter(y=high, fill="tonexty", fillcolor=BAND, **edge), row=1, col=2)
    figure.add_trace(
        go.Scatter(x=loss, y=value, mode="lines", line=dict(color=COLOURS[0]), showlegend=False),
        row=1, col=2,
    )  # fmt: skip
    if not known.any():
        words = "not known: the lowest rung<br>is too far from nβ = 0"
        figure.add_annotation(
            text=words, showarrow=False, xref="x2 domain", yref="y2 domain", x=0.5, y=0.5
        )
    figure.update_xaxes(title="nβ", col=1, **LOG)
    figure.update_xaxes(title="loss above the given weights' (nats per token)", col=2, **LOG)
    figure.update_yaxes(title="F minus the first rung's", col=1)
    figure.update_yaxes(title="log of the share", col=2)
    name = figure_text(str(result.attrs["component"]))
    figure.update_layout(
        template="plotly_white", height=460, margin=dict(t=110),
        title=f"Density of states of {name}, γ {result.attrs['gamma']:g}<br><sup>all rungs "
        "together, 95 % intervals</sup>",
    )  # fmt: skip
    return figure


def _bars(one: xr.Dataset, place: int, n: int, common: dict[str, Any]) -> go.Scatter:
    """Vertical bars from the fewest to the most directions, side by side."""
    low, high = one["directions_low"].values, one["directions_high"].values
    x = one["curvature"].values * 1.06 ** (place - (n - 1) / 2)
    return go.Scatter(
        x=np.repeat(x, 3), y=np.column_stack([low, high, np.full(len(low), np.nan)]).ravel(),
        mode="lines", line=dict(color=COLOURS[place % len(COLOURS)], width=4), opacity=0.35,
        showlegend=False, hoverinfo="skip", **common,
    )  # fmt: skip


def _style(place: int) -> dict[str, Any]:
    colour = COLOURS[place % len(COLOURS)]
    return {
        "line": dict(color=colour, width=1.5, dash=DASHES[place // len(COLOURS) % len(DASHES)]),
        "marker": dict(color=colour, symbol=SYMBOLS[place % len(SYMBOLS)], size=8),
    }
