"""Figures of loss traces with the verdicts on them."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.arguments import choice
from lens_slt.report.colours import COLOURS, DASHES
from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.sampling.health import HEALTHY
from lens_slt.sampling.result import component_names, dataset
from lens_slt.schema import require
from lens_slt.text import figure_text

LOSS_AXIS = "paired loss (nats per token)"
COLUMNS, MOST_PANELS, MOST_POINTS = 8, 144, 120  # of the overview


def plot_all_traces(draws: xr.DataTree) -> go.Figure:
    """Loss traces of all components as small panels, one line a chain, for a first look.

    ``draws`` is from :func:`lens_slt.sample`. Panels share the axis of steps and have loss axes of
    their own; traces are averaged over neighbouring steps to at most 120 points; burn-in is left
    of the line. Of more than 144 components the unhealthy ones are shown first.

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
    before = dataset(draws, "burn_in")["paired_loss"]
    after = dataset(draws, "posterior")["paired_loss"]
    for place, name in enumerate(names):
        where = dict(row=place // columns + 1, col=place % columns + 1)
        loss = np.concatenate(
            [before.sel(component=name).values, after.sel(component=name).values], axis=1
        )
        steps, means = _thinned(loss)
        for chain, values in enumerate(means):
            word = figure_text(health["verdict"].sel(component=name).values[chain])
            figure.add_trace(
                go.Scatter(
                    x=steps, y=values, mode="lines", showlegend=False,
                    line=dict(width=1, color=COLOURS[chain % len(COLOURS)]),
                    hovertemplate=f"{figure_text(name)}, chain {chain}: {word}<br>"
                    "step %{x:.0f}: %{y:.3g} nats<extra></extra>",
                ),
                **where,
            )  # fmt: skip
        if before.shape[-1]:
            figure.add_vline(x=before.shape[-1], line=dict(color="grey", width=1), **where)
    figure.update_yaxes(showticklabels=False, rangemode="tozero")
    figure.update_xaxes(title_text="step", row=rows)
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
    before = draws["burn_in"].to_dataset()["paired_loss"].sel(component=component).values
    after = draws["posterior"].to_dataset()["paired_loss"].sel(component=component).values
    health = draws["health"].to_dataset().sel(component=component)
    verdicts = labels(health["verdict"].values)
    used = health["used"].values.astype(bool)
    loss = np.concatenate([before, after], axis=1)
    steps = np.arange(loss.shape[1])
    figure = Figure()
    for chain, word in enumerate(verdicts):
        figure.add_scatter(
            x=steps, y=loss[chain], mode="lines", opacity=0.8 if used[chain] else 0.5,
            name=f"chain {chain}: {word}" + ("" if used[chain] else " (not used)"),
            line=dict(
                color=COLOURS[chain % len(COLOURS)], dash=DASHES[chain % len(DASHES)], width=1.3
            ),
        )  # fmt: skip
    if before.shape[1]:
        figure.add_vrect(
            x0=0, x1=before.shape[1], fillcolor="grey", opacity=0.15, line_width=0,
            annotation_text="burn-in, not used", annotation_position="top left",
        )  # fmt: skip
    words = [figure_text(f"{component}: {health['summary'].values}")]
    if used.any():
        mean = float(after[used].mean())
        figure.add_hline(y=mean, line=dict(color="black", width=1))
        words.append(f"mean after burn-in {mean:.3g} nats per token (line)")
    rhat = float(health["rhat"])
    if np.isfinite(rhat):
        words.append(f"R̂ {rhat:.2f}")
    figure.update_layout(
        template="plotly_white", height=420,
        title=words[0] + (f"<br><sup>{', '.join(words[1:])}</sup>" if words[1:] else ""),
        xaxis_title="step", yaxis_title=LOSS_AXIS, legend=dict(orientation="h", y=-0.2),
    )  # fmt: skip
    return figure


def _panel_title(name: str, verdict: str) -> str:
    shown = figure_text(name)
    return shown if verdict == HEALTHY else f"<b>! {shown}</b>"


def _thinned(loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps and means of equal blocks of ``loss [chain, step]``."""
    size = max(1, loss.shape[1] // MOST_POINTS)
    n = loss.shape[1] // size
    means = loss[:, : n * size].reshape(len(loss), n, size).mean(-1)
    return (np.arange(n) + 0.5) * size, means
