"""Figures of structure over training: modes, influence between patterns, critical checkpoints."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.arguments import choice, typed
from lens_slt.arrays import FloatArray
from lens_slt.development.alignment import FROM_START, STABLE_CORRELATION
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.pattern_influence import UNCLEAR
from lens_slt.report.colours import SYMBOLS
from lens_slt.report.dots import dots
from lens_slt.report.figure import labels
from lens_slt.report.plots import ROW_PIXELS
from lens_slt.report.stacked import stacked, titled
from lens_slt.report.time_axis import (
    AROUND,
    DOUBT,
    PANEL_PIXELS,
    STEP_AXIS,
    band,
    panels,
    places,
    step_axis,
)
from lens_slt.schema import require
from lens_slt.statistics import HALF_WIDTH
from lens_slt.structure.modes import STABLE_ANGLE

SHORT = {FROM_START: "from the start"}
COLUMNS = 2  # panels side by side
MOST_SOURCES, MOST_QUERIES = 4, 8
MOST_OBSERVABLES = 25
QUANTITIES = {  # of influence: the name of its standard error, and what it is
    "influence": ("se", "influence (nats²)"), "correlation": ("correlation_se", "−correlation"),
}  # fmt: skip
THRESHOLD = dict(dash="dash", width=1, color="grey")
DOTTED = dict(dash="dot", width=1, color="grey")


def plot_mode_development(result: xr.Dataset) -> go.Figure:
    """How like the last checkpoint's modes are those of all others, and when each appears.

    ``result`` is from :func:`lens_slt.mode_development`. One panel a mode: cosine of the angle
    between loadings and correlation of scores over tokens, with 95 % bands; both must be above
    their dashed lines for a mode to be there.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l")
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> matrices = {}
        >>> for step in (1000, 2900):
        ...     draws = ls.sample(run.load(step), text, "L1H2, L1H3", probes={"mix": text}, **how)
        ...     matrices[step] = ls.per_token_llc(draws)
        >>> figure = ls.plot_mode_development(ls.mode_development(matrices, n_bootstrap=5))
        >>> figure.layout.title.text.split("<br>")[0]
        'Modes over training'
    """
    result = require(result, "mode_development", argument="result")
    modes = range(result.sizes["mode"])
    names = [
        f"{mode}: {SHORT.get(str(verdict), verdict)}"
        for mode, verdict in zip(result["mode"].values, result["verdict"].values, strict=True)
    ]
    figure = panels(labels(names), one_scale=True, most=COLUMNS)
    steps = result[CHECKPOINT].values
    for mode, where in zip(modes, places(len(names), COLUMNS), strict=False):
        one = result.isel(mode=mode)
        for i, (name, lines) in enumerate(_likeness(one).items()):
            for trace in band(steps, *lines, name, i, legend=mode == 0):
                figure.add_trace(trace, **where)
        for least in (np.cos(np.radians(STABLE_ANGLE)), STABLE_CORRELATION):
            figure.add_hline(y=float(least), line=THRESHOLD, **where)
        low, high, at = np.log1p([float(one[f"step{end}"]) for end in ("_low", "_high", "")])
        if np.isfinite(at):
            figure.add_vrect(x0=low, x1=high, fillcolor=DOUBT, line_width=0, layer="below", **where)
            figure.add_vline(x=at, line=DOTTED, layer="below", **where)
    step_axis(figure, steps, most=5)
    figure.update_yaxes(title_text="likeness", col=1)
    titled(
        figure, "Modes over training",
        "likeness to the mode of the last checkpoint, with 95 % bands; dashed: above both lines it "
        f"is the same; dotted: from when on it lasts, with its interval in colour; {STEP_AXIS}",
        figure.layout.height - AROUND,
    )  # fmt: skip
    return figure


def _likeness(one: xr.Dataset) -> dict[str, tuple[FloatArray, FloatArray, FloatArray]]:
    """Value, lower and upper end of both measures; without a bootstrap the ends are the value."""
    angle, angle_low, angle_high = _with_ends(one, "angle")
    cosine = [np.cos(np.radians(angles)) for angles in (angle, angle_high, angle_low)]
    return {
        "loadings (cosine of the angle)": (cosine[0], cosine[1], cosine[2]),
        "scores over tokens (correlation)": _with_ends(one, "correlation"),
    }


def _with_ends(one: xr.Dataset, key: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    value, low, high = (
        one[f"{key}{end}" if f"{key}{end}" in one else key].values for end in ("", "_low", "_high")
    )
    return value, low, high


@typed
def plot_pattern_influence(result: xr.Dataset, *, quantity: str = "influence") -> go.Figure:
    """Influence of patterns on each other over checkpoints, with 95 % bands.

    Args:
        result: from :func:`lens_slt.pattern_influence`.
        quantity: ``"influence"``, or ``"correlation"``, which is of one size everywhere.

    One panel for each pattern that is influenced, the eight clearest; lines are the four clearest
    sources over all. Filled symbols: the sign is clear. Of a pattern on itself influence is minus a
    variance, and left out.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l")
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = {
        ...     step: ls.sample(run.load(step), text, "L1H2", probes={"mix": text}, **how)
        ...     for step in (1000, 2900)
        ... }
        >>> figure = ls.plot_pattern_influence(ls.pattern_influence(draws, ls.label_patterns(text)))
        >>> figure.layout.title.text.split("<br>")[0]
        'Influence between patterns over training'
    """
    result = require(result, "pattern_influence", argument="result")
    choice("quantity", quantity, QUANTITIES)
    error, axis = QUANTITIES[quantity]
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.nan_to_num(np.abs(result[quantity].values / result[error].values)).max(0)
    other = result["query"].values[:, None] != result["source"].values
    z = np.where(other, z, -np.inf)
    sources = np.sort(np.argsort(-z.max(0), kind="stable")[:MOST_SOURCES])
    queries = np.sort(np.argsort(-z.max(1), kind="stable")[:MOST_QUERIES])
    names = labels(f"on {name}" for name in result["query"].values[queries])
    figure = panels(names, one_scale=quantity == "correlation", most=COLUMNS)
    steps, named = result[CHECKPOINT].values, set[int]()
    for query, where in zip(queries, places(len(names), COLUMNS), strict=True):
        for i, source in enumerate(sources):
            if not other[query, source]:
                continue
            one = result.isel(query=query, source=source)
            value, wide = one[quantity].values, HALF_WIDTH * one[error].values
            name = f"of {result['source'].values[source]}"
            drawn = band(steps, value, value - wide, value + wide, name, i, legend=i not in named)
            symbol = SYMBOLS[i % len(SYMBOLS)]
            filled = one["effect"].values != UNCLEAR
            drawn[-1].marker = dict(
                size=6, symbol=[symbol if clear else f"{symbol}-open" for clear in filled]
            )
            named.add(i)
            for trace in drawn:
                figure.add_trace(trace, **where)
        figure.add_hline(y=0, line=DOTTED, **where)
    step_axis(figure, steps, most=5)
    figure.update_yaxes(title_text=axis, col=1)
    n = result.sizes["query"]
    more = f"; the clearest {len(queries)} of {n} patterns and {len(sources)} of {n} sources"
    titled(
        figure, "Influence between patterns over training",
        "below 0: more of the source lowers the loss on the pattern; 95 % bands; filled: the sign "
        f"is clear{more if len(sources) < n else ''}; {STEP_AXIS}",
        figure.layout.height - AROUND,
    )  # fmt: skip
    return figure


def plot_critical(result: xr.Dataset) -> go.Figure:
    """How fast observables change over training, where fastest, and which do there.

    ``result`` is from :func:`lens_slt.critical_checkpoints`. Above, the speed with a 95 % band and
    the critical checkpoints with their intervals; below, the share of every observable there.

    Example:
        >>> import numpy as np, xarray as xr, lens_slt as ls
        >>> steps = np.unique(np.geomspace(1, 20_000, 40).astype(int))
        >>> rise = 1 / (1 + np.exp(-6 * (np.log1p(steps) - 6)))
        >>> curve = xr.DataArray(rise, coords={"checkpoint": steps}, name="prefix_matching")
        >>> figure = ls.plot_critical(ls.critical_checkpoints(curve))
        >>> figure.layout.title.text.split("<br>")[0]
        'Critical checkpoints'
    """
    result = require(result, "critical_checkpoints", argument="result")
    critical = range(result.sizes["critical"])
    level = float(result.attrs["level"])
    share = result["share"].max("critical").values if critical else np.zeros(0)
    shown = np.argsort(-share, kind="stable")[:MOST_OBSERVABLES]
    rows = 1 + bool(critical)
    titles = ["speed (ranges per unit of log(step + 1))", "share of the squared speed there"]
    height = (ROW_PIXELS + 4 * len(critical)) * len(shown)
    figure, tall = stacked(titles[:rows], [PANEL_PIXELS + 40, height][:rows])
    steps = result["step"].values
    for trace in band(steps, *_with_ends(result, "speed"), "speed"):
        figure.add_trace(trace, row=1, col=1)
    step_axis(figure, steps, row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    names = result["observable"].values[shown]
    for i in critical:
        at, low, high = (float(x[i]) for x in _with_ends(result, "at_step"))
        ends = np.log1p([low, high, at])
        figure.add_vrect(
            x0=ends[0], x1=ends[1], fillcolor=DOUBT, line_width=0, layer="below", row=1, col=1
        )
        figure.add_vline(x=ends[2], line=DOTTED, layer="below", row=1, col=1)
        value, low_share, high_share = (x[i, shown] for x in _with_ends(result, "share"))
        at_rows = np.arange(len(shown)) + (i + 1) / (len(critical) + 1) - 0.5
        figure.add_trace(
            dots(value, low_share, high_share, at_rows, f"step {at:.0f} ({low:.0f}–{high:.0f})",
                 i + 1, said=[f"{name}, step {at:.0f}" for name in names]),
            row=2, col=1,
        )  # fmt: skip
    if critical:
        figure.update_xaxes(rangemode="tozero", row=2, col=1)
        figure.update_yaxes(
            tickvals=list(range(len(names))), ticktext=labels(names),
            range=[len(names) - 0.4, -0.6], zeroline=False, row=2, col=1,
        )  # fmt: skip
    left = result.sizes["observable"] - len(shown) if critical else 0
    more = f"; {left} observables with smaller shares are not shown" if left else ""
    where = "in colour: where it is fastest" if critical else "no checkpoint stands out"
    titled(
        figure, "Critical checkpoints",
        f"root mean square of the slopes of the observables, each over its range; bands and "
        f"intervals: {100 * level:g} %; {where}{more}; {STEP_AXIS}",
        tall,
    )  # fmt: skip
    return figure
