"""The page of a run: heads, health, refined LLCs, structure and circuits, limits last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.circuits.trial import Trial
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.observables.susceptibility import FULL
from lens_slt.report import page
from lens_slt.report.disagreements import disagreements_section
from lens_slt.report.first_screen import run_screen
from lens_slt.report.page import Section
from lens_slt.report.plots import plot_rllc, plot_rllc_map
from lens_slt.report.plots_traces import plot_all_traces, plot_traces
from lens_slt.report.run_results import RunResults, heads_of
from lens_slt.report.sections_circuits import circuits_section
from lens_slt.report.sections_development import development_sections, limits
from lens_slt.report.sections_heads import head_pages, ranking_section
from lens_slt.report.sections_results import results_sections, titles_of
from lens_slt.report.sections_structure import maps_section, modes_section
from lens_slt.report.sections_tokens import tokens_section
from lens_slt.report.tables import (
    few_words,
    health_summary,
    notes,
    probe_table,
    rllc_table,
    run_words,
)
from lens_slt.sampling import health
from lens_slt.sampling.health import HEALTHY
from lens_slt.sampling.result import component_names, settings_of
from lens_slt.structure.overview import View

TRACED = 8  # components whose traces are shown large
TRACE_PIXELS = 85  # width of a small trace


def run_page(found: RunResults, about: dict[str, Any]) -> str:
    """The whole page; ``about`` are plain values about the run, its ``title`` among them."""
    draws, views, trials = found.draws, found.views, found.trials
    llc = None if draws is None else refined_llc(draws)
    if llc is not None and "probe" in llc.dims:  # those of matrices have sections of their own
        read = {view.matrix.attrs["probe"] for view in views.values()}
        llc = llc.drop_sel(probe=[name for name in llc["probe"].values if name in read])
    title = str(about.pop("title", "") or f"Report on {_model(found)}")
    sections = []
    control = draws is not None and settings_of(draws).n_beta == 0  # whose λ̂ are all 0
    if llc is not None and heads_of(llc["component"]) and not control:
        sections.append(Section("ranking", "Heads", ranking_section(found, llc)))
    if ran := _run(draws, trials, about):
        sections.append(Section("run", "What was run", page.pairs(ran)))
    if draws is not None and llc is not None:
        sections += [
            Section("health", "Health", _health(draws, llc)),
            Section("rllc", "Refined LLCs", _rllc(llc)),
            Section("traces", "Loss traces", _traces(draws, llc)),
        ]
    sections += _structure(views)
    if trials or found.behaviour is not None:
        circuits = circuits_section(trials, found.behaviour, llc)
        sections.append(Section("circuits", "Circuits", circuits))
    sections += results_sections(found.others)
    if found.development is not None:
        sections += development_sections(found.development)
    if llc is not None or trials:
        disagreements = disagreements_section(llc, views, trials)
        sections.append(Section("disagrees", "What disagrees", disagreements))
    sections.append(Section("limits", "Limits", _limits(found)))
    lead = run_screen(found, llc, about)
    return page.page(title, lead, sections, head_pages(found, llc))


def _structure(views: Mapping[str, View]) -> list[Section]:
    """Modes, the tokens that they are over, and maps of these."""
    if not views:
        return []
    sections = [
        Section("modes", "Modes", modes_section(views)),
        Section("tokens", "Tokens in context", tokens_section(views)),
    ]
    mapped = {key: view for key, view in views.items() if view.map is not None}
    if mapped:
        sections.append(Section("map", "Map of tokens", maps_section(mapped)))
    return sections


def _model(found: RunResults) -> str:
    if found.draws is not None:
        return str(found.draws.attrs["model"])
    if found.trials:
        return str(found.trials[0].settings["model"])
    return " and ".join(titles_of(found.others)).lower() or "results"


def _but_full(llc: xr.Dataset) -> xr.Dataset:
    """The components that are parts of the model."""
    return llc.sel(component=[name for name in llc["component"].values if name != FULL])


def _run(
    draws: xr.DataTree | None, trials: Sequence[Trial], about: Mapping[str, Any]
) -> dict[str, object]:  # fmt: skip
    """What was run, by what it is called."""
    values: dict[str, object] = {str(key): value for key, value in about.items()}
    if draws is not None:
        attrs = draws.attrs
        values |= {
            "model": f"{attrs['model']} ({attrs.get('model_kind', '')})",
            "weights, SHA-256": str(attrs.get("model_hash", ""))[:16],
            "weight processing": attrs.get("weight_processing") or "none",
            "sampling tokens": f"{attrs.get('tokens', '')} (sequences × tokens), "
            f"SHA-256 {str(attrs.get('tokens_hash', ''))[:16]}",
            "components": few_words(component_names(draws)),
            "settings": run_words(settings_of(draws)),
            "seed": settings_of(draws).seed,
            "versions": attrs.get("versions", ""),
        }
        if attrs.get("why_generic"):
            values["evaluated by the model's own blocks because"] = attrs["why_generic"]
    if trials:
        s = trials[0].settings
        values |= {
            "trials": f"{s['sequences']} sequences of {s['length']} tokens, {s['how']} ablation, "
            f"{s['n_null']} null sets, effects of at least {s['least_effect']:g} "
            f"{s['units']}"
        }
        if draws is None:
            values |= {"model": s["model"], "weights, SHA-256": str(s["weights"])[:16]}
    return values


def _health(draws: xr.DataTree, llc: xr.Dataset) -> str:
    first, *bad = health_summary(llc).split("\n")
    words = (
        "Healthy means that every chain levelled off, does not spike or diverge, that the chains "
        "agree, that the mean stands above its noise, and that the number is certified: its defect "
        "allows a bias of at most 10 %. Chains that cannot be used are left out of every number on "
        "this page. ε₀/ε is how many steps make one draw."
    )
    summary = page.paragraph(first[0].upper() + first[1:] + ".", "lead")
    return (
        summary
        + page.bullets(f"! {line}" for line in bad)
        + page.paragraph(words, "quiet")
        + page.fold("The verdicts and their rules", page.pairs(health.RULES))
        + page.fold("The certificate and the step of every component", page.pairs(_choices(llc)))
        + page.table(rllc_table(llc, notes(draws)))
    )


def _choices(llc: xr.Dataset) -> dict[str, str]:
    """What was chosen for every component, and what its certificate rests on."""
    return {
        str(name): f"{certificate} ({why}); {choice}"
        for name, certificate, why, choice in zip(
            *(llc[key].values for key in ("component", "certificate", "why", "choice")), strict=True
        )
    }


def _rllc(llc: xr.Dataset) -> str:
    parts = [
        page.paragraph(
            "λ̂ has no unit. It measures how tightly the loss holds a component's weights in place: "
            "the higher, the more the component has learned that the loss depends on. Compare "
            "values within this page only: all depend on nβ and γ."
        )
    ]
    heads = llc.sel(component=heads_of(llc["component"]))
    if heads.sizes["component"]:
        parts.append(page.figure(plot_rllc_map(heads)))
    # The whole model's value is many times a head's and would flatten the others.
    without_full = _but_full(llc)
    shown = without_full if without_full.sizes["component"] else llc
    parts.append(page.figure(plot_rllc(shown)))
    if llc.sizes.get("probe"):
        parts.append(page.fold("The same numbers as a table", page.table(probe_table(llc))))
    return "".join(parts)


def _traces(draws: xr.DataTree, llc: xr.Dataset) -> str:
    names = [str(name) for name in llc["component"].values]
    bad = [n for n, word in zip(names, llc["verdict"].values, strict=True) if word != HEALTHY]
    order = np.argsort(np.nan_to_num(-llc["rhat"].values, nan=-np.inf), kind="stable")
    chosen = list(dict.fromkeys([*bad, *(names[i] for i in order)]))[:TRACED]
    words = "What is not healthy comes first, then the largest R̂."
    large = page.tabs(
        {name: page.figure(plot_traces(draws, name)) for name in chosen}, "Loss traces of"
    )
    return (
        page.figure(plot_all_traces(draws), panel=TRACE_PIXELS)
        + page.paragraph(words, "quiet")
        + large
    )


def _limits(found: RunResults) -> str:
    """What the numbers on the page are not."""
    lines = ["Every number holds for the tokens and the weights that it was measured on."]
    if found.draws is not None:
        s = settings_of(found.draws)
        lines += [
            f"These refined LLCs belong to nβ {s.n_beta:g} and γ {s.gamma:g}. They are not the "
            "asymptotic learning coefficient, and at other settings they are other numbers: quote "
            "the settings with them, and compare only what was sampled at the same ones.",
            "Standard errors cover the sampling. They do not cover the choice of tokens, of nβ and "
            "γ, or another training run of the same model.",
        ]
        if s.n_beta == 0:
            lines.append("nβ = 0: this is the control. It shows what the prior alone gives.")
    if found.views:
        lines += [
            "Signs of modes are a convention: the largest loading is positive. Modes say which "
            "components respond together; they do not say that these form a circuit.",
            "What the prior alone gives (nβ = 0) is not part of this page: run the control before "
            "you read structure into a mode.",
            "Clusters and maps of tokens are for looking. On the shipped models they do not come "
            "back from other draws or another training seed; modes do.",
        ]
    if found.trials:
        lines += [
            "Supported means that no test which votes failed on these tokens, with this kind of "
            "ablation. It does not mean that the circuit is complete, or the only one.",
            "The line “alone” is what the components recover with all other heads ablated. It has "
            "no vote: heads that feed a circuit with general information are needed too, and are "
            "no part of the hypothesis.",
            "An edge is tested by its direct path: what its source brings to its target by way of "
            "other components is not counted.",
        ]
    if found.development is not None:
        lines += limits(found.development)
    return page.bullets(lines)
