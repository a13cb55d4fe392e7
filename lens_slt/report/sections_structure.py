"""Sections of a report about what lies in a matrix: its modes, and a map of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lens_slt.data import patterns
from lens_slt.report import page
from lens_slt.report.plots_maps import plot_map
from lens_slt.report.plots_modes import QUANTITIES, plot_enrichment, plot_modes
from lens_slt.report.tables_modes import NAMES, modes_table, reliability_table
from lens_slt.report.token_strips import token_strips
from lens_slt.structure.contexts import contexts
from lens_slt.structure.overview import View

MODES = 4  # that are shown


def modes_section(views: Mapping[str, View]) -> str:
    """Loadings, patterns and tokens at the ends of the modes of every matrix."""
    words = (
        "Rows of a matrix are tokens, columns components. A mode is a pattern over components that "
        "goes with a pattern over tokens. The first is usually what all share; look further down "
        "for one that tells a pattern's tokens from others (AUC far from 0.5). In susceptibilities "
        "a low value is expression, in per-token rLLCs a high one is what is learned."
    )
    panels = {NAMES[key]: _view(view) for key, view in views.items()}
    reliability = page.fold(
        "Reliability of the columns",
        page.table(reliability_table(*(view.matrix for view in views.values()))),
    )
    what = page.fold("What the patterns are", page.pairs(_pattern_rules()))
    return page.paragraph(words) + reliability + what + page.tabs(panels, "Matrix")


def _pattern_rules() -> dict[str, str]:
    return {name: f"the token {words}" for name, words in patterns.PATTERNS.items()}


def _view(view: View) -> str:
    n = min(MODES, view.modes.sizes["mode"])
    scores = view.modes["score"].values
    ends = {  # the tokens at both ends, in context
        f"Mode {int(view.modes['mode'][i])}": token_strips(view.modes, scores[i]) for i in range(n)
    }
    return (
        page.figure(plot_modes(view.modes, n_modes=n))
        + page.table(modes_table(view.modes, view.by_mode, n_modes=n))
        + page.figure(plot_enrichment(view.by_mode))
        + page.heading("Tokens at the ends of the modes")
        + page.paragraph(
            "Each line ends with a token that scores highest or lowest on the mode (outlined); the "
            "tokens before it have the colour of their own scores: blue high, orange low. At most "
            "one token of a sequence is listed.",
            "quiet",
        )
        + page.tabs(ends, "Mode")
        + page.figure(plot_enrichment(view.by_component))
    )


def maps_section(views: Mapping[str, View]) -> str:
    """Maps of tokens, coloured in turn."""
    words = (
        "Tokens that the components respond to alike lie together (UMAP). Distances between groups "
        "and their sizes mean nothing; only small neighbourhoods do. Point at a token to read it "
        "in context."
    )
    found = {NAMES[key]: _map(view, QUANTITIES[key]) for key, view in views.items()}
    return page.paragraph(words) + page.tabs(found, "Matrix")


def _map(view: View, quantity: str) -> str:
    assert view.map is not None
    n = view.map.sizes["token"]
    hover = contexts(view.modes, rows=np.arange(n))
    colours: dict[str, tuple[Any, str]] = {
        "Pattern": (view.map["pattern"].values, "pattern"),
        "Loss": (view.modes["base_loss"].values[:n].astype(float), "loss (nats)"),
    }
    found = view.clusters
    if found is not None:
        beyond = {
            int(label): "" if ok else " (may be chance)"
            for label, ok in zip(found["label"].values, found["beyond_chance"].values, strict=True)
        }
        names = [
            "none" if label < 0 else f"cluster {label}{beyond[int(label)]}"
            for label in found["cluster"].values
        ]
        colours["Cluster"] = (np.array(names, dtype=object), "cluster")
    return page.tabs(
        {
            name: page.figure(
                plot_map(view.map, values, hover, label=label,
                         title=f"Tokens by {quantity}, coloured by {name.lower()}")
            )
            for name, (values, label) in colours.items()
        },
        "Colour",
    )  # fmt: skip
