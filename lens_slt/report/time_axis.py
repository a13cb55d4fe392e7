"""Panels with an axis of training steps, on a scale of log(step + 1), and stages on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lens_slt.arrays import FloatArray
from lens_slt.development.onsets import Boundaries
from lens_slt.report.colours import COLOURS, DASHES, SYMBOLS
from lens_slt.report.figure import Figure, subplots
from lens_slt.report.plots_traces import COLUMNS, MOST_PANELS
from lens_slt.text import figure_text

STEP_AXIS = "training step, on a scale of log(step + 1)"
PANEL_PIXELS = 170
AROUND = 210  # pixels above and below panels
MOST_COLUMNS = COLUMNS // 2  # panels side by side
SHADES = ("rgba(0,0,0,0.00)", "rgba(0,0,0,0.06)")  # of stages, in turn
SHADED = "shaded in turn: stages; dotted: their boundaries, with intervals"
NAMED = 0.25  # share of the axis that a stage has to take for a word beside its number
DOUBT = "rgba(230,159,0,0.18)"  # intervals of boundaries
TICKS = [0] + [m * 10**e for e in range(12) for m in range(1, 10)]
MOST_TICKS = 9


def panels(names: Sequence[str], *, one_scale: bool = False, most: int = MOST_COLUMNS) -> Figure:
    """An empty figure with a panel for each name, of at most 144, ``most`` of them side by side."""
    names = names[:MOST_PANELS]
    columns = min(most, len(names))
    rows = -(-len(names) // columns)
    figure = subplots(
        rows=rows, cols=columns, shared_xaxes="all", subplot_titles=names,
        shared_yaxes="all" if one_scale else False, horizontal_spacing=0.25 / columns,
        vertical_spacing=min(0.3 / rows, 0.1),
    )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=AROUND + PANEL_PIXELS * rows, margin=dict(t=110),
        legend=dict(orientation="h", y=-60 / (PANEL_PIXELS * rows), yanchor="top"),
    )  # fmt: skip
    return figure


def places(n: int, most: int = MOST_COLUMNS) -> Iterator[dict[str, Any]]:
    """Row and column of each of ``n`` panels."""
    n = min(n, MOST_PANELS)
    columns = min(most, n)
    return (dict(row=i // columns + 1, col=i % columns + 1) for i in range(n))


def band(
    steps: FloatArray, value: FloatArray, low: FloatArray, high: FloatArray, name: str, i: int = 0,
    *, legend: bool = False,
) -> list[go.Scatter]:  # fmt: skip
    """Line ``i`` of a panel with a band around it."""
    x, known = np.log1p(steps), np.isfinite(value)
    colour, shown = COLOURS[i % len(COLOURS)], figure_text(name)
    edge = dict(x=x[known], mode="lines", line=dict(width=0), hoverinfo="skip", showlegend=False,
                legendgroup=shown)  # fmt: skip
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    fill = f"rgba({red},{green},{blue},0.2)"
    return [
        go.Scatter(y=high[known], **edge),
        go.Scatter(y=low[known], fill="tonexty", fillcolor=fill, **edge),
        go.Scatter(
            x=x, y=value, mode="lines+markers", name=shown, legendgroup=shown, showlegend=legend,
            line=dict(color=colour, width=1.6, dash=DASHES[i % len(DASHES)]),
            marker=dict(size=4, symbol=SYMBOLS[i % len(SYMBOLS)]), customdata=steps,
            hovertemplate=f"{shown}, step %{{customdata}}: %{{y:.3g}}<extra></extra>",
        ),
    ]  # fmt: skip


def shade(
    figure: go.Figure, bounds: Boundaries | None, steps: FloatArray, *, named: bool = False,
    **where: Any,
) -> None:  # fmt: skip
    """Stages as bands in turn, intervals of their boundaries as bands of another colour."""
    if bounds is None:
        return
    lowest, highest = float(steps[0]), float(steps[-1])
    refs = _refs(figure, **where)
    edges = np.log1p(np.clip([lowest, *bounds.step, highest], lowest, highest))
    found = []
    for i, (begin, end) in enumerate(pairwise(edges)):
        found.append(_rectangle(begin, end, SHADES[i % 2]))
        if named and end > begin:
            narrow = end - begin < NAMED * (edges[-1] - edges[0])
            figure.add_annotation(
                text=f"{i + 1}" if narrow else f"stage {i + 1}", x=(begin + end) / 2, y=1,
                yanchor="bottom", showarrow=False, **refs,
            )  # fmt: skip
    for low, high in np.log1p(np.clip([bounds.low, bounds.high], lowest, highest)).T:
        found.append(_rectangle(low, high, DOUBT))
    for step in bounds.step[(bounds.step > lowest) & (bounds.step < highest)]:
        line, at = dict(dash="dot", width=1, color="grey"), float(np.log1p(step))
        found.append(dict(type="line", x0=at, x1=at, line=line))
    shapes = [{"y0": 0, "y1": 1, "layer": "below", **refs, **shape} for shape in found]
    # At once: plotly looks at all shapes of a figure for each that is added.
    figure.layout.shapes = (*figure.layout.shapes, *shapes)


def _rectangle(begin: float, end: float, colour: str) -> dict[str, Any]:
    return dict(type="rect", x0=begin, x1=end, fillcolor=colour, line=dict(width=0))


def _refs(figure: go.Figure, **where: int) -> dict[str, str]:
    """What a shape over the whole height of a panel refers to."""
    if not where:
        return dict(xref="x", yref="y domain")
    x, y = (axis.plotly_name.replace("axis", "") for axis in figure.get_subplot(**where))
    return dict(xref=x, yref=f"{y} domain")


def step_axis(figure: go.Figure, steps: FloatArray, most: int = MOST_TICKS, **where: Any) -> None:
    """Ticks at round steps, and at 0, on axes of log(step + 1): all, or those of a panel."""
    ticks = [tick for tick in TICKS if steps[0] <= tick <= steps[-1]] or [int(x) for x in steps]
    x = np.log1p(ticks)
    apart = (np.log1p(steps[-1]) - np.log1p(steps[0])) / most
    kept = {0, len(ticks) - 1}
    rounder = sorted(range(len(ticks)), key=lambda i: (str(ticks[i])[0] not in "125", -i))
    for i in rounder:
        if all(abs(x[i] - x[k]) >= apart for k in kept):
            kept.add(i)
    if x[-1] - x[0] < apart / 2:
        kept.discard(0)
    figure.update_xaxes(
        tickvals=[float(x[i]) for i in sorted(kept)],
        ticktext=[_short(ticks[i]) for i in sorted(kept)],
        **where,
    )


def _short(step: int) -> str:
    """A step as a tick says it: 2000 as 2k."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if step >= size and step % size == 0:
            return f"{step // size}{letter}"
    return str(step)
