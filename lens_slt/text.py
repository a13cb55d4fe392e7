"""Text from models, tokens, files and users, made harmless for the place where it is shown.

One function for each kind of place: what it returns is read there as the text and nothing else.
"""

from __future__ import annotations

import html
import json
from typing import Any

_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
CONTROLS = {  # that move the cursor, colour a terminal, reorder what follows, or are no text at all
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) != "\n"},
    0x7F: "␡",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{ord(sign): f"\\u{ord(sign):04x}" for sign in f"{_DIRECTIONS}\u2028\u2029"},
    **{code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)},  # lone surrogates
}


def visible(text: object) -> str:
    """Text for a terminal: control characters as signs; line breaks are kept."""
    return str(text).translate(CONTROLS)


def html_text(text: object) -> str:
    """Text for HTML, between tags or in a quoted attribute."""
    return html.escape(visible(text))


def figure_text(text: object) -> str:
    """Text for any part of a plotly figure: without tags, formulas and hover fields.

    Plotly reads some HTML, formulas between dollar signs and, in templates, ``%{fields}``; of the
    entities it knows only few by name.
    """
    escaped = html.escape(visible(text), quote=False)
    return escaped.replace("$", "&#36;").replace("%{", "&#37;{")


def script_data(value: Any) -> str:
    """Plain values as JSON that can stand in a script element, and in JavaScript."""
    text = json.dumps(value, separators=(",", ":"))  # ASCII: U+2028 would end a line
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def dot_text(*lines: str) -> str:
    """A quoted string of the DOT language, which reads backslashes and entities; some lines."""
    quoted = (
        visible(line).replace("\n", " ").replace("\\", "\\\\").replace('"', '\\"')
        .replace("&", "&amp;")
        for line in lines
    )  # fmt: skip
    return '"' + "\\n".join(quoted) + '"'


def duration(seconds: float) -> str:
    """Seconds in words: 40 ms, 2.5 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.{1 if seconds < 0.00995 else 0}f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3570:
        minutes, rest = divmod(round(seconds / 5) * 5, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, rest = divmod(round(seconds / 300) * 5, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def size(n_bytes: float) -> str:
    """Bytes in words: 12 KiB, 120 MiB, 0.9 GiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if n_bytes >= 0.9 * unit:
            n = n_bytes / unit
            return f"{n:.{1 if n < 9.95 else 0}f} {name}"
    return f"{n_bytes / 2**10:.0f} KiB"
