"""Figures of loss traces with the verdicts on them."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.arguments import choice
from lens_slt.report.colours import COLOURS, DASHES
from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.sampling.health import HEALTHY
from lens_slt.sampling.result import component_names, dataset, n_draws
from lens_slt.schema import require
from lens_slt.text import figure_text

LOSS_AXIS = "paired loss (nats per token)"
DRAW_AXIS = "draw, from the start of burn-in"
COLUMNS, MOST_PANELS, MOST_POINTS = 8, 144, 120  # of the overview


def plot_all_traces(draws: xr.DataTree) -> go.Figure:
    """Loss traces of all components as small panels, one line a chain, for a first look.

    ``draws`` is from :func:`lens_slt.sample`. Panels share the axis of draws, those of burn-in
    first, and have loss axes of their own; traces are averaged over neighbouring draws to at most
    120 points; burn-in is left of the line. Of more than 144 components the unhealthy ones are
    shown first.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1", **how)
        >>> figure = ls.plot_all_traces(draws)
        >>> figure.layout.title.text.split("<br>")[0]
        'Loss traces of all components'
    """
    draws = require(draws, "draws", argument="draws")
    health = dataset(draws, "health")
    verdicts = {
        str(name): str(word)
        for name, word in zip(health["component"].values, health["summary"].values, strict=True)
    }
    names = sorted(verdicts, key=lambda name: verdicts[name] == HEALTHY)[:MOST_PANELS]
    names = [name for name in verdicts if name in names]
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = subplots(
        rows=rows, cols=columns, shared_xaxes=True, horizontal_spacing=0.015,
        vertical_spacing=min(0.25 / rows, 0.12),
        subplot_titles=[_panel_title(name, verdicts[name]) for name in names],
    )  # fmt: skip
    n_before = dataset(draws, "burn_in").sizes["interval"]
    for place, name in enumerate(names):
        where = dict(row=place // columns + 1, col=place % columns + 1)
        place_of, means = _thinned(_loss(draws, name))
        for chain, values in enumerate(means):
            word = figure_text(health["verdict"].sel(component=name).values[chain])
            figure.add_trace(
                go.Scatter(
                    x=place_of, y=values, mode="lines", showlegend=False,
                    line=dict(width=1, color=COLOURS[chain % len(COLOURS)]),
                    hovertemplate=f"{figure_text(name)}, chain {chain}: {word}<br>"
                    "draw %{x:.0f}: %{y:.3g} nats<extra></extra>",
                ),
                **where,
            )  # fmt: skip
        if n_before:
            figure.add_vline(x=n_before, line=dict(color="grey", width=1), **where)
    figure.update_yaxes(showticklabels=False, rangemode="tozero")
    figure.update_xaxes(title_text=DRAW_AXIS, row=rows)
    left = "" if len(names) == len(verdicts) else f"; {len(names)} of {len(verdicts)} components"
    figure.update_layout(
        template="plotly_white", height=130 + 95 * rows, margin=dict(t=100),
        title="Loss traces of all components<br><sup>one line a chain; left of the grey line: "
        f"burn-in, not used; !: not healthy{left}</sup>",
    )  # fmt: skip
    return figure


def plot_traces(draws: xr.DataTree, component: str) -> go.Figure:
    """Loss trace of every chain of one component with its verdict; burn-in shaded.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0", **how)
        >>> figure = ls.plot_traces(draws, "L0H0")
        >>> figure.layout.title.text.split("<br>")[0]
        'L0H0: chains disagree (R̂ 1.20)'
    """
    draws = require(draws, "draws", argument="draws")
    names = component_names(draws)
    choice("component", component, names)
    loss, n_before = _loss(draws, component), dataset(draws, "burn_in").sizes["interval"]
    health = draws["health"].to_dataset().sel(component=component)
    verdicts = labels(health["verdict"].values)
    used = health["used"].values.astype(bool)
    figure = Figure()
    for chain, word in enumerate(verdicts):
        figure.add_scatter(
            x=np.arange(loss.shape[1]), y=loss[chain], mode="lines",
            opacity=0.8 if used[chain] else 0.5,
            name=f"chain {chain}: {word}" + ("" if used[chain] else " (not used)"),
            line=dict(
                color=COLOURS[chain % len(COLOURS)], dash=DASHES[chain % len(DASHES)], width=1.3
            ),
        )  # fmt: skip
    if n_before:
        figure.add_vrect(
            x0=0, x1=n_before, fillcolor="grey", opacity=0.15, line_width=0,
            annotation_text="burn-in, not used", annotation_position="top left",
        )  # fmt: skip
    words = [figure_text(f"{component}: {health['summary'].values}")]
    if used.any():
        mean = float(loss[used, n_before:].mean())
        figure.add_hline(y=mean, line=dict(color="black", width=1))
        words.append(f"mean after burn-in {mean:.3g} nats per token (line)")
    stride = int(draws["steps_per_draw"].sel(component=component))
    rhat = float(health["rhat"])
    if np.isfinite(rhat):
        words.append(f"R̂ {rhat:.2f}")
    figure.update_layout(
        template="plotly_white", height=420,
        title=words[0] + (f"<br><sup>{', '.join(words[1:])}</sup>" if words[1:] else ""),
        xaxis_title=f"{DRAW_AXIS} ({stride} step{'s' * (stride > 1)} each)",
        yaxis_title=LOSS_AXIS, legend=dict(orientation="h", y=-0.2),
    )  # fmt: skip
    return figure


def _loss(draws: xr.DataTree, name: str) -> np.ndarray:
    """``[chain, draw]``, burn-in first; without the padding of a component that stopped early."""
    before = dataset(draws, "burn_in")["paired_loss"].sel(component=name).values
    after = dataset(draws, "posterior")["paired_loss"].sel(component=name).values
    return np.concatenate([before, after[:, : n_draws(draws, name)]], axis=1)


def _panel_title(name: str, verdict: str) -> str:
    shown = figure_text(name)
    return shown if verdict == HEALTHY else f"<b>! {shown}</b>"


def _thinned(loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and means of equal blocks of ``loss [chain, draw]``."""
    size = max(1, loss.shape[1] // MOST_POINTS)
    n = loss.shape[1] // size
    means = loss[:, : n * size].reshape(len(loss), n, size).mean(-1)
    return (np.arange(n) + 0.5) * size, means
