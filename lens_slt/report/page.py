"""One HTML page that opens offline: sections, tables, tabs and figures, light and dark.

Every function returns a piece of HTML in which all text is escaped; :func:`page` puts pieces
together with the style, the script and plotly's own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs
from rich.table import Table
from rich.text import Text

from lens_slt.report.figure import PRIVATE
from lens_slt.report.markup import defined, linked
from lens_slt.text import html_text, script_data

CELL_PIXELS, MAP_PIXELS = 36, 170  # of a map with numbers: a cell, and what stands around them
PANEL_PIXELS = 210  # least width of one panel of a figure with several side by side
WORDS = {  # that are set off by colour and weight, wherever a cell or a line begins with one
    "held": "held", "failed": "failed", "undecided": "undecided", "supported": "supported",
    "contradicted": "contradicted", "healthy": "healthy", "!": "unhealthy",
}  # fmt: skip
_ids = itertools.count()


@dataclass(frozen=True)
class Section:
    """A part of the page with its own entry in the navigation."""

    key: str
    title: str
    body: str


def page(title: str, lead: str, sections: Sequence[Section], sheets: Sequence[Section] = ()) -> str:
    """The whole page as text; words are defined in the part where they first stand.

    Args:
        title: of the page.
        lead: pieces under the title, the first screen.
        sections: in order.
        sheets: shown alone, where their links lead: their titles, wherever these stand in a text.
    """
    places = {one.title: one.key for one in sheets}
    known: set[str] = set()
    head = linked(lead, places) + defined(lead, known)
    body = "".join(
        f'<section id="{s.key}" aria-labelledby="{s.key}-title">'
        f'<h2 id="{s.key}-title">{html_text(s.title)}</h2>{defined(s.body, known)}'
        f"{linked(s.body, places)}</section>"
        for s in sections
    )
    body += "".join(_sheet(one, sheets, places, known) for one in sheets)
    links = "".join(f'<li><a href="#{s.key}">{html_text(s.title)}</a></li>' for s in sections)
    plotly, script = get_plotlyjs(), _file("page.js")
    return (
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(plotly, script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html_text(title)}</title><style>{_file('page.css')}</style>"
        "<noscript><style>[role=tabpanel][hidden]{display:block!important}</style></noscript>"
        f"<script>{plotly}</script></head><body>"
        '<a class="skip" href="#main">Skip to the results</a>'
        f"<header><h1>{html_text(title)}</h1>{head}</header>"
        f'<nav aria-label="Sections"><div><ul>{links}</ul>'
        '<button id="theme" type="button">Dark</button></div></nav>'
        f'<main id="main">{body}</main>'
        "<footer>Made by lens_slt. This page needs no network.</footer>"
        f'<script type="application/json" id="templates">{_templates()}</script>'
        f'<script type="application/json" id="config">{script_data(PRIVATE)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _sheet(
    one: Section, sheets: Sequence[Section], places: Mapping[str, str], known: set[str]
) -> str:
    """A section that is shown alone, with the way back and to its neighbours."""
    here = sheets.index(one)
    ways = [("#main", "All results")]
    for word, there in (("Before", here - 1), ("After", here + 1)):
        if 0 <= there < len(sheets):
            ways.append((f"#{sheets[there].key}", f"{word}: {sheets[there].title}"))
    links = "".join(f'<a href="{where}">{html_text(words)}</a>' for where, words in ways)
    others = {name: key for name, key in places.items() if name != one.title}
    return (
        f'<section class="sheet" id="{one.key}" data-name="{html_text(one.title)}" '
        f'aria-labelledby="{one.key}-title"><p class="ways">{links}</p>'
        f'<h2 id="{one.key}-title" tabindex="-1">{html_text(one.title)}</h2>'
        f"{defined(one.body, known)}{linked(one.body, others)}</section>"
    )


def _policy(*scripts: str) -> str:
    """What a browser lets the page do: run these scripts and nothing else, and fetch nothing."""
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"  # plotly compiles its shaders
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; line breaks are kept."""
    name = f' class="{kind}"' if kind else ""
    return f"<p{name}>{html_text(text).replace(chr(10), '<br>')}</p>"


def heading(text: str, level: int = 3) -> str:
    """A heading, of what is within a section by default."""
    return f"<h{level}>{_marked(text)}</h{level}>"


def bullets(lines: Iterable[str]) -> str:
    """A list, "" if there is nothing to list."""
    items = "".join(f"<li>{_marked(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def pairs(values: Mapping[str, object]) -> str:
    """Names with their values."""
    rows = "".join(f"<dt>{html_text(k)}</dt><dd>{html_text(v)}</dd>" for k, v in values.items())
    return f"<dl>{rows}</dl>"


def fold(title: str, body: str) -> str:
    """Something that is shown on demand."""
    return f"<details><summary>{html_text(title)}</summary>{body}</details>"


def box(kind: str, title: str, body: str) -> str:
    """A framed part with a title; its kind gives it its looks."""
    return f'<div class="box {kind}"><h4>{html_text(title)}</h4>{body}</div>'


def tabs(panels: Mapping[str, str], label: str) -> str:
    """Pieces of which one is shown at a time; a single one is shown without tabs."""
    if len(panels) == 1:
        return next(iter(panels.values()))
    buttons, bodies = [], []
    for i, (name, body) in enumerate(panels.items()):
        key = f"tab{next(_ids)}"
        buttons.append(
            f'<button type="button" role="tab" id="{key}" aria-controls="{key}-panel" '
            f'aria-selected="{str(i == 0).lower()}" tabindex="{0 if i == 0 else -1}">'
            f"{html_text(name)}</button>"
        )
        bodies.append(
            f'<div role="tabpanel" id="{key}-panel" aria-labelledby="{key}" tabindex="0"'
            f"{' hidden' if i else ''}>{body}</div>"
        )
    row = f'<div role="tablist" aria-label="{html_text(label)}">{"".join(buttons)}</div>'
    return f'<div class="tabs">{row}{"".join(bodies)}</div>'


def figure(made: go.Figure, words: str = "", *, panel: int = PANEL_PIXELS) -> str:
    """A figure that follows the page's colours; its title becomes text that wraps.

    Args:
        made: the figure; its title may have a second line in ``<sup>``.
        words: what to look at.
        panel: least width in pixels of one of several panels side by side; where the page is
            narrower the figure scrolls.
    """
    record = json.loads(made.to_json())
    layout = record["layout"]
    title, _, line = str((layout.pop("title", None) or {}).get("text", "")).partition("<br>")
    layout.pop("template", None)
    margin = layout.get("margin", {})
    layout["margin"] = {"b": 55, **margin, "t": 70 if _tall_titles(layout) else 40}
    # What the title had above the figure is not needed any more.
    height = layout.get("height", 450) - sum(
        margin.get(side, usual) - layout["margin"][side] for side, usual in (("t", 100), ("b", 80))
    )
    layout["height"] = height
    columns = sum(1 for key in layout if re.fullmatch(r"xaxis\d*", key) and not _below(layout, key))
    least = panel * columns if columns > 2 else _readable(record["data"])
    width = f"min-width:{least}px;" if least else ""
    said = " ".join(part for part in (_plain(line), words) if part)
    return (
        f"<figure><h3>{html_text(_plain(title))}</h3>"
        f'<div class="scroll"><div class="plot" role="img" aria-label="{html_text(_plain(title))}" '
        f'style="{width}height:{height:.0f}px"></div>'
        f'<script type="application/json">{script_data(record)}</script></div>'
        + (f"<figcaption>{html_text(said)}</figcaption>" if said else "")
        + "</figure>"
    )


def table(made: Table) -> str:
    """A table of the terminal as HTML: same columns, same words."""
    numeric = [column.justify == "right" for column in made.columns]
    head = "".join(
        f'<th scope="col"{_number(right)}>{_marked(_text(column.header))}</th>'
        for column, right in zip(made.columns, numeric, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{_number(right)}>{_marked(_text(cell))}</td>"
            for cell, right in zip(cells, numeric, strict=True)
        )
        + "</tr>"
        for cells in zip(*(column.cells for column in made.columns), strict=True)
    )
    words = ". ".join(part for part in (_text(made.title), _text(made.caption)) if part)
    return (
        f'<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{html_text(_text(made.title))}">'
        f"<table><caption>{html_text(words)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _tall_titles(layout: dict[str, Any]) -> bool:
    """Whether panels have titles of two lines."""
    return any("<br>" in note["text"] for note in layout.get("annotations", []))


def _readable(traces: Sequence[dict[str, Any]]) -> int:
    """Least width in pixels at which the numbers in the cells of a map can be read."""
    cells = [len(t["x"]) for t in traces if t["type"] == "heatmap" and t.get("texttemplate")]
    return CELL_PIXELS * max(cells) + MAP_PIXELS if cells else 0


def _below(layout: dict[str, Any], axis: str) -> bool:
    """Whether another panel stands in the same column, nearer to the top."""
    domain = layout[axis].get("domain")
    same = [
        key
        for key, value in layout.items()
        if re.fullmatch(r"xaxis\d*", key) and value.get("domain") == domain
    ]
    return axis != min(same, key=lambda key: int(key[5:] or 1))


def _marked(text: str) -> str:
    """Escaped text; a verdict or an outcome at its beginning is set off."""
    first = re.match(r"!|\w+", text)
    kind = WORDS.get(first[0].lower()) if first else None
    if first is None or kind is None:
        return html_text(text)
    return f'<span class="{kind}">{html_text(first[0])}</span>{html_text(text[first.end() :])}'


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return cell.plain if isinstance(cell, Text) else str(cell)


def _plain(text: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", text.replace("<br>", " "))).strip()


def _number(right: bool) -> str:
    return ' class="number"' if right else ""


def _file(name: str) -> str:
    return resources.files("lens_slt.report").joinpath(name).read_text("utf-8")


def _templates() -> str:
    """Plotly's own templates for light and dark, on the page's background."""
    found = {}
    for theme, name, line in (
        ("light", "plotly_white", "#d3d8de"),
        ("dark", "plotly_dark", "#39414b"),
    ):
        template = pio.templates[name].to_plotly_json()
        template["layout"] |= {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
        for axis in ("xaxis", "yaxis"):
            template["layout"][axis] = template["layout"].get(axis, {}) | {
                "gridcolor": line, "zerolinecolor": line, "automargin": True,
            }  # fmt: skip
        found[theme] = template
    return script_data(found)
