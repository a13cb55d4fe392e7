"""Sections of a report about results of any other function: matches, patterning, phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import xarray as xr

from lens_slt.report import page
from lens_slt.report.page import Section
from lens_slt.report.show import FIGURES, TABLES
from lens_slt.report.tables import PlainTable

KINDS = {  # sections: key, title, what it is, and the results that belong there
    "matching": (
        "Matching",
        "Which component of one model is which of another, and whether circuits go with them.",
        ("match", "match_family", "transfer"),
    ),
    "patterning": (
        "Patterning",
        "Weights of the data from a wish. Predictions are to first order, of a local posterior; "
        "only retraining shows them right.",
        ("patterning", "patterning_check", "data_response", "retrainings",
         "developmental_ablation"),
    ),
    "phases": (
        "Phases",
        "Where free energies cross as data grow, and what the density of states says of volumes.",
        ("crossing", "phase_diagram", "limit_llc", "spectrum", "multiplicity", "curvatures",
         "density_of_states"),
    ),
}  # fmt: skip
SHOWN = tuple(kind for _, _, kinds in KINDS.values() for kind in kinds)
LISTED = {"match.csv": "matching", "weights.csv": "patterning"}  # tables that commands write
MOST_ROWS = 40


def results_sections(
    results: Sequence[xr.Dataset], tables: Mapping[str, Sequence[Mapping[str, str]]] | None = None
) -> list[Section]:
    """A section for every kind of result that is there.

    Args:
        results: of lens_slt, those named in ``KINDS``.
        tables: of commands, by the name of their file; shown where no result is.
    """
    sections = []
    for key, (title, words, kinds) in KINDS.items():
        found = [one for kind in kinds for one in results if one.attrs["result"] == kind]
        body = "".join(map(_shown, found))
        if not found:
            body = "".join(
                page.table(_listed(name, rows))
                for name, rows in (tables or {}).items()
                if LISTED[name] == key
            )
        if body:
            sections.append(Section(key, title, page.paragraph(words) + body))
    return sections


def is_shown(result: xr.Dataset) -> bool:
    """Whether a result has a section here."""
    return result.attrs.get("result") in SHOWN


def _shown(result: xr.Dataset) -> str:
    kind = result.attrs["result"]
    table = page.table(TABLES[kind](result)) if kind in TABLES else ""
    return page.figure(FIGURES[kind](result)) + table


def _listed(name: str, rows: Sequence[Mapping[str, str]]) -> PlainTable:
    """The beginning of a table as a command wrote it."""
    order = ""
    if "weight" in rows[0]:
        rows, order = sorted(rows, key=lambda row: -float(row["weight"])), ", the heaviest first"
    some = f"the first {MOST_ROWS} of {len(rows)} rows of" if len(rows) > MOST_ROWS else "from"
    table = PlainTable(name.partition(".")[0].capitalize(), f"{some} {name}{order}")
    for column in rows[0]:
        table.add_column(column.replace("_", " "))
    for row in rows[:MOST_ROWS]:
        table.add_row(*(_short(value) for value in row.values()))
    return table


def _short(value: str) -> str:
    """A number with four digits; any other text as it is."""
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value
