"""The table that all others are: its words are text, never markup."""

from __future__ import annotations

from typing import Any

from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from lens_slt.text import visible


class PlainTable(Table):
    """A table without lines whose titles, headers and cells are text: rich reads no markup in them.

    Columns are added by the caller.
    """

    def __init__(self, title: str, caption: str) -> None:
        super().__init__(
            title=cell(title, "table.title"), caption=cell(caption, "table.caption"),
            title_justify="left", caption_justify="left", box=None, pad_edge=False,
            padding=(0, 2, 0, 0), header_style="bold",
        )  # fmt: skip

    def add_column(self, header: Any = "", *rest: Any, **named: Any) -> None:
        super().add_column(cell(header), *rest, **named)

    def add_row(self, *cells: Any, **named: Any) -> None:
        super().add_row(*(one if isinstance(one, Text) else cell(one) for one in cells), **named)


def cell(text: object, style: StyleType = "") -> Text:
    """Text for a terminal in one style: without markup, with control characters as signs."""
    return Text(visible(text), style)
