"""The page of a run: health first, then refined LLCs, structure and circuits, limits last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.circuits.trial import Trial
from lens_slt.circuits.verdict import VERDICTS
from lens_slt.models.names import is_head
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.observables.susceptibility import FULL
from lens_slt.report import page
from lens_slt.report.page import Section
from lens_slt.report.plots import plot_rllc, plot_rllc_map
from lens_slt.report.plots_modes import QUANTITIES
from lens_slt.report.plots_traces import plot_all_traces, plot_traces
from lens_slt.report.rules import rules
from lens_slt.report.sections_circuits import circuits_section, disagreements_section
from lens_slt.report.sections_structure import maps_section, modes_section
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


@dataclass(frozen=True)
class RunResults:
    """What a run gave; what is None or empty has no section."""

    draws: xr.DataTree | None = None
    views: Mapping[str, View] = field(default_factory=dict)
    trials: Sequence[Trial] = ()
    behaviour: xr.Dataset | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing."""
        rest = (self.views, self.trials)
        return self.draws is None and self.behaviour is None and not any(rest)


def run_page(found: RunResults, about: dict[str, Any]) -> str:
    """The whole page; ``about`` are plain values about the run, its ``title`` among them."""
    draws, views, trials = found.draws, found.views, found.trials
    llc = None if draws is None else refined_llc(draws)
    if llc is not None and "probe" in llc.dims:  # those of matrices have sections of their own
        read = {view.matrix.attrs["probe"] for view in views.values()}
        llc = llc.drop_sel(probe=[name for name in llc["probe"].values if name in read])
    title = str(about.pop("title", "") or f"Report on {_model(draws, trials)}")
    sections = [Section("run", "What was run", _run(draws, trials, about))]
    if draws is not None and llc is not None:
        sections += [
            Section("health", "Health", _health(draws, llc)),
            Section("rllc", "Refined LLCs", _rllc(llc)),
            Section("traces", "Loss traces", _traces(draws, llc)),
        ]
    if views:
        sections.append(Section("modes", "Modes", modes_section(views)))
    mapped = {key: view for key, view in views.items() if view.map is not None}
    if mapped:
        sections.append(Section("map", "Map of tokens", maps_section(mapped)))
    if trials or found.behaviour is not None:
        circuits = circuits_section(trials, found.behaviour, llc)
        sections.append(Section("circuits", "Circuits", circuits))
    sections += [
        Section("disagrees", "What disagrees", disagreements_section(llc, views, trials)),
        Section("limits", "Limits", _limits(draws, views, trials)),
    ]
    return page.page(title, _lead(llc, views, trials), sections)


def _model(draws: xr.DataTree | None, trials: Sequence[Trial]) -> str:
    return str(trials[0].settings["model"] if draws is None else draws.attrs["model"])


def _lead(llc: xr.Dataset | None, views: Mapping[str, View], trials: Sequence[Trial]) -> str:
    found: dict[str, str] = {}
    if llc is not None:
        healthy = int((llc["verdict"] == HEALTHY).sum())
        found["components healthy"] = f"{healthy} of {llc.sizes['component']}"
        parts = _but_full(llc)
        if np.isfinite(parts["llc"].values).any():
            top = int(np.nanargmax(parts["llc"].values))
            value, error = float(parts["llc"][top]), float(parts["se"][top])
            name = str(parts["component"].values[top])
            found["largest refined LLC, ± standard error"] = f"{name}: {value:.2f} ± {error:.2f}"
    for key, view in views.items():
        stable = sum(str(word).startswith("stable") for word in view.modes["verdict"].values)
        found[f"modes of the {QUANTITIES[key]} stable"] = f"{stable} of {view.modes.sizes['mode']}"
    if trials:
        counts = {word: sum(t.verdict == word for t in trials) for word in VERDICTS}
        found["circuit hypotheses on trial"] = ", ".join(
            f"{n} {word}" for word, n in counts.items() if n
        )
    return page.cards(found)


def _but_full(llc: xr.Dataset) -> xr.Dataset:
    """The components that are parts of the model."""
    return llc.sel(component=[name for name in llc["component"].values if name != FULL])


def _run(draws: xr.DataTree | None, trials: Sequence[Trial], about: Mapping[str, Any]) -> str:
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
    return page.pairs(values)


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
        + page.fold("The verdicts and their rules", page.pairs(rules(health.__doc__)))
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
    heads = llc.sel(component=[n for n in llc["component"].values if is_head(n)])
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


def _limits(draws: xr.DataTree | None, views: Mapping[str, View], trials: Sequence[Trial]) -> str:
    lines = []
    if draws is not None:
        s = settings_of(draws)
        lines += [
            f"These refined LLCs belong to nβ {s.n_beta:g} and γ {s.gamma:g}. They are not the "
            "asymptotic learning coefficient, and at other settings they are other numbers: quote "
            "the settings with them, and compare only what was sampled at the same ones.",
            "Standard errors cover the sampling. They do not cover the choice of tokens, of nβ and "
            "γ, or another training run of the same model.",
        ]
        if s.n_beta == 0:
            lines.append("nβ = 0: this is the control. It shows what the prior alone gives.")
    if views:
        lines += [
            "Signs of modes are a convention: the largest loading is positive. Modes say which "
            "components respond together; they do not say that these form a circuit.",
            "What the prior alone gives (nβ = 0) is not part of this page: run the control before "
            "you read structure into a mode.",
            "Clusters and maps of tokens are for looking. On the shipped models they do not come "
            "back from other draws or another training seed; modes do.",
        ]
    if trials:
        lines += [
            "Supported means that no test which votes failed on these tokens, with this kind of "
            "ablation. It does not mean that the circuit is complete, or the only one.",
            "The line “alone” is what the components recover with all other heads ablated. It has "
            "no vote: heads that feed a circuit with general information are needed too, and are "
            "no part of the hypothesis.",
            "Path ablation covers paths between heads and from heads into the logits, not those "
            "through MLPs.",
        ]
    return page.bullets(lines)
