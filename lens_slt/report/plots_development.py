"""Figures with an axis of training steps: curves of any result, and how circuits were built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.arguments import choice, typed
from lens_slt.arrays import FloatArray
from lens_slt.development.construction_table import construction_table
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.onsets import boundaries_of
from lens_slt.report.colours import COLOURS, SYMBOLS
from lens_slt.report.figure import Figure, labels
from lens_slt.report.plots import ROW_PIXELS
from lens_slt.report.plots_traces import MOST_PANELS
from lens_slt.report.stacked import legend_below, titled
from lens_slt.report.time_axis import (
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
from lens_slt.statistics import HALF_WIDTH, SIGNIFICANT
from lens_slt.text import figure_text

MOST_DIFFERENCES = 40


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
    "pattern_llc": Curve(
        {"contrast": "contrast_se"}, "component", "λ̂ beyond others", one_scale=True
    ),
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
    result: xr.Dataset | xr.DataTree, stages: Any = None, *, quantity: str | None = None
) -> go.Figure:
    """Any result over checkpoints as small panels, with 95 % bands; stages are shaded.

    Args:
        result: with the dimension ``checkpoint``: refined LLCs, matrices (their means), rLLCs on
            patterns (beyond other tokens), refined observables, sublosses, behaviour scores (of
            attention), or quantities and standard errors selected from these; or what
            :func:`lens_slt.develop` returned, of which it is the refined LLCs.
        stages: of one curve, from ``stages(…)``; or boundaries as steps, or as (step, low, high).
        quantity: the only one to draw, such as ``"llc"`` or ``"prefix_matching"``.

    Raises TypeError or ValueError for a result without checkpoints, or that has no curves.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([1000, 2900])
        >>> scores = {step: ls.behaviour_scores(run.load(step), n_random=2) for step in run}
        >>> figure = ls.plot_curves(ls.join_checkpoints(scores), quantity="prefix_matching")
        >>> figure.layout.title.text.split("<br>")[0]
        'Over training: prefix matching'
    """
    if isinstance(result, xr.DataTree):
        result = require(result, "development", argument="result", leading=(CHECKPOINT,))
        result = result["refined_llc"].to_dataset()
    kind = _kind_of_curves(result)
    curve = CURVES[kind]
    there = {name: error for name, error in curve.lines.items() if name in result}
    if quantity is not None:
        choice("quantity", quantity, there)
        there = {quantity: there[quantity]}
    bounds = None if stages is None else boundaries_of(stages)
    names = labels(result[curve.panel].values)
    figure = panels(names, one_scale=curve.one_scale)
    steps = result[CHECKPOINT].values
    for place, where in enumerate(places(len(names))):
        lines = _lines(result.isel({curve.panel: place}), there)
        legend = place == 0 and len(lines) > 1
        for i, (name, value, wide) in enumerate(lines):
            for trace in band(steps, value, value - wide, value + wide, name, i, legend=legend):
                figure.add_trace(trace, **where)
        shade(figure, bounds, steps, **where)
    step_axis(figure, steps, most=MOST_TICKS // 2)
    figure.update_yaxes(title_text=curve.axis, col=1)
    shaded = f"; {SHADED}" if bounds is not None else ""
    left = len(names) - MOST_PANELS
    more = f"; {left} more are not shown" if left > 0 else ""
    title = (quantity or kind).replace("_", " ").replace("llc", "LLC")
    figure.update_layout(
        title=f"Over training: {figure_text(title + _only_line(result, there, curve.panel))}"
        f"<br><sup>95 % bands; {STEP_AXIS}{shaded}{more}</sup>",
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
        require(found, *CURVES, argument="result", leading=(CHECKPOINT,))  # says what is wrong
        raise TypeError("result holds no curves over checkpoints")
    if CHECKPOINT not in found.dims:
        raise ValueError("result has no dimension 'checkpoint': plot(result) shows one checkpoint")
    return held[0]


def _lines(row: xr.Dataset, there: dict[str, str]) -> list[tuple[str, FloatArray, FloatArray]]:
    """Name, values and half intervals of a panel's lines, one a label of a second dimension."""
    lines = []
    for name, error in there.items():
        values = row[name].transpose(CHECKPOINT, ...)
        errors = row[error].transpose(CHECKPOINT, ...) if error in row else values * 0
        rest = [dim for dim in values.dims if dim != CHECKPOINT]
        if not rest:
            shown = "sampling tokens" if name == "llc" else name.replace("_", " ")
            lines.append((shown, values.values, _half(errors)))
        for i in range(values.sizes[rest[0]] if rest else 0):
            one = {rest[0]: i}
            label = str(values[rest[0]].values[i])
            lines.append((label, values.isel(one).values, _half(errors.isel(one))))
    return [line for line in lines if np.isfinite(line[1]).any()]


def _only_line(result: xr.Dataset, there: dict[str, str], panel: str) -> str:
    """The label of the lines, where all are of one and a legend would be none."""
    dims = [dim for name in there for dim in result[name].dims if dim not in (CHECKPOINT, panel)]
    if len(there) > 1 or len(dims) != 1 or result.sizes[dims[0]] != 1:
        return ""
    return f", {result[dims[0]].values[0]}"


def _half(error: xr.DataArray) -> FloatArray:
    return HALF_WIDTH * np.nan_to_num(error.values)


def plot_sublosses(result: xr.Dataset) -> go.Figure:
    """Loss of every pattern of tokens with 95 % intervals, one symbol a probe.

    ``result`` is the node ``sublosses`` of what :func:`lens_slt.develop` returned, at a checkpoint.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([1000, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=12, chains=2), behaviour=False, progress=False)
        >>> curves = ls.develop(run, text, "L1H2", probes={"mix": text}, **how)
        >>> at = curves["sublosses"].to_dataset().sel(checkpoint=2900)
        >>> figure = ls.plot_sublosses(at)
        >>> figure.layout.title.text.split("<br>")[0]
        'Loss of every pattern'
    """
    result = require(result, "sublosses", argument="result")
    names = labels(result["pattern"].values)
    figure = Figure()
    for i, probe in enumerate(labels(result["probe"].values)):
        one = result.isel(probe=i)
        figure.add_trace(
            go.Scatter(
                x=one["loss"].values, y=names, mode="markers", name=probe,
                marker=dict(
                    symbol=SYMBOLS[i % len(SYMBOLS)], size=9, color=COLOURS[i % len(COLOURS)]
                ),
                error_x=dict(array=HALF_WIDTH * one["se"].values, thickness=1.2, width=3),
                hovertemplate="%{y}: %{x:.3f}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=190 + ROW_PIXELS * len(names), margin=dict(t=100),
        title="Loss of every pattern<br><sup>95 % intervals over sequences</sup>",
        xaxis_title=CURVES["sublosses"].axis,
    )  # fmt: skip
    return figure


def plot_differences(result: xr.Dataset) -> go.Figure:
    """The clearest differences between two results with 95 % intervals, the clearest first.

    ``result`` is from :func:`lens_slt.compare`. Filled symbols: q below 0.05.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l")
        >>> one, other = (ls.behaviour_scores(run.load(step), n_random=4) for step in (1000, 2900))
        >>> figure = ls.plot_differences(ls.compare(one, other))
        >>> figure.layout.title.text.split("<br>")[0]
        'Differences: behaviour scores'
    """
    result = require(result, "differences", argument="result", leading=(CHECKPOINT,))
    rows = []
    for name in (str(key) for key in result.data_vars if f"{key}_q" in result):
        flat = result[[name, f"{name}_se", f"{name}_q"]].stack(row=result[name].dims)
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
            error_x=dict(array=[HALF_WIDTH * row[1] for row in shown], thickness=1.2, width=3),
            marker=dict(size=9, color=COLOURS[0],
                        symbol=["circle" if one else "circle-open" for one in clear]),
            hovertemplate="%{y}: %{x:.3g}<extra></extra>",
        )
    )  # fmt: skip
    figure.add_vline(x=0, line=dict(dash="dot", width=1))
    figure.update_yaxes(autorange="reversed")
    what = figure_text(str(result.attrs["compared"])).replace("_", " ")
    figure.update_layout(
        template="plotly_white", height=200 + ROW_PIXELS * len(shown), margin=dict(t=100),
        title=f"Differences: {what}<br><sup>the clearest {len(shown)} of {len(rows)}, with 95 % "
        "intervals; filled: q below 0.05</sup>", xaxis_title="other − one",
    )  # fmt: skip
    return figure


def plot_construction(result: xr.Dataset, stages: Any = None) -> go.Figure:
    """From which step on every part of a circuit is there, with intervals; stages are shaded.

    Args:
        result: from :func:`lens_slt.construction`.
        stages: of one curve, from ``stages(…)``; or boundaries as steps, or as (step, low, high).

    One row per part and criterion, in the order of the circuit. The thin line is the interval of
    the onset, the thick one the time over which the part clearly is there, the symbol the onset by
    the estimates alone. A row without any is not there at the last checkpoint.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([1000, 5300])
        >>> text = ls.load_tokens("mix", n_sequences=16, length=64)
        >>> mine = ls.circuit("L0H2 -> L1H2.K", pattern="induction")
        >>> found = ls.construction(run, text, mine, trials="none", progress=False)
        >>> figure = ls.plot_construction(found)
        >>> figure.layout.title.text.split("<br>")[0]
        'Construction: induction'
    """
    result = require(result, "construction", argument="result", leading=(CHECKPOINT,))
    table = construction_table(result, stages)
    steps = result[CHECKPOINT].values
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
    shade(figure, None if stages is None else boundaries_of(stages), steps, named=True)
    step_axis(figure, steps)
    figure.update_xaxes(title_text=f"training {figure_text(result.attrs['unit'])}")
    figure.update_yaxes(
        categoryorder="array", categoryarray=names[::-1], range=[-0.6, len(names) - 0.4]
    )
    shaded = f"; {SHADED}" if stages is not None else ""
    pixels = (ROW_PIXELS + 6) * len(names)
    titled(
        figure, f"Construction: {', '.join(dict.fromkeys(table['circuit']))}",
        f"symbol: from when on it is there; thin: interval; thick: clearly there{shaded}", pixels,
    )  # fmt: skip
    figure.update_layout(legend=legend_below(pixels))
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
