"""The rules that module docstrings state as tables, for readers of a report."""

from __future__ import annotations

import re

_RULE = re.compile(r"=+(?: +=+)+")


def rules(doc: str | None, *, table: int = 0) -> dict[str, str]:
    """Rows of a table of a docstring: the first column to the rest, joined.

    Args:
        doc: of a module; holds tables in reStructuredText's simple form.
        table: which one.
    """
    lines = (doc or "").splitlines()
    edges = [i for i, line in enumerate(lines) if _RULE.fullmatch(line)]
    _, first, last = edges[3 * table : 3 * table + 3]
    starts = [match.start() for match in re.finditer("=+", lines[first])]
    rows: list[list[str]] = []
    for line in lines[first + 1 : last]:
        cells = [
            line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)
        ]
        if cells[0]:
            rows.append(cells)
        else:  # goes on
            rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], cells, strict=True)]
    return {
        cells[0].replace("``", ""): "; ".join(cell for cell in cells[1:] if cell).replace("``", "")
        for cells in rows
    }
