"""The ranking of heads, and a page for each: everything that the report knows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr

from lens_slt.models.names import head_place
from lens_slt.report import page
from lens_slt.report.page import Section
from lens_slt.report.plots_development import plot_curves
from lens_slt.report.plots_head import plot_head_attention
from lens_slt.report.plots_traces import plot_traces
from lens_slt.report.ranking import Place, ranking
from lens_slt.report.run_results import MOST_PAGES, RunResults, heads_of
from lens_slt.report.tables import few_words
from lens_slt.report.tables_heads import (
    head_type,
    part_table,
    patterns_table,
    ranking_table,
    refinements_table,
    scores_table,
    trials_of,
)
from lens_slt.report.tables_modes import NAMES
from lens_slt.report.token_strips import token_scores, token_strips
from lens_slt.structure.contexts import token_texts
from lens_slt.structure.overview import View

MOST_TRACES = 48  # heads whose traces are on their pages
UNKNOWN = {  # what a page of a head may lack, and what measures it
    "refinements": "rLLC: lens_slt.sample",
    "behaviour": "behaviour: lens_slt.behaviour_scores",
    "patterns": "patterns and tokens: a probe, and lens_slt.susceptibility or per_token_llc",
    "attention": "attention pattern: lens_slt.attention_patterns",
    "trials": "trials: lens_slt.cross_check of a circuit with this head",
    "trajectory": "trajectory: lens_slt.develop",
}


def ranking_section(found: RunResults, llc: xr.Dataset) -> str:
    """All heads in order, with what is known of each."""
    words = (
        "The order is that of λ̂: how tightly the loss holds a head's weights, not what its "
        "ablation costs. Heads that share a rank cannot be told apart. A click on a head's name, "
        "here and anywhere on this page, leads to everything known of it."
    )
    table = ranking_table(llc, found.views, found.trials, found.behaviour)
    return page.paragraph(words) + page.table(table)


def head_pages(found: RunResults, llc: xr.Dataset | None) -> list[Section]:
    """A page for every head, in the order of layers; of very many, for those with the largest λ̂."""
    places = {} if llc is None else {one.name: one for one in ranking(llc)}
    names = list(places)
    if llc is not None:
        names += [name for name in heads_of(llc["component"]) if name not in places]
    if found.behaviour is not None:
        names += heads_of(found.behaviour["component"])
    for trial in found.trials:
        names += trial.hypothesis.heads
    chosen = set(list(dict.fromkeys(names))[:MOST_PAGES])
    ordered = sorted(chosen, key=head_place)
    scores = {key: dict(token_scores(v.matrix, v.modes)) for key, v in found.views.items()}
    return [
        Section(f"head-{name}", name, _page(name, places, found, llc, scores)) for name in ordered
    ]


def _page(
    name: str,
    places: dict[str, Place],
    found: RunResults,
    llc: xr.Dataset | None,
    scores: dict[str, dict[str, np.ndarray]],
) -> str:  # fmt: skip
    parts = dict(_parts(name, found, llc, scores))
    missing = [words for key, words in UNKNOWN.items() if key not in parts]
    body = page.paragraph(_summary(name, places, found, llc), "lead") + "".join(parts.values())
    if missing:
        body += page.heading("Not measured") + page.bullets(missing)
    return body


def _summary(name: str, places: dict[str, Place], found: RunResults, llc: xr.Dataset | None) -> str:
    """What a head is, in a line or two."""
    words = []
    if name in places:
        words.append(f"Rank {places[name].words} of {len(places)} by λ̂.")
    if llc is not None and name in llc["component"].values:
        row = llc.sel(component=name)
        words.append(f"Its number is {row['certificate'].values} ({row['why'].values}); "
                     f"{row['verdict'].values}, R̂ {float(row['rhat']):.2f}, "
                     f"ESS {float(row['ess']):.0f}.")  # fmt: skip
    kind = head_type(found.behaviour, name)
    if kind not in ("–", "other"):
        words.append(f"By behaviour: {kind}.")
    mine = [f"{t.hypothesis.pattern} ({t.verdict})" for t in trials_of(found.trials, name)]
    if mine:
        words.append(f"Part of circuits for {few_words(list(dict.fromkeys(mine)))}.")
    return " ".join(words)


def _parts(
    name: str,
    found: RunResults,
    llc: xr.Dataset | None,
    scores: dict[str, dict[str, np.ndarray]],
) -> Iterator[tuple[str, str]]:
    """What a page of a head is made of, by key of ``UNKNOWN`` or by a name of its own."""
    draws, views = found.draws, found.views
    if draws is not None and llc is not None and name in llc["component"].values:
        yield "refinements", page.table(refinements_table(draws, llc, views, name))
    if found.behaviour is not None and name in found.behaviour["component"].values:
        yield "behaviour", page.table(scores_table(found.behaviour, name))
    if any(name in view.by_component["component"].values for view in views.values()):
        yield "patterns", page.table(patterns_table(views, name))
    if trials := trials_of(found.trials, name):
        yield "trials", page.table(part_table(trials, name))
    strips = {
        key: token_strips(view.modes, scores[key][name])
        for key, view in views.items()
        if name in scores[key]
    }
    if strips:
        yield "tokens", (
            page.heading("Tokens in context")
            + page.paragraph(
                "Tokens at which this head's value is highest and lowest, in standard deviations "
                "from its mean (blue high, orange low).", "quiet",
            )
            + page.tabs({NAMES[key]: text for key, text in strips.items()}, "Matrix")
        )  # fmt: skip
    attention = found.attention
    if attention is not None and name in attention["component"].values:
        texts = _texts(attention, views)
        yield "attention", page.figure(plot_head_attention(attention, name, texts=texts))
    if found.development is not None:
        over = found.development.curves["refined_llc"].to_dataset()
        if name in over["component"].values:
            one = over.sel(component=[name])
            yield "trajectory", page.figure(plot_curves(one))
    if draws is not None and name in heads_of(draws.to_dataset()["component"])[:MOST_TRACES]:
        yield "traces", page.figure(plot_traces(draws, name))


def _texts(attention: xr.Dataset, views: Mapping[str, View]) -> list[str] | None:
    """What the tokens of the first sequence say, where a matrix has the same."""
    ids = attention["token_id"].values[0]
    view = next(iter(views.values()), None)
    if view is None:
        return None
    known = dict(zip(view.modes["token_id"].values, token_texts(view.modes), strict=True))
    return [known.get(token, "") for token in ids]
