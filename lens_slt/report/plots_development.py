"""Figures with an axis of training steps: curves of any result, and how circuits were built."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.arguments import choice, typed
from lens_slt.arrays import FloatArray
from lens_slt.circuits.statistics import SIGNIFICANT
from lens_slt.development.construction_table import construction_table
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.onsets import Boundaries, boundaries_of
from lens_slt.report.colours import COLOURS, DASHES, SYMBOLS
from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.report.plots import INTERVAL, ROW_PIXELS
from lens_slt.report.plots_traces import COLUMNS, MOST_PANELS
from lens_slt.schema import require
from lens_slt.text import figure_text

STEP_AXIS = "training step, on a scale of log(step + 1)"
PANEL_PIXELS = 170
MOST_DIFFERENCES = 40
SHADES = ("rgba(0,0,0,0.00)", "rgba(0,0,0,0.06)")  # of stages, in turn
SHADED = "shaded in turn: stages; dotted: their boundaries, with intervals"
DOUBT = "rgba(230,159,0,0.18)"  # intervals of boundaries
TICKS = [0] + [m * 10**e for e in range(12) for m in range(1, 10)]
MOST_TICKS = 9


@dataclass(frozen=True)
class Curve:
    """How a result is drawn over checkpoints: a panel for each label of one dimension, lines in it.

    Attributes:
        lines: quantities, each with the name of its standard error.
        panel: the dimension of the panels.
        axis: what the values are.
        one_scale: whether panels share their axis of values.
    """

    lines: dict[str, str]
    panel: str
    axis: str
    one_scale: bool = False


CURVES = {
    "refined_llc": Curve({"llc": "se", "probe_llc": "probe_se"}, "component", "λ̂"),
    "per_token_llc": Curve({"mean": "mean_se"}, "component", "mean per-token λ̂"),
    "susceptibility": Curve({"mean": "mean_se"}, "component", "mean χ"),
    "refined_observable": Curve({"shift": "se"}, "component", "E[φ] − φ(w*)"),
    "sublosses": Curve({"loss": "se"}, "pattern", "loss (nats per token)"),
    "behaviour_scores": Curve(
        {
            name: f"{name}_se"
            for name in ("previous_token", "current_token", "first_token", "prefix_matching")
        },
        "component", "attention", one_scale=True,
    ),
}  # fmt: skip


@typed
def plot_curves(
    found: xr.Dataset | xr.DataTree, stages: Any = None, *, quantity: str | None = None
) -> go.Figure:
    """Any result over checkpoints as small panels, with 95 % bands; stages are shaded.

    Args:
        found: with the dimension ``checkpoint``: refined LLCs, matrices (their means), refined
            observables, sublosses, behaviour scores (of attention), or quantities and standard
            errors selected from these; or what :func:`lens_slt.develop` returned, of which it is
            the refined LLCs.
        stages: of one curve, from ``stages(…)``; or boundaries as steps, or as (step, low, high).
        quantity: the only one to draw, such as ``"llc"`` or ``"prefix_matching"``.

    Raises TypeError or ValueError for a result without checkpoints, or that has no curves.
    """
    if isinstance(found, xr.DataTree):
        found = require(found, "development", argument="found", leading=(CHECKPOINT,))
        found = found["refined_llc"].to_dataset()
    kind = _kind_of_curves(found)
    curve = CURVES[kind]
    there = {name: error for name, error in curve.lines.items() if name in found}
    if quantity is not None:
        choice("quantity", quantity, there)
        there = {quantity: there[quantity]}
    bounds = None if stages is None else boundaries_of(stages)
    names = labels(found[curve.panel].values)[:MOST_PANELS]
    columns = min(COLUMNS // 2, len(names))
    rows = -(-len(names) // columns)
    figure = subplots(
        rows=rows, cols=columns, shared_xaxes="all", subplot_titles=names,
        shared_yaxes="all" if curve.one_scale else False, horizontal_spacing=0.05,
        vertical_spacing=min(0.3 / rows, 0.1),
    )  # fmt: skip
    steps = found[CHECKPOINT].values
    for place in range(len(names)):
        where: dict[str, Any] = dict(row=place // columns + 1, col=place % columns + 1)
        lines = _lines(found.isel({curve.panel: place}), there)
        for i, (name, value, error) in enumerate(lines):
            for trace in _band(steps, value, error, name, i, legend=place == 0 and len(lines) > 1):
                figure.add_trace(trace, **where)
        _shade(figure, bounds, steps, **where)
    _step_axis(figure, steps, most=MOST_TICKS // 2)
    figure.update_yaxes(title_text=curve.axis, col=1)
    shaded = f"; {SHADED}" if bounds is not None else ""
    left = found.sizes[curve.panel] - len(names)
    more = f"; {left} more are not shown" if left else ""
    figure.update_layout(
        template="plotly_white", height=210 + PANEL_PIXELS * rows, margin=dict(t=110),
        title=f"Over training: {figure_text(quantity or kind).replace('_', ' ')}"
        f"<br><sup>95 % bands; {STEP_AXIS}{shaded}{more}</sup>",
        legend=dict(orientation="h", y=-60 / (PANEL_PIXELS * rows), yanchor="top"),
    )  # fmt: skip
    return figure


def _kind_of_curves(found: xr.Dataset) -> str:
    """Which of :data:`CURVES` a result, or a selection of one, is."""
    name = found.attrs.get("result")
    kinds = [kind for kind in CURVES if name in (None, kind)]
    held = [
        kind for kind in kinds
        if any(CURVES[kind].panel in found[key].dims for key in CURVES[kind].lines if key in found)
    ]  # fmt: skip
    if not held:
        require(found, *CURVES, argument="found", leading=(CHECKPOINT,))  # says what is wrong
        raise TypeError("found holds no curves over checkpoints")
    if CHECKPOINT not in found.dims:
        raise ValueError("found has no dimension 'checkpoint': plot(found) shows one checkpoint")
    return held[0]


def _lines(row: xr.Dataset, there: dict[str, str]) -> list[tuple[str, FloatArray, FloatArray]]:
    """Name, values and errors of a panel's lines: one for each label of a second dimension."""
    lines = []
    for name, error in there.items():
        values = row[name].transpose(CHECKPOINT, ...)
        errors = row[error].transpose(CHECKPOINT, ...) if error in row else values * np.nan
        rest = [dim for dim in values.dims if dim != CHECKPOINT]
        if not rest:
            shown = "sampling tokens" if name == "llc" else name.replace("_", " ")
            lines.append((shown, values.values, errors.values))
        for i in range(values.sizes[rest[0]] if rest else 0):
            one = {rest[0]: i}
            label = str(values[rest[0]].values[i])
            lines.append((label, values.isel(one).values, errors.isel(one).values))
    return [line for line in lines if np.isfinite(line[1]).any()]


def _band(
    steps: FloatArray, value: FloatArray, error: FloatArray, name: str, i: int, *, legend: bool
) -> list[go.Scatter]:
    """A line with its band of 95 %."""
    x, known = np.log1p(steps), np.isfinite(value)
    wide = INTERVAL * np.nan_to_num(error)
    colour, shown = COLOURS[i % len(COLOURS)], figure_text(name)
    edge = dict(x=x[known], mode="lines", line=dict(width=0), hoverinfo="skip", showlegend=False,
                legendgroup=shown)  # fmt: skip
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    fill = f"rgba({red},{green},{blue},0.2)"
    return [
        go.Scatter(y=(value + wide)[known], **edge),
        go.Scatter(y=(value - wide)[known], fill="tonexty", fillcolor=fill, **edge),
        go.Scatter(
            x=x, y=value, mode="lines+markers", name=shown, legendgroup=shown, showlegend=legend,
            line=dict(color=colour, width=1.6, dash=DASHES[i % len(DASHES)]),
            marker=dict(size=4, symbol=SYMBOLS[i % len(SYMBOLS)]), customdata=steps,
            hovertemplate=f"{shown}, step %{{customdata}}: %{{y:.3g}}<extra></extra>",
        ),
    ]  # fmt: skip


def plot_sublosses(found: xr.Dataset) -> go.Figure:
    """Loss of every pattern of tokens with 95 % intervals, one symbol a probe.

    ``found`` is the node ``sublosses`` of what :func:`lens_slt.develop` returned, at a checkpoint.
    """
    found = require(found, "sublosses", argument="found")
    names = labels(found["pattern"].values)
    figure = Figure()
    for i, probe in enumerate(labels(found["probe"].values)):
        one = found.isel(probe=i)
        figure.add_trace(
            go.Scatter(
                x=one["loss"].values, y=names, mode="markers", name=probe,
                marker=dict(
                    symbol=SYMBOLS[i % len(SYMBOLS)], size=9, color=COLOURS[i % len(COLOURS)]
                ),
                error_x=dict(array=INTERVAL * one["se"].values, thickness=1.2, width=3),
                hovertemplate="%{y}: %{x:.3f}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=190 + ROW_PIXELS * len(names), margin=dict(t=100),
        title="Loss of every pattern<br><sup>95 % intervals over sequences</sup>",
        xaxis_title=CURVES["sublosses"].axis,
    )  # fmt: skip
    return figure


def plot_differences(found: xr.Dataset) -> go.Figure:
    """The clearest differences between two results with 95 % intervals, the clearest first.

    ``found`` is from :func:`lens_slt.compare`. Filled symbols: q below 0.05.
    """
    found = require(found, "differences", argument="found", leading=(CHECKPOINT,))
    rows = []
    for name in (str(key) for key in found.data_vars if f"{key}_q" in found):
        flat = found[[name, f"{name}_se", f"{name}_q"]].stack(row=found[name].dims)
        for label, value, se, q in zip(
            flat["row"].values, *(flat[x].values for x in (name, f"{name}_se", f"{name}_q")),
            strict=True,
        ):  # fmt: skip
            if se > 0:
                rows.append((value, se, q, " ".join(map(str, (*np.atleast_1d(label), name)))))
    rows.sort(key=lambda row: -abs(row[0] / row[1]))
    shown = rows[:MOST_DIFFERENCES]
    clear = [q < SIGNIFICANT for _, _, q, _ in shown]
    figure = Figure(
        go.Scatter(
            x=[row[0] for row in shown], y=labels(row[3] for row in shown), mode="markers",
            error_x=dict(array=[INTERVAL * row[1] for row in shown], thickness=1.2, width=3),
            marker=dict(size=9, color=COLOURS[0],
                        symbol=["circle" if one else "circle-open" for one in clear]),
            hovertemplate="%{y}: %{x:.3g}<extra></extra>",
        )
    )  # fmt: skip
    figure.add_vline(x=0, line=dict(dash="dot", width=1))
    figure.update_yaxes(autorange="reversed")
    what = figure_text(str(found.attrs["compared"])).replace("_", " ")
    figure.update_layout(
        template="plotly_white", height=200 + ROW_PIXELS * len(shown), margin=dict(t=100),
        title=f"Differences: {what}<br><sup>the clearest {len(shown)} of {len(rows)}, with 95 % "
        "intervals; filled: q below 0.05</sup>", xaxis_title="other − one",
    )  # fmt: skip
    return figure


def plot_construction(found: xr.Dataset, stages: Any = None) -> go.Figure:
    """From which step on every part of a circuit is there, with intervals; stages are shaded.

    Args:
        found: from :func:`lens_slt.construction`.
        stages: of one curve, from ``stages(…)``; or boundaries as steps, or as (step, low, high).

    One row per part and criterion, in the order of the circuit. The dotted bar is the interval of
    the onset, the full line the time over which the part clearly is there, the symbol the onset by
    the estimates alone. A row without any is not there at the last checkpoint.
    """
    found = require(found, "construction", argument="found", leading=(CHECKPOINT,))
    table = construction_table(found, stages)
    steps = found[CHECKPOINT].values
    several = len(set(table["circuit"])) > 1
    names = [
        f"{row.circuit}: {_row_name(row)}" if several else _row_name(row)
        for row in table.itertuples()
    ]
    names = labels(names)
    figure = Figure()
    kinds = list(dict.fromkeys(table["criterion"]))
    for i, kind in enumerate(kinds):
        rows = table[table["criterion"] == kind]
        for trace in _onset_marks(rows, [names[k] for k in rows.index], steps, i):
            figure.add_trace(trace)
    _shade(figure, None if stages is None else boundaries_of(stages), steps, named=True)
    _step_axis(figure, steps)
    figure.update_xaxes(title_text=f"training {figure_text(found.attrs['unit'])}")
    figure.update_yaxes(
        categoryorder="array", categoryarray=names[::-1], range=[-0.6, len(names) - 0.4]
    )
    shaded = f"; {SHADED}" if stages is not None else ""
    figure.update_layout(
        template="plotly_white", height=230 + (ROW_PIXELS + 6) * len(names), margin=dict(t=110),
        title=f"Construction: {figure_text(', '.join(dict.fromkeys(table['circuit'])))}"
        "<br><sup>symbol: from when on it is there; thin: interval; thick: clearly there"
        f"{shaded}</sup>",
        legend=dict(orientation="h", y=-70 / ((ROW_PIXELS + 6) * len(names)), yanchor="top"),
    )  # fmt: skip
    return figure


def _row_name(row: Any) -> str:
    part = "circuit" if row.kind == "circuit" else row.part
    return f"{part} {row.what}"


def _onset_marks(rows: Any, names: list[str], steps: FloatArray, i: int) -> list[go.Scatter]:
    """Intervals, times and symbols of the rows of one criterion."""
    colour, kind = COLOURS[i % len(COLOURS)], str(rows["criterion"].iloc[0])
    lines: dict[str, tuple[list[Any], list[Any]]] = {"thin": ([], []), "thick": ([], [])}
    for row, name in zip(rows.itertuples(), names, strict=True):
        if np.isnan(row.onset):
            continue
        low = row.onset_low if np.isfinite(row.onset_low) else steps[0]
        high = row.onset_high if np.isfinite(row.onset_high) else steps[-1]
        for width, begin, end in (("thin", low, high), ("thick", high, steps[-1])):
            lines[width][0].extend([np.log1p(begin), np.log1p(end), None])
            lines[width][1].extend([name, name, None])
    common = dict(mode="lines", hoverinfo="skip", showlegend=False, legendgroup=kind)
    traces = [
        go.Scatter(x=x, y=y, line=dict(color=colour, width=2 if width == "thin" else 7),
                   opacity=1.0 if width == "thin" else 0.45, **common)
        for width, (x, y) in lines.items()
    ]  # fmt: skip
    said = [
        f"{row.exists}" + (f"; at the end {row.end:.2f} {row.unit}" if row.unit else "")
        for row in rows.itertuples()
    ]
    traces.append(
        go.Scatter(
            x=np.log1p(rows["onset"]), y=names, mode="markers", name=kind, legendgroup=kind,
            marker=dict(size=11, symbol=SYMBOLS[i % len(SYMBOLS)], color=colour),
            text=labels(said), hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )  # fmt: skip
    return traces


def _shade(
    figure: go.Figure, bounds: Boundaries | None, steps: FloatArray, *, named: bool = False,
    **where: Any,
) -> None:  # fmt: skip
    """Stages as bands in turn, intervals of their boundaries as bands of another colour."""
    if bounds is None:
        return
    lowest, highest = float(steps[0]), float(steps[-1])
    edges = np.log1p(np.clip([lowest, *bounds.step, highest], lowest, highest))
    for i, (begin, end) in enumerate(pairwise(edges)):
        words: dict[str, Any] = {}
        if named and end > begin:
            words = dict(annotation_text=f"stage {i + 1}", annotation_position="outside top")
        figure.add_vrect(
            x0=begin, x1=end, fillcolor=SHADES[i % 2], line_width=0, layer="below", **words, **where
        )
    for low, high in np.log1p(np.clip([bounds.low, bounds.high], lowest, highest)).T:
        figure.add_vrect(x0=low, x1=high, fillcolor=DOUBT, line_width=0, layer="below", **where)
    for step in bounds.step:
        line = dict(dash="dot", width=1, color="grey")
        figure.add_vline(x=float(np.log1p(step)), line=line, layer="below", **where)


def _step_axis(figure: go.Figure, steps: FloatArray, most: int = MOST_TICKS) -> None:
    """Ticks at round steps, and at 0, on axes of log(step + 1)."""
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
    )


def _short(step: int) -> str:
    """A step as a tick says it: 2000 as 2k."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if step >= size and step % size == 0:
            return f"{step // size}{letter}"
    return str(step)
