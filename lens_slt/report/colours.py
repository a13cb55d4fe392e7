"""Colours and signs that mean the same in every figure.

Colours are those of Okabe & Ito 2008, told apart with every common form of colour blindness; what a
colour says is also said by a symbol, a dash or a word.
"""

from __future__ import annotations

from lens_slt.structure.overview import FAMILIES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
NONE = "#BBBBBB"  # what belongs to no group

PATTERN_COLOURS = dict(
    zip(FAMILIES, ("#D55E00", "#E69F00", "#CC79A7", "#000000", "#009E73", "#0072B2", "#56B4E9"),
        strict=True)
) | {"none": NONE}  # fmt: skip
HEAD_TYPE_COLOURS = {
    "previous token": "#0072B2", "induction": "#D55E00", "current token": "#56B4E9",
    "first token": "#CC79A7", "multigram": "#009E73", "copying": "#E69F00", "dead": "#777777",
    "other": NONE,
}  # fmt: skip


def pattern_colour(name: str) -> str | None:
    """Colour of a pattern, or of the family that it belongs to; None for other names."""
    for family, members in FAMILIES.items():
        if name == family or name in members:
            return PATTERN_COLOURS[family]
    return PATTERN_COLOURS.get(name)
