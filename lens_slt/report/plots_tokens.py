"""Figures about matrices of tokens × components, and about tokens, patterns and clusters."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.colours import COLOURS, SYMBOLS, pattern_colour
from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.report.plots import ROW_PIXELS
from lens_slt.report.plots_modes import QUANTITIES
from lens_slt.schema import require
from lens_slt.schemas import MATRICES
from lens_slt.statistics import HALF_WIDTH
from lens_slt.text import figure_text

MEANS = {"chi": "mean susceptibility χ (nats²)", "llc": "mean λ̂ (dimensionless)"}
LARGEST = 256  # rows of a map


def plot_matrix(matrix: xr.Dataset) -> go.Figure:
    """Mean over the tokens with 95 % interval, and split-half reliability, of every component.

    ``matrix`` is from :func:`lens_slt.susceptibility` or :func:`lens_slt.per_token_llc`.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1", probes={"mix": text}, **how)
        >>> figure = ls.plot_matrix(ls.per_token_llc(draws))
        >>> figure.layout.title.text.split("<br>")[0]
        'Matrix of per-token rLLCs: 120 tokens × 2 components'
    """
    matrix = require(matrix, *MATRICES, argument="matrix")
    names = labels(matrix["component"].values)
    quantity = str(matrix.attrs["quantity"])
    figure = subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    error = dict(array=HALF_WIDTH * matrix["mean_se"].values, thickness=1.2, width=3)
    for column, (key, bars) in enumerate((("mean", error), ("split_half", None)), 1):
        figure.add_trace(
            go.Scatter(
                x=matrix[key].values, y=names, mode="markers", error_x=bars, showlegend=False,
                marker=dict(size=8, color=COLOURS[0], symbol=SYMBOLS[0]),
                hovertemplate="%{y}: %{x:.3g}<extra></extra>",
            ),
            row=1, col=column,
        )  # fmt: skip
    figure.update_xaxes(title_text=MEANS[quantity], col=1)
    figure.update_xaxes(title_text="split-half reliability", range=[-0.1, 1.05], col=2)
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title_text="component", col=1)
    figure.update_layout(
        template="plotly_white", height=190 + ROW_PIXELS * len(names), margin=dict(t=100),
        title=f"Matrix of {QUANTITIES[quantity]}: {matrix.sizes['token']} tokens × {len(names)} "
        "components<br><sup>split-half: correlation over tokens between the two halves of the "
        "draws;<br>columns are comparable only after standardisation</sup>",
    )  # fmt: skip
    return figure


def plot_patterns(patterns: xr.DataArray) -> go.Figure:
    """How many of the tokens belong to each pattern. ``patterns``: from ``label_patterns``.

    Example:
        >>> import lens_slt as ls
        >>> figure = ls.plot_patterns(ls.label_patterns(ls.load_tokens("mix", n_sequences=2)))
        >>> figure.layout.title.text.split("<br>")[0]
        'Patterns of the tokens'
    """
    patterns = require(patterns, "patterns", argument="patterns")
    names = [str(name) for name in patterns["pattern"].values]
    shown = [name.replace("_", " ") for name in labels(names)]
    share = patterns.values.reshape(len(names), -1).mean(1)
    order = np.argsort(share)
    figure = Figure(
        go.Bar(
            x=100 * share[order], y=[shown[i] for i in order], orientation="h",
            marker=dict(color=[pattern_colour(names[i]) or COLOURS[0] for i in order]),
            hovertemplate="%{y}: %{x:.2f} % of the tokens<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=150 + ROW_PIXELS * len(names), xaxis_title="% of tokens",
        yaxis_title="pattern", title="Patterns of the tokens",
    )  # fmt: skip
    return figure


def plot_clusters(result: xr.Dataset) -> go.Figure:
    """Size and conductance of every cluster, beside what chance gives at its size.

    ``result`` is from :func:`lens_slt.clusters`. Filled: beyond chance.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1", probes={"mix": text}, **how)
        >>> found = ls.clusters(ls.per_token_llc(draws), n_neighbors=10, min_size=5)
        >>> figure = ls.plot_clusters(found)
        >>> figure.layout.xaxis.title.text
        'conductance (0: apart from all other tokens)'
    """
    result = require(result, "clusters", argument="result")
    names = [f"cluster {label}" for label in result["label"].values]
    beyond = result["beyond_chance"].values.astype(bool)
    figure = Figure()
    if names:
        figure.add_trace(
            go.Scatter(
                x=result["reference"].values, y=names, mode="markers", name="by chance",
                marker=dict(symbol="line-ns-open", size=16, color="grey"),
            )
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=result["conductance"].values, y=names, mode="markers", name="cluster",
                marker=dict(
                    size=10, color=COLOURS[0], line=dict(width=1.5),
                    symbol=[SYMBOLS[0] if ok else f"{SYMBOLS[0]}-open" for ok in beyond],
                ),
                text=[f"{int(size)} tokens" for size in result["size"].values],
                hovertemplate="%{y}: conductance %{x:.3f}, %{text}<extra></extra>",
            )
        )  # fmt: skip
    else:
        figure.add_annotation(text="no cluster was found", showarrow=False, font=dict(size=16))
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        template="plotly_white", height=200 + ROW_PIXELS * max(len(names), 2), margin=dict(t=100),
        xaxis_title="conductance (0: apart from all other tokens)",
        title=f"{len(names)} clusters of tokens<br><sup>filled: beyond chance; open: may be "
        "chance</sup>",
    )  # fmt: skip
    return figure


def plot_cluster_summary(result: xr.Dataset) -> go.Figure:
    """Patterns of every cluster: the share of its tokens; * where q < 0.05.

    ``result`` is from :func:`lens_slt.cluster_summary`.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1", probes={"mix": text}, **how)
        >>> matrix = ls.per_token_llc(draws)
        >>> found = ls.clusters(matrix, method="hdbscan", min_size=5)
        >>> table = ls.cluster_summary(found, ls.label_patterns(text), matrix, permutations=19)
        >>> figure = ls.plot_cluster_summary(table)
        >>> figure.layout.title.text.split("<br>")[0]
        'Patterns of the clusters'
    """
    result = require(result, "cluster_summary", argument="result")
    share = 100 * result["share"].values.T
    figure = Figure(
        go.Heatmap(
            z=share, x=[f"cluster {label}" for label in result["label"].values],
            y=[name.replace("_", " ") for name in labels(result["pattern"].values)], xgap=2, ygap=2,
            colorscale="Cividis", colorbar=dict(title="% of its tokens"),
            text=np.where(result["q"].values.T < 0.05, "*", ""), texttemplate="%{text}",
            customdata=100 * result["share_outside"].values.T,
            hovertemplate="%{x}, %{y}: %{z:.1f} %, outside %{customdata:.1f} %<extra></extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        template="plotly_white", height=220 + ROW_PIXELS * len(share), yaxis_title="pattern",
        title="Patterns of the clusters<br><sup>*: more or fewer than elsewhere, q &lt; "
        "0.05</sup>", margin=dict(t=100),
    )  # fmt: skip
    return figure


def plot_influence(result: xr.Dataset) -> go.Figure:
    """Influence of every source on every query; blue helps, orange hurts.

    ``result`` is from :func:`lens_slt.influence`. The first 256 of each are shown; where query and
    source are the same tokens the diagonal is left out.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0", probes={"mix": text}, **how)
        >>> figure = ls.plot_influence(ls.influence(draws))
        >>> figure.layout.title.text.split("<br>")[0]
        'Influence through L0H0'
    """
    result = require(result, "influence", argument="result")
    shown = result.isel(query=slice(0, LARGEST), source=slice(0, LARGEST))
    value = shown["influence"].values.astype(float).copy()
    if result.attrs["same_probe"]:
        np.fill_diagonal(value, np.nan)
    top = float(np.nanquantile(np.abs(value), 0.99)) if np.isfinite(value).any() else 1.0
    unit = figure_text(result.attrs["unit"])
    scale = "nats²" if result.attrs["kind"] == "covariance" else "−correlation"
    figure = Figure(
        go.Heatmap(
            z=value, zmin=-top, zmax=top, colorscale=[[0, COLOURS[0]], [0.5, "#f7f7f7"],
            [1, COLOURS[1]]], colorbar=dict(title=scale),
            hovertemplate="query %{y}, source %{x}: %{z:.3g}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        template="plotly_white", height=560, margin=dict(t=100),
        xaxis_title=f"source {unit}", yaxis_title=f"query {unit}",
        title=f"Influence through {figure_text(result.attrs['component'])}<br><sup>below zero "
        "(blue): more weight on the source lowers the query's loss</sup>",
    )  # fmt: skip
    return figure
