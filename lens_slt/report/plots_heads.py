"""Figures about heads and pairs of heads: behaviour, composition, attributed edges, ablations."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.colours import COLOURS, HEAD_TYPE_COLOURS, SYMBOLS
from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.report.plots import ROW_PIXELS
from lens_slt.schema import require
from lens_slt.statistics import HALF_WIDTH
from lens_slt.text import figure_text

CLEAR = 0.05  # of q
STRONGEST = 25  # edges that are shown
RATES = ("previous_token", "current_token", "first_token", "duplicate_token", "prefix_matching")


def plot_behaviour(scores: xr.Dataset) -> go.Figure:
    """Behaviour scores of every head as a map, heads in the colour of their type.

    ``scores`` is from :func:`lens_slt.behaviour_scores`: shares of attention, and ``copying``
    from −1 to 1, on one colour scale.

    Example:
        >>> import lens_slt as ls
        >>> figure = ls.plot_behaviour(ls.behaviour_scores(ls.load_model("attn-2l"), n_random=4))
        >>> figure.layout.title.text.split("<br>")[0]
        'What the heads do'
    """
    scores = require(scores, "behaviour_scores", argument="scores")
    keys = [k for k in (*RATES, "copying") if np.isfinite(scores[k].values).any()]
    values = np.array([scores[key].values for key in keys])
    names = labels(scores["component"].values)
    kinds = [str(kind) for kind in scores["head_type"].values]
    figure = subplots(rows=2, shared_xaxes=True, row_heights=[0.12, 0.88],
                           vertical_spacing=0.03)  # fmt: skip
    for kind, colour in HEAD_TYPE_COLOURS.items():
        here = [name for name, other in zip(names, kinds, strict=True) if other == kind]
        figure.add_trace(
            go.Scatter(
                x=here, y=["type"] * len(here), mode="markers", name=kind, showlegend=bool(here),
                marker=dict(size=14, color=colour, symbol="square"),
                hovertemplate="%{x}: " + kind + "<extra></extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
    figure.add_trace(
        go.Heatmap(
            z=values, x=names, y=[key.replace("_", " ") for key in keys], zmin=-1, zmax=1,
            colorscale="PuOr_r", xgap=1, ygap=1, text=np.round(values, 2),
            texttemplate="%{text}" if len(names) <= 24 else None, colorbar=dict(title="score"),
            hovertemplate="%{x}, %{y}: %{z:.2f}<extra></extra>",
        ),
        row=2, col=1,
    )  # fmt: skip
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=names)
    figure.update_xaxes(title_text="head", row=2)
    figure.update_yaxes(autorange="reversed", row=2)
    figure.update_layout(
        template="plotly_white", height=260 + ROW_PIXELS * len(keys), margin=dict(t=110),
        title="What the heads do<br><sup>mean attention to these tokens, 0 to 1; "
        "copying −1 to 1</sup>",
        legend=dict(orientation="h", y=-0.3, yanchor="top"),
    )  # fmt: skip
    return figure


def plot_composition(scores: xr.Dataset) -> go.Figure:
    """Composition scores of all pairs, a panel each for Q, K, V and MLPs; * clear of both nulls.

    ``scores`` is from :func:`lens_slt.composition_scores`.

    Example:
        >>> import lens_slt as ls
        >>> figure = ls.plot_composition(ls.composition_scores(ls.load_model("attn-2l"), n_null=20))
        >>> figure.layout.title.text.split("<br>")[0]
        'Composition scores of pairs'
    """
    scores = require(scores, "composition_scores", argument="scores")
    clear = (scores["q_random"] < CLEAR) & (scores["q_rotation"] < CLEAR)
    figure = _pairs(
        scores["score"], clear, scores["z_rotation"], "z against rotations %{customdata:.1f}"
    )
    figure.update_layout(
        coloraxis=dict(colorscale="Cividis", colorbar=dict(title="score")),
        title="Composition scores of pairs<br><sup>*: q &lt; 0.05 against random weights "
        f"and random rotations; by chance {float(scores.attrs['chance_score']):.2f}</sup>",
    )  # fmt: skip
    return figure


def plot_shares(result: xr.Dataset) -> go.Figure:
    """What share of a node's drive, or of what it writes, each earlier node brings; * clear of 0.

    ``result`` is from :func:`lens_slt.composition_on_tokens`.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=4, length=32)
        >>> figure = ls.plot_shares(ls.composition_on_tokens(model, text))
        >>> figure.layout.title.text.split("<br>")[0]
        'Composition on tokens'
    """
    result = require(result, "composition_on_tokens", argument="result")
    clear = result["share"] > HALF_WIDTH * result["se"]
    figure = _pairs(result["share"], clear, result["se"], "± %{customdata:.3f}")
    figure.update_layout(
        coloraxis=dict(colorscale="RdBu_r", cmid=0, colorbar=dict(title="share")),
        title="Composition on tokens<br><sup>share of a head's drive that a source brings through "
        "Q or K,<br>of what a node writes through V or its input; *: above 0 by 1.96 standard "
        "errors</sup>",
    )  # fmt: skip
    return figure


def _pairs(
    values: xr.DataArray, starred: xr.DataArray, told: xr.DataArray, words: str
) -> go.Figure:
    """A panel of sources × targets for every input; ``words`` tell the second value on hover."""
    panels = [str(name) for name in values["through"].values]
    there = np.isfinite(values.values)
    sources = values["source"].values[there.any((1, 2))]
    figure = subplots(
        cols=len(panels), shared_yaxes=True, horizontal_spacing=0.02,
        subplot_titles=[f"through {name}" if name else "into MLPs" for name in labels(panels)],
    )  # fmt: skip
    for i, through in enumerate(panels):
        targets = values["target"].values[there[:, :, i].any(0)]
        one, star, second = (
            x.sel(through=through, source=sources, target=targets).values
            for x in (values, starred, told)
        )
        figure.add_trace(
            go.Heatmap(
                z=one, x=labels(targets), y=labels(sources), coloraxis="coloraxis", xgap=1, ygap=1,
                text=np.where(star, "*", ""), texttemplate="%{text}", customdata=second,
                hovertemplate=f"%{{y}}→%{{x}}.{figure_text(through)}: %{{z:.3f}}<br>"
                f"{words}<extra></extra>",
            ),
            row=1, col=i + 1,
        )  # fmt: skip
        figure.update_xaxes(title_text="target", row=1, col=i + 1)
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title_text="source", col=1)
    figure.update_layout(
        template="plotly_white", height=240 + ROW_PIXELS * len(sources), margin=dict(t=130)
    )
    return figure


def plot_edges(result: xr.Dataset) -> go.Figure:
    """The 25 edges with the largest attributed effects.

    ``result`` is from :func:`lens_slt.edge_attribution`.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=4, length=64)
        >>> repeats = ls.label_patterns(text).sel(pattern="induction")
        >>> found = ls.edge_attribution(model, text, repeats, steps=1)
        >>> figure = ls.plot_edges(found)
        >>> figure.layout.title.text.split("<br>")[0]
        'The 25 strongest of 208 edges by attribution'
    """
    result = require(result, "edge_attribution", argument="result")
    flat = result["effect"].to_series().dropna()
    flat = flat.reindex(flat.abs().sort_values(ascending=False).index)[:STRONGEST]
    names = labels(f"{s}→{t}" + (f".{through}" if through else "") for s, t, through in flat.index)
    metric = figure_text(result.attrs.get("metric", "loss").replace("_", " "))
    units = figure_text(result.attrs.get("units", "nats"))
    change = "rise of the pattern's loss" if metric == "loss" else f"change of the {metric}"
    figure = Figure(
        go.Scatter(
            x=flat.values, y=names, mode="markers",
            marker=dict(
                size=9, color=[COLOURS[0] if value > 0 else COLOURS[1] for value in flat],
                symbol=[SYMBOLS[0] if value > 0 else SYMBOLS[1] for value in flat],
            ),
            hovertemplate=f"%{{y}}: %{{x:.3f}} {units}<extra></extra>",
        )
    )  # fmt: skip
    figure.add_vline(x=0, line=dict(color="grey", width=1))
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        template="plotly_white", height=170 + ROW_PIXELS * len(names), margin=dict(t=100),
        title=f"The {len(names)} strongest of {int(result['effect'].count())} edges by attribution"
        f"<br><sup>estimated {change} when the edge is ablated</sup>",
        xaxis_title=f"effect ({units} per token)", yaxis_title="edge",
    )  # fmt: skip
    return figure


def plot_effects(result: xr.Dataset) -> go.Figure:
    """How much an intervention changes the loss, or the metric, of each token, as shares of all.

    ``result`` is from :func:`lens_slt.ablate` or its relatives.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> figure = ls.plot_effects(ls.ablate(model, text, "L0H2"))
        >>> figure.layout.title.text.split("<br>")[0]
        'Change of the loss: mean ablation of L0H2'
    """
    result = require(result, "effects", argument="result")
    values, units = result["effect"].values, figure_text(result.attrs["units"])
    sequences = result["effect"].mean("position").dropna("sequence").values
    what = f"change of the {figure_text(result.attrs['metric'].replace('_', ' '))}"
    mean = float(np.nanmean(values))
    half = HALF_WIDTH * sequences.std(ddof=1) / np.sqrt(len(sequences)) if len(sequences) > 1 else 0
    figure = Figure(
        go.Histogram(
            x=values[np.isfinite(values)], nbinsx=80, histnorm="probability",
            marker=dict(color=COLOURS[0]),
            hovertemplate=f"%{{x}} {units}: %{{y:.4f}}<extra></extra>",
        )
    )  # fmt: skip
    figure.add_vline(x=mean, line=dict(color=COLOURS[1], width=2))
    figure.update_yaxes(type="log", title_text="share of tokens")
    figure.update_layout(
        template="plotly_white", height=420, margin=dict(t=100),
        title=f"{what.capitalize()}: {figure_text(result.attrs['intervention'])}<br><sup>mean "
        f"{mean:.3f} ± {half:.3f} {units} per token (95 % interval over sequences; line)</sup>",
        xaxis_title=f"{what} ({units})",
    )  # fmt: skip
    return figure


def plot_directions(result: xr.Dataset) -> go.Figure:
    """Which singular directions of the source an edge's composition score comes from.

    ``result`` is from :func:`lens_slt.composition_by_component`.

    Example:
        >>> import lens_slt as ls
        >>> found = ls.composition_by_component(ls.load_model("attn-2l"), "L0H2", "L1H2", "K")
        >>> figure = ls.plot_directions(found)
        >>> figure.layout.title.text.split("<br>")[0]
        'Composition by component: L0H2→L1H2.K'
    """
    result = require(result, "composition_by_component", argument="result")
    figure = Figure()
    for i, (key, name) in enumerate((("share", "of the score"), ("expected_share", "by chance"))):
        figure.add_trace(
            go.Scatter(
                x=result["direction"].values, y=result[key].values, mode="lines+markers", name=name,
                marker=dict(color=COLOURS[i], symbol=SYMBOLS[i]), line=dict(color=COLOURS[i]),
            )
        )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=380, xaxis_title="singular direction of the source",
        yaxis_title="share of the squared score", legend=dict(orientation="h", y=-0.25),
        title=f"Composition by component: {figure_text(result.attrs['edge'])}",
    )  # fmt: skip
    return figure
