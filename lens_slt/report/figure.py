"""Figures as they are shown outside of a report: no button, link or field sends data anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from lens_slt.text import figure_text

# Plotly's "Share chart" would upload the data; its logo and links lead to a web site.
PRIVATE = {"showSendToCloud": False, "plotlyServerURL": "", "displaylogo": False}


class Figure(go.Figure):
    """A plotly figure whose pages and notebook outputs offer no upload, unless asked to."""

    def show(self, *args: Any, config: Mapping[str, Any] | None = None, **named: Any) -> Any:
        """As plotly's, without uploads."""
        return super().show(*args, config={**PRIVATE, **(config or {})}, **named)

    def to_html(self, config: Mapping[str, Any] | None = None, **named: Any) -> str:
        """As plotly's, without uploads."""
        return str(super().to_html(config={**PRIVATE, **(config or {})}, **named))

    def write_html(self, file: Any, config: Mapping[str, Any] | None = None, **named: Any) -> None:
        """As plotly's, without uploads."""
        super().write_html(file, config={**PRIVATE, **(config or {})}, **named)

    def _repr_mimebundle_(self, *args: Any, **named: Any) -> Any:
        return super()._repr_mimebundle_(*args, config=PRIVATE, **named)

    def _ipython_display_(self) -> None:
        if pio.renderers.render_on_display and pio.renderers.default:
            self.show()
        else:
            print(repr(self))


def subplots(**named: Any) -> Figure:
    """An empty figure with panels, as plotly's ``make_subplots``."""
    return make_subplots(figure=Figure(), **named)


def labels(names: Iterable[object]) -> list[str]:
    """Names for a figure, as text and nothing else."""
    return [figure_text(name) for name in names]
