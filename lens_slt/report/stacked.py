"""Panels one below the other, and titles whose second line is read at any width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.text import figure_text

GAP = 75  # pixels between panels: an axis, and the next title
ROOM = 110  # pixels below the last panel: its axis and a legend
RIGHT = 25  # pixels beside panels
LINE, LINE_PIXELS = 58, 16  # characters of a line under the title, on a page of 400 pixels


def stacked(titles: Sequence[object], heights: Sequence[int]) -> tuple[Figure, int]:
    """Empty panels of these heights in pixels, one below the other, and the height of all."""
    whole = sum(heights)
    tall = whole + GAP * (len(heights) - 1)
    figure = subplots(
        rows=len(heights), cols=1, row_heights=[height / whole for height in heights],
        vertical_spacing=GAP / tall if len(heights) > 1 else 0, subplot_titles=labels(titles),
    )  # fmt: skip
    figure.update_layout(legend=legend_below(tall))
    return figure, tall


def legend_below(pixels: int) -> dict[str, Any]:
    """A legend under panels of this height."""
    return dict(orientation="h", y=-60 / pixels, yanchor="top")


def titled(figure: go.Figure, title: str, line: str, height: float) -> None:
    """A title, a line of words under it that wraps, and room for both above panels of a height."""
    lines = [figure_text(part) for part in textwrap.wrap(line, LINE)]
    top = 75 + LINE_PIXELS * len(lines)
    figure.update_layout(
        template="plotly_white", height=height + top + ROOM,
        margin=dict(t=top, b=ROOM, r=RIGHT),
        title=dict(
            text=f"{figure_text(title)}<br><sup>{'<br>'.join(lines)}</sup>", y=1, yref="container",
            yanchor="top", pad=dict(t=15),
        ),
    )  # fmt: skip
