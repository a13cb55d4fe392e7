"""All tokens of the probe in context, to be searched and coloured by any head or mode."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lens_slt.report import page
from lens_slt.report.plots_modes import QUANTITIES
from lens_slt.report.sections_structure import MODES
from lens_slt.report.token_strips import token_scores
from lens_slt.structure.contexts import token_texts
from lens_slt.structure.overview import View
from lens_slt.text import html_text, script_data

MOST_VALUES = 1_000_000  # in the page
SYMBOLS = {"llc": "λ̂", "chi": "χ"}
TENTHS = 10  # scores are kept in tenths of a standard deviation


def tokens_section(views: Mapping[str, View]) -> str:
    """A search over the tokens that all matrices share, with what the heads and modes say there."""
    first = next(iter(views.values())).modes
    columns: dict[str, np.ndarray] = {}
    for key, view in views.items():
        if not np.array_equal(view.modes["token_id"].values, first["token_id"].values):
            continue  # of another probe
        for i in range(min(MODES, view.modes.sizes["mode"])):
            name = f"mode {int(view.modes['mode'][i])} of the {QUANTITIES[key]}"
            columns[name] = view.modes["score"].isel(mode=i).values
        for name, score in token_scores(view.matrix, view.modes):
            columns[f"{SYMBOLS[key]} of {name}"] = score
    n_all = first.sizes["token"]
    n = min(n_all, MOST_VALUES // max(len(columns), 1))
    data = {
        "texts": [str(text) for text in token_texts(first)[:n]],
        "sequence": first["sequence"].values[:n].tolist(),
        "columns": [
            np.clip(np.rint(TENTHS * one[:n]), -99, 99).astype(int).tolist()
            for one in columns.values()
        ],
    }
    options = "".join(
        f'<option value="{i}">{html_text(name)}</option>' for i, name in enumerate(columns)
    )
    words = (
        "Every token of the probe, in the colour of a head's value or of a mode's score there, in "
        "standard deviations: blue high, orange low. A text finds the tokens that end with it; it "
        "may go over several. White space shows as ⏎ and ⇥."
    )
    if n < n_all:
        words += f" The first {n} of {n_all} tokens are here."
    return (
        page.paragraph(words)
        + '<div class="search" role="search"><label>Text <input type="search" id="find" '
        'autocomplete="off" spellcheck="false"></label>'
        f'<label>Coloured by <select id="by">{options}</select></label>'
        '<label>Order <select id="order"><option value="-1">highest first</option>'
        '<option value="1">lowest first</option><option value="0">as in the text</option></select>'
        '</label></div><p id="n-found" class="quiet" role="status"></p>'
        '<ul id="found" class="tokens"></ul>'
        f'<script type="application/json" id="all-tokens">{script_data(data)}</script>'
    )
