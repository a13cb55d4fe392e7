"""Sections of a report about results of any other function: matches, patterning, phases."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from lens_slt.report import page
from lens_slt.report.page import Section
from lens_slt.report.show import FIGURES, TABLES

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
        ("crossing", "phase_diagram", "limit_llc", "density_of_states"),
    ),
    "spectrum": (
        "Spectrum",
        "λ̂ over nβ and γ: a regularised curvature spectrum, not an asymptote.",
        ("spectrum", "multiplicity", "curvatures"),
    ),
}  # fmt: skip
SHOWN = tuple(kind for _, _, kinds in KINDS.values() for kind in kinds)


def titles_of(results: Sequence[xr.Dataset]) -> list[str]:
    """Titles of the sections that results have."""
    kinds = {one.attrs["result"] for one in results}
    return [title for title, _, own in KINDS.values() if kinds & set(own)]


def results_sections(results: Sequence[xr.Dataset]) -> list[Section]:
    """A section for every kind of result that is there, of those named in ``KINDS``."""
    sections = []
    for key, (title, words, kinds) in KINDS.items():
        found = [one for kind in kinds for one in results if one.attrs["result"] == kind]
        if found:
            body = page.paragraph(words) + "".join(map(_shown, found))
            sections.append(Section(key, title, body))
    return sections


def is_shown(result: xr.Dataset) -> bool:
    """Whether a result has a section here."""
    return result.attrs.get("result") in SHOWN


def _shown(result: xr.Dataset) -> str:
    kind = result.attrs["result"]
    one = "checkpoint" not in result.dims  # tables are of one
    table = page.table(TABLES[kind](result)) if kind in TABLES and one else ""
    return page.figure(FIGURES[kind](result)) + table
