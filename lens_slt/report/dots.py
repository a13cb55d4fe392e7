"""Rows of numbers with intervals, one a name, as many figures have them."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from lens_slt.arrays import FloatArray
from lens_slt.report.colours import COLOURS, SYMBOLS
from lens_slt.report.figure import labels
from lens_slt.text import figure_text


def dots(
    x: FloatArray, low: FloatArray, high: FloatArray, rows: Sequence[str] | FloatArray, name: str,
    i: int = 0, *, clear: Sequence[bool] | None = None, said: Sequence[str] = (),
    legend: bool = True,
) -> go.Scatter:  # fmt: skip
    """Symbol ``i`` on every row at ``x`` with an interval; filled where it is clear.

    ``said`` is told on hover, one text a row, in place of the row's name.
    """
    symbol, colour, shown = SYMBOLS[i % len(SYMBOLS)], COLOURS[i % len(COLOURS)], figure_text(name)
    filled = [True] * len(rows) if clear is None else clear
    return go.Scatter(
        x=x, y=rows, mode="markers", name=shown, legendgroup=shown, showlegend=legend,
        cliponaxis=False,
        marker=dict(size=9, color=colour, line=dict(width=1.5, color=colour),
                    symbol=[symbol if one else f"{symbol}-open" for one in filled]),
        error_x=dict(type="data", symmetric=False, array=high - x, arrayminus=x - low,
                     thickness=1.2, width=3, color=colour),
        text=labels(said or rows), hovertemplate="%{text}: %{x:.3g}<extra></extra>",
    )  # fmt: skip
