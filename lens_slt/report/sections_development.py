"""The page of a sweep over checkpoints, from the first stage to the last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.overview import DevelopmentView, refusals, unknown, with_whole
from lens_slt.development.pattern_curves import MOST_PATTERNS, holders
from lens_slt.report import page
from lens_slt.report.development_screen import development_heads, development_screen
from lens_slt.report.page import Section
from lens_slt.report.plots_development import plot_construction, plot_curves
from lens_slt.report.plots_structure_over_time import (
    plot_critical,
    plot_mode_development,
    plot_pattern_influence,
)
from lens_slt.report.plots_trajectories import (
    plot_differentiation,
    plot_migration,
    plot_trajectories,
)
from lens_slt.report.tables import run_words
from lens_slt.report.tables_development import (
    built_table,
    heads_table,
    stages_table,
    taken_up_table,
    transitions_table,
)
from lens_slt.sampling.certificate import CERTIFIED
from lens_slt.sampling.result import settings_of


def development_page(view: DevelopmentView, about: dict[str, Any]) -> str:
    """The whole page; ``about`` are plain values about the run, its ``title`` among them."""
    title = str(about.pop("title", "") or f"Development of {view.curves.attrs['run']}")
    sections = [
        Section("run", "What was run", _run(view, about)),
        *development_sections(view),
        Section("limits", "Limits", page.bullets(limits(view))),
    ]
    return page.page(title, development_screen(view), sections, development_heads(view))


def development_sections(view: DevelopmentView) -> list[Section]:
    """What curves over checkpoints say."""
    sections = [
        Section("stages", "Stages", _stages(view)),
        Section("losses", "Losses of patterns", _losses(view)),
        Section("heads", "Heads over training", _heads(view)),
    ]
    if structure := _structure(view):
        sections.append(Section("structure", "Modes and influence", structure))
    if view.construction is not None:
        sections.append(Section("construction", "How circuits were built", _built(view)))
    return sections


def _llc(view: DevelopmentView) -> xr.Dataset:
    return view.curves["refined_llc"].to_dataset()


def _run(view: DevelopmentView, about: Mapping[str, Any]) -> str:
    llc = _llc(view)
    values: dict[str, object] = {str(key): value for key, value in about.items()}
    values |= {
        "run": view.curves.attrs["run"],
        "checkpoints": ", ".join(str(step) for step in llc[CHECKPOINT].values),
        "sampling tokens": f"{llc.attrs.get('tokens', '')} (sequences × tokens)",
        "components": ", ".join(map(str, llc["component"].values)),
        "settings": run_words(settings_of(llc)),
        "seed": settings_of(llc).seed,
        "versions": llc.attrs.get("versions", ""),
    }
    words = (
        "Every component has one step size at all checkpoints, and its noise is the same at all: "
        "differences between checkpoints are sharper than the values themselves."
    )
    return page.pairs(values) + page.paragraph(words, "quiet")


def _stages(view: DevelopmentView) -> str:
    if view.stages is None:
        return page.paragraph(f"No stages: {view.refused.get('stages', '')}.")
    whole = with_whole(_llc(view)).isel(component=[0])
    first = view.stages.isel(component=[0])
    words = (
        "λ̂ of the model over training. A stage ends where the slope of λ̂ changes; shaded bands are "
        "the intervals of boundaries. λ̂ below zero: the loss falls as weights move, the checkpoint "
        "is no minimum and λ̂ no learning coefficient there."
    )
    rest = [str(name) for name in view.stages["component"].values[1:]]
    tables = "".join(page.table(stages_table(view, name)) for name in rest)
    return (
        page.paragraph(words)
        + page.figure(plot_curves(whole, stages=first))
        + page.table(stages_table(view))
        + page.fold("Stages of every component", tables)
    )


def _losses(view: DevelopmentView) -> str:
    if "sublosses" not in view.curves.children:
        return page.paragraph("No probe was recorded, so that there are no losses of patterns.")
    parts = [page.figure(plot_curves(view.curves["sublosses"].to_dataset(), stages=_first(view)))]
    if view.transitions is not None:
        parts.append(page.table(transitions_table(view)))
    else:
        parts.append(page.paragraph(f"No transitions: {view.refused.get('transitions', '')}."))
    if view.critical is not None:
        parts.append(page.figure(plot_critical(view.critical)))
    return "".join(parts)


def _heads(view: DevelopmentView) -> str:
    parts = [page.figure(plot_curves(_llc(view), stages=_first(view)))]
    if view.trajectories is not None:
        parts += [
            page.figure(plot_trajectories(view.trajectories)),
            page.paragraph(_of_clusters(view.trajectories)),
        ]
    if view.differentiation is not None:
        parts.append(page.figure(plot_differentiation(view.differentiation)))
    if view.held is not None:
        parts.append(_patterns(view, view.held))
    elif "held" in view.refused:
        words = f"{unknown('held').capitalize()}: {view.refused['held']}."
        parts.append(page.paragraph(words, "quiet"))
    for name in ("trajectories", "differentiation", "migration"):
        if name in view.refused:
            words = f"{unknown(name).capitalize()}: {view.refused[name]}."
            parts.append(page.paragraph(words, "quiet"))
    parts.append(page.table(heads_table(view)))
    if view.migration is not None:
        parts.append(page.figure(plot_migration(view.migration)))
    for name, node in view.curves.children.get("gamma", xr.DataTree()).children.items():
        parts.append(
            page.fold(f"The same at γ = {name}", page.figure(plot_curves(node.to_dataset())))
        )
    if "behaviour_scores" in view.curves.children:
        behaviour = view.curves["behaviour_scores"].to_dataset()
        parts.append(page.fold("What heads attend to", page.figure(plot_curves(behaviour))))
    return "".join(parts)


def _patterns(view: DevelopmentView, held: xr.Dataset) -> str:
    """What heads hold on patterns: figure of the surest ones, and when each was taken up."""
    words = (
        "Refined LLC of each component on the tokens of a pattern, minus that on all other tokens: "
        "a head that works for a pattern stands out, whatever all heads do."
    )
    surest: dict[str, str] = {}  # pattern of each component that holds one
    for pattern, holder in holders(held).items():
        surest.setdefault(holder.component, pattern)
    if not surest:
        return page.paragraph("No head or MLP holds a pattern beyond other tokens at the end.")
    names = list(surest.values())[:MOST_PATTERNS]
    figure = plot_curves(held.sel(pattern=names), stages=_first(view))
    table = page.table(taken_up_table(view)) if view.taken_up is not None else ""
    return page.paragraph(words) + page.figure(figure) + table


def _of_clusters(found: xr.Dataset) -> str:
    """Whether there are clusters, and how they go with what heads do."""
    words = f"Clusters of trajectories: {found.attrs['verdict']}."
    if "type_ari" in found and np.isfinite(found["type_ari"]):
        words += (
            f" Adjusted Rand index with types by behaviour {float(found['type_ari']):.2f} "
            f"(p = {float(found['type_p']):.2g} among permutations)."
        )
    return words


def _structure(view: DevelopmentView) -> str:
    parts = []
    if view.modes is not None:
        words = (
            "A mode is a pattern over components that goes with one over tokens. Those of the last "
            "checkpoint are looked for at all others."
        )
        parts += [page.paragraph(words), page.figure(plot_mode_development(view.modes))]
    if view.influence is not None:
        words = (
            f"Influence between patterns, from the draws of {view.influential}: it often turns, or "
            "peaks, at a transition."
        )
        parts += [page.paragraph(words), page.figure(plot_pattern_influence(view.influence))]
    for name in ("modes", "influence"):
        if name in view.refused:
            words = f"{unknown(name).capitalize()}: {view.refused[name]}."
            parts.append(page.paragraph(words, "quiet"))
    return "".join(parts)


def _built(view: DevelopmentView) -> str:
    assert view.construction is not None
    words = (
        "From which step on each part of the circuits of the last checkpoint is there: a head or "
        "edge is needed where its ablation costs the pattern's tokens; a circuit is supported "
        "where its trial says so."
    )
    return (
        page.paragraph(words)
        + page.figure(plot_construction(view.construction, stages=_first(view)))
        + page.table(built_table(view))
    )


def limits(view: DevelopmentView) -> list[str]:
    """What the curves do not say."""
    llc = _llc(view)
    settings = json.loads(llc.attrs["settings"])
    lines = [
        f"All values depend on nβ = {settings['n_beta']:g} and γ = {settings['gamma']:g}; weights "
        "grow in training, and with them what one γ holds in place.",
        "Stages describe λ̂ on these tokens; what other text would show is not in the intervals.",
        "Patterns are labels of tokens, and their tokens are predicted in many ways.",
    ]
    odd = [
        f"{name} at step {step}"
        for step, words in zip(llc[CHECKPOINT].values, llc["certificate"].values, strict=True)
        for name, word in zip(llc["component"].values, words, strict=True)
        if word != CERTIFIED
    ]
    if odd:
        lines.append(
            f"{len(odd)} number{'s are' if len(odd) > 1 else ' is'} not certified (a bias of over "
            f"10 % cannot be excluded), most often where λ̂ is near zero: {', '.join(odd[:12])}"
            f"{' …' if len(odd) > 12 else ''}"
        )
    return [*lines, *refusals(view)]


def _first(view: DevelopmentView) -> xr.Dataset | None:
    return None if view.stages is None else view.stages.isel(component=[0])
