"""Griffe extension: what the docstrings hold of reStructuredText, as Markdown.

Cross-references (``:func:`lens_slt.sample```) become links where their target is on a page, and
code elsewhere; simple tables become Markdown tables; ``.. math::`` becomes a formula; the star of
w* is no emphasis. What is returned becomes a paragraph, because the parser would take its first
words for a type, and so do arguments that are described in a sentence. The one example becomes a
section of examples, which the parser knows as code. Constants that explain names are tables.
"""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|mod|meth|data|attr):`~?([\w.]+)`")
RULE = re.compile(r"^ *=+(?: +=+)+ *$")
MATH = re.compile(r"^( *)\.\. math:: *(.+)$", re.MULTILINE)
STAR = re.compile(r"(?<=[A-Za-zλ])\*(?!\*)")
PROSE = re.compile(r"^( *)(Returns|Args):\n((?:\1 +.*\n?|\n(?=\1 ))+)", re.MULTILINE)
NAMED = re.compile(r"[\w*]+(, [\w*]+)*:")
EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
CODE = re.compile(r"(`+[^`]+`+|^ *(?:>>>|\.\.\.) .*$)", re.MULTILINE)
ITEM = re.compile(r" *(-|\d+\.) ")
HTML = {"_{OV}^{source}": "<sub>OV</sub>(source)", "M^{target}": "M(target)"}


class Docstrings(griffe.Extension):
    """Rewrites every docstring once it is loaded."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
            if isinstance(obj, griffe.Attribute) and str(obj.annotation) == "dict[str, str]":
                obj.docstring.value += _rows(ast.literal_eval(str(obj.value)))


def _rows(values: dict[str, str]) -> str:
    """Names with their words as a Markdown table."""
    rows = (f"| {name} | {words.replace('|', '&#124;')} |" for name, words in values.items())
    return "\n".join(["", "", "| | |", "|---|---|", *rows])


def to_markdown(text: str) -> str:
    """One docstring."""
    lines, out = _lists_apart(text.split("\n")), []
    i = 0
    while i < len(lines):
        if RULE.match(lines[i]):
            end = _end_of_table(lines, i)
            if end is not None:
                out += _table(lines[i:end])
                i = end
                continue
        out.append(lines[i])
        i += 1
    text = MATH.sub(_formula, "\n".join(out))
    text = PROSE.sub(_prose, text)
    text = ROLE.sub(_reference, text)
    text = EXAMPLE.sub(r"\1Examples:", text)
    return _stars(text)


def _lists_apart(lines: list[str]) -> list[str]:
    """A blank line before every list, without which Markdown sees none."""
    out: list[str] = []
    in_list = False
    for line in lines:
        item = ITEM.match(line) is not None
        if item and not in_list and out and out[-1].strip():
            out.append("")
        in_list = item or (in_list and bool(line.strip()))
        out.append(line)
    return out


def _stars(text: str) -> str:
    """Escape the star of w*; where it stands in code it is left."""
    parts = CODE.split(text)
    return "".join(p if CODE.fullmatch(p) else STAR.sub(r"\\*", p) for p in parts)


def _prose(match: re.Match[str]) -> str:
    if match[2] == "Args" and NAMED.match(match[3].strip()):
        return match[0]
    title = {"Args": "Parameters"}.get(match[2], match[2])
    return f"{match[1]}**{title}:** {inspect.cleandoc(match[3])}\n\n"


def _reference(match: re.Match[str]) -> str:
    path = match[1] if "." in match[1] else f"lens_slt.{match[1]}"
    return f'<autoref identifier="{path}" optional><code>{path.split(".")[-1]}</code></autoref>'


def _formula(match: re.Match[str]) -> str:
    body = match[2]
    for tex, html in HTML.items():
        body = body.replace(tex, html)
    return f'{match[1]}<div class="formula">{body}</div>'


def _end_of_table(lines: list[str], start: int) -> int | None:
    """The line after the last rule of the table: two rules around a heading, a third at the end."""
    rules = [i for i in range(start, len(lines)) if RULE.match(lines[i])]
    blanks = [i for i in range(start, len(lines)) if not lines[i].strip()]
    stop = min(blanks, default=len(lines))
    rules = [i for i in rules if i < stop]
    return rules[-1] + 1 if len(rules) >= 2 else None


def _table(lines: list[str]) -> list[str]:
    """A simple table as a Markdown table; with two rules only it has no heading."""
    starts = [match.start() for match in re.finditer(r"=+", lines[0])]
    bounds = list(zip(starts, [*starts[1:], None], strict=True))
    rules = [i for i, line in enumerate(lines) if RULE.match(line)]
    rows: list[list[str]] = []
    for i, line in enumerate(lines):
        if i in rules:
            continue
        cells = [line[a:b].strip() for a, b in bounds]
        if rows and not cells[0]:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    head = rows.pop(0) if len(rules) >= 3 else [""] * len(starts)
    made = [head, ["---"] * len(starts), *rows]
    return ["", *("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in made), ""]
