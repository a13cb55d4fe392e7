"""Figures of stages and transitions: curves without their noise, cut where they change."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.development.onsets import boundaries_of
from lens_slt.report.figure import Figure, labels
from lens_slt.report.time_axis import (
    DOUBT,
    MOST_TICKS,
    SHADED,
    STEP_AXIS,
    band,
    panels,
    places,
    shade,
    step_axis,
)
from lens_slt.schema import require


def plot_stages(result: xr.Dataset) -> go.Figure:
    """λ̂ of every component without its noise, its stages shaded in turn.

    ``result`` is from :func:`lens_slt.stages`. Dotted: boundaries, with their intervals in colour.

    Example:
        >>> import numpy as np, xarray as xr, lens_slt as ls
        >>> steps = np.unique(np.geomspace(1, 20_000, 40).astype(int))
        >>> rise = 1 / (1 + np.exp(-6 * (np.log1p(steps) - 6)))
        >>> curve = xr.Dataset({"llc": ("checkpoint", 10 + rise)}, coords={"checkpoint": steps})
        >>> found = ls.stages(curve.assign(se=0.1 + 0 * curve["llc"]))
        >>> figure = ls.plot_stages(found)
        >>> figure.layout.title.text.split("<br>")[0]
        'Stages'
    """
    result = require(result, "stages", argument="result")

    def mark(figure: Figure, one: xr.Dataset, **where: Any) -> None:
        shade(figure, boundaries_of(one), one["step"].values, **where)

    figure = _panels(result, "component", "Stages", SHADED, mark)
    return figure.update_yaxes(title_text="λ̂", col=1)


def plot_transitions(result: xr.Dataset) -> go.Figure:
    """Every curve without its noise; transitions are shaded from begin to end.

    ``result`` is from :func:`lens_slt.transitions`. Dotted: midpoints.

    Example:
        >>> import numpy as np, xarray as xr, lens_slt as ls
        >>> steps = np.unique(np.geomspace(1, 20_000, 40).astype(int))
        >>> rise = 1 / (1 + np.exp(-6 * (np.log1p(steps) - 6)))
        >>> curve = xr.DataArray(rise, coords={"checkpoint": steps}, name="prefix_matching")
        >>> figure = ls.plot_transitions(ls.transitions(curve))
        >>> figure.layout.title.text.split("<br>")[0]
        'Transitions'
    """
    result = require(result, "transitions", argument="result")

    def mark(figure: Figure, one: xr.Dataset, **where: Any) -> None:
        steps = one["step"].values
        for begin, middle, end in zip(
            *(one[name].values for name in ("begin", "midpoint", "end")), strict=True
        ):
            ends = np.log1p([np.nan_to_num(begin, nan=steps[0]), np.nan_to_num(end, nan=steps[-1])])
            if np.isfinite([begin, end]).any():
                figure.add_vrect(x0=ends[0], x1=ends[1], fillcolor=DOUBT, line_width=0, **where)
            if np.isfinite(middle):
                line = dict(dash="dot", width=1, color="grey")
                figure.add_vline(x=float(np.log1p(middle)), line=line, **where)

    return _panels(result, "observable", "Transitions", "shaded: from begin to end", mark)


def _panels(found: xr.Dataset, panel: str, title: str, words: str, mark: Any) -> go.Figure:
    """A panel for each label of a dimension with its fit and what ``mark`` adds."""
    names = labels(found[panel].values)
    figure = panels(names)
    steps = found["step"].values
    for place, where in enumerate(places(len(names))):
        one = found.isel({panel: place})
        fit, low, high = (one[name].values for name in ("fit", "fit_low", "fit_high"))
        for trace in band(steps, fit, low, high, str(found[panel].values[place])):
            figure.add_trace(trace, **where)
        mark(figure, one, **where)
    step_axis(figure, steps, most=MOST_TICKS // 2)
    figure.update_layout(
        title=f"{title}<br><sup>lines: without noise, with 95 % bands; {words}; {STEP_AXIS}</sup>"
    )
    return figure
