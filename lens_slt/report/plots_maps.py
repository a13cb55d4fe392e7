"""Figures of token maps and of how stable maps and clusters are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.arguments import typed
from lens_slt.report.colours import COLOURS, NONE, SYMBOLS, pattern_colour
from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.schema import require
from lens_slt.text import figure_text

MOST_NAMES = len(COLOURS) * len(SYMBOLS)  # told apart by colour and symbol together


@typed
def plot_map(
    coords: xr.Dataset,
    color: Any = None,
    hover: Sequence[str] | None = None,
    *,
    title: str = "Map of tokens",
    label: str = "",
) -> go.Figure:
    """Tokens at their place on the map, coloured by a name or by a number.

    Args:
        coords: from :func:`lens_slt.structure.maps.token_map`; its first two axes are drawn.
        color: one value a token. Names ("none" for none), or cluster numbers (integers, −1 for
            none), get a colour and a symbol each, the most frequent first, those beyond 49
            together as "other"; real numbers get a colour scale; booleans are "yes" and "no".
        hover: one text a token, shown under the pointer, for instance the token in its context.
        title: of the figure.
        label: what ``color`` is, for the legend, with its unit.

    Raises ValueError where lengths differ or the map has one axis only.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1", probes={"mix": text}, **how)
        >>> figure = ls.plot_map(ls.token_map(ls.per_token_llc(draws), n_neighbors=10))
        >>> figure.layout.title.text.split("<br>")[0]
        'Map of tokens'
    """
    coords = require(coords, "token_map", argument="coords")
    points = coords["map"].values
    if points.shape[1] < 2:
        raise ValueError(f"coords must have two axes or more; got {points.shape[1]}")
    texts = np.full(len(points), "", dtype=object)
    if hover is not None:
        texts = np.array(labels(hover), dtype=object)
    values = np.full(len(points), "tokens") if color is None else np.asarray(color)
    for name, given in (("color", values), ("hover", texts)):
        if given.shape != (len(points),):
            raise ValueError(f"{name} must have one value for each of the {len(points)} tokens; "
                             f"got shape {given.shape}")  # fmt: skip
    figure = Figure()
    if np.issubdtype(values.dtype, np.floating):
        marker = dict(
            size=_size(len(points)),
            color=values,
            colorscale="Cividis",
            colorbar=dict(title=figure_text(label)),
        )
        figure.add_trace(_scatter(points, texts, marker, name=""))
    else:
        for name, rows, colour, symbol in _groups(values):
            marker = dict(size=_size(len(points)), color=colour, symbol=symbol, opacity=0.7)
            figure.add_trace(_scatter(points[rows], texts[rows], marker, name))
    axes = labels(coords["axis"].values[:2])
    figure.update_xaxes(title_text=axes[0], showgrid=False, zeroline=False)
    figure.update_yaxes(
        title_text=axes[1], showgrid=False, zeroline=False, scaleanchor="x", scaleratio=1
    )
    figure.update_layout(
        template="plotly_white", height=650, title=figure_text(title), margin=dict(t=80),
        legend=dict(title=figure_text(label), itemsizing="constant"),
        showlegend=color is not None and not np.issubdtype(values.dtype, np.floating),
    )  # fmt: skip
    return figure


@typed
def plot_stability(
    clusters: Mapping[str, xr.Dataset] | None = None, maps: Mapping[str, xr.Dataset] | None = None
) -> go.Figure:
    """Agreement of clusters and of maps across seeds and halves, with the level of chance.

    Args:
        clusters: what was compared, such as "seeds 0 and 1", to the result of
            :func:`lens_slt.structure.clusters.cluster_stability`. Symbols are the two indices
            over all tokens, small ones the clusters' overlaps.
        maps: the same for :func:`lens_slt.structure.maps.map_stability`.

    Raises ValueError without anything to draw.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1", probes={"mix": text}, **how)
        >>> options = dict(method="hdbscan", min_size=5)
        >>> one, two = (ls.clusters(half, **options) for half in ls.halves(ls.per_token_llc(draws)))
        >>> figure = ls.plot_stability({"halves": ls.cluster_stability(one, two)})
        >>> figure.layout.title.text.split("<br>")[0]
        'Stability of clusters and maps'
    """
    stable = ("cluster_stability", clusters or {}), ("map_stability", maps or {})
    clusters, maps = (
        {
            figure_text(name): require(made, kind, argument=f"{kind} {name!r}")
            for name, made in compared.items()
        }
        for kind, compared in stable
    )
    if clusters:
        clusters = {
            name if np.isfinite(float(made["rand"])) else f"{name} (none in both)": made
            for name, made in clusters.items()
        }
    panels = [(name, made) for name, made in (("clusters", clusters), ("maps", maps)) if made]
    if not panels:
        raise ValueError("plot_stability needs clusters or maps; got neither")
    figure = subplots(
        rows=len(panels), shared_xaxes=True, subplot_titles=[name for name, _ in panels],
        row_heights=[len(made) + 1 for _, made in panels], vertical_spacing=0.12,
    )  # fmt: skip
    for row, (name, made) in enumerate(panels, start=1):
        traces = _cluster_traces(made) if name == "clusters" else _map_traces(made)
        for trace in traces:
            figure.add_trace(trace, row=row, col=1)
    figure.update_xaxes(range=[-0.05, 1.05])
    figure.update_xaxes(title_text="agreement (1: equal)", row=len(panels), col=1)
    rows = sum(len(made) for _, made in panels)
    figure.update_layout(
        template="plotly_white", height=240 + 60 * rows + 60 * len(panels), margin=dict(t=110),
        title="Stability of clusters and maps<br><sup>grey bars: the level of chance</sup>",
        legend=dict(orientation="h", y=-90 / (180 + 60 * rows), yanchor="top"),
    )  # fmt: skip
    return figure


def _cluster_traces(made: Mapping[str, xr.Dataset]) -> list[go.Scatter]:
    names = list(made)
    label = [name for name in names for _ in range(made[name].sizes["label"])]
    overlap = np.concatenate([made[name]["jaccard"].values for name in names])
    chance = np.concatenate([made[name]["jaccard_chance"].values for name in names])
    texts = [f"cluster {k}" for name in names for k in made[name]["label"].values]
    return [
        _chance([0.0] * len(names), names, "chance (both indices)", "line-ns-open", 20),
        _chance(chance, label, "chance (overlap)", "line-ns-open", 9),
        go.Scatter(
            x=overlap, y=label, mode="markers", name="Jaccard overlap of each cluster", text=texts,
            marker=dict(size=6, symbol="circle-open", color=COLOURS[2]),
            hovertemplate="%{y}, %{text}: %{x:.2f}<extra></extra>",
        ),
        *(
            go.Scatter(
                x=[float(made[name][key]) for name in names], y=names, mode="markers", name=title,
                marker=dict(size=11, symbol=SYMBOLS[i], color=COLOURS[i]),
                hovertemplate="%{y}: %{x:.2f}<extra></extra>",
            )
            for i, (key, title) in enumerate(
                (("rand", "adjusted Rand index"), ("information", "adjusted mutual information"))
            )
        ),
    ]  # fmt: skip


def _map_traces(made: Mapping[str, xr.Dataset]) -> list[go.Scatter]:
    names = list(made)
    return [
        _chance([float(made[name]["chance"]) for name in names], names, "chance (neighbours)",
                "line-ns-open", 20),
        go.Scatter(
            x=[float(made[name]["agreement"]) for name in names], y=names, mode="markers",
            name="Jaccard overlap of neighbours",
            marker=dict(size=11, symbol=SYMBOLS[2], color=COLOURS[3]),
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        ),
    ]  # fmt: skip


def _chance(x: Any, y: Sequence[str], name: str, symbol: str, size: int) -> go.Scatter:
    return go.Scatter(
        x=x, y=y, mode="markers", name=name,
        marker=dict(size=size, symbol=symbol, color="grey", line=dict(width=2, color="grey")),
        hovertemplate="%{y}, by chance: %{x:.2f}<extra></extra>",
    )  # fmt: skip


def _groups(values: np.ndarray) -> list[tuple[str, np.ndarray, str, str]]:
    """Name, places, colour and symbol of every group, "none" first so that it lies underneath."""
    if values.dtype == bool:
        values, is_none, nothing = np.where(values, "yes", "no"), ~values, "no"
    elif np.issubdtype(values.dtype, np.integer):
        is_none, nothing = values < 0, "no cluster"
        values = np.char.add("cluster ", values.astype(str))
    else:
        is_none, nothing = values.astype(str) == "none", "none"
    names = values.astype(str)
    groups = []
    if is_none.any():
        groups.append((nothing, np.flatnonzero(is_none), NONE, "circle"))
    kinds, counts = np.unique(names[~is_none], return_counts=True)
    kinds = kinds[np.argsort(-counts, kind="stable")]
    for i, kind in enumerate(kinds[:MOST_NAMES]):
        rows = np.flatnonzero((names == kind) & ~is_none)
        symbol = SYMBOLS[i // len(COLOURS)]  # colours first: they are seen sooner in a crowd
        colour = pattern_colour(str(kind)) or COLOURS[i % len(COLOURS)]
        groups.append((str(kind), rows, colour, symbol))
    if len(kinds) > MOST_NAMES:
        rest = np.isin(names, kinds[MOST_NAMES:]) & ~is_none
        groups.append(("other", np.flatnonzero(rest), NONE, "x"))
    return groups


def _scatter(points: np.ndarray, texts: np.ndarray, marker: dict[str, Any], name: str) -> Any:
    """Points drawn by the graphics card: a hundred thousand of them stay fluid."""
    return go.Scattergl(
        x=points[:, 0], y=points[:, 1], mode="markers", marker=marker, name=figure_text(name),
        text=texts, hovertemplate="%{text}<extra>" + figure_text(name) + "</extra>",
    )  # fmt: skip


def _size(n_points: int) -> float:
    return float(np.clip(300 / np.sqrt(max(n_points, 1)), 2.5, 8))
