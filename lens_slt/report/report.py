"""The report of a run: one HTML file that opens offline, health first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arguments import instance, location, typed
from lens_slt.arrays import read_zarr
from lens_slt.circuits import behaviour as behaviour_scores
from lens_slt.circuits.trial import VERDICTS, Trial, read_trials
from lens_slt.data import patterns
from lens_slt.json_files import read_json
from lens_slt.models.names import is_head
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.observables.susceptibility import FULL
from lens_slt.report import page
from lens_slt.report.files import ABOUT, BEHAVIOUR, DRAWS, REPORT, TRIALS
from lens_slt.report.page import Section
from lens_slt.report.plots import plot_rllc, plot_rllc_map
from lens_slt.report.plots_circuits import plot_circuit, plot_evidence, plot_faithfulness
from lens_slt.report.plots_heads import plot_behaviour
from lens_slt.report.plots_maps import plot_map
from lens_slt.report.plots_modes import QUANTITIES, plot_enrichment, plot_modes
from lens_slt.report.plots_traces import plot_all_traces, plot_traces
from lens_slt.report.rules import rules
from lens_slt.report.tables import (
    health_summary,
    notes,
    probe_table,
    rllc_table,
    run_words,
)
from lens_slt.report.tables_circuits import behaviour_table, evidence_table, verdicts_table
from lens_slt.report.tables_modes import NAMES, modes_table, reliability_table
from lens_slt.report.token_strips import token_strips
from lens_slt.sampling import health
from lens_slt.sampling.health import HEALTHY
from lens_slt.sampling.result import component_names, open_draws, settings_of
from lens_slt.schema import require
from lens_slt.structure.contexts import contexts
from lens_slt.structure.overview import View, open_views

MODES = 4  # that are shown
TRACED = 8  # components whose traces are shown large
TRACE_PIXELS = 85  # width of a small trace
RELIABLE = 0.5  # split-half
CLEAR = 0.05  # of q


@typed
def write_report(run: str | Path) -> Path:
    """Write ``report.html`` for a finished run; returns its path.

    Args:
        run: the folder that ``lens-slt demo``, ``rllc``, ``susceptibility`` or ``cross-check``
            wrote, or the ``path`` that draws were streamed to. Matrices, trials and behaviour
            scores that lie in the folder become part of the report.

    Raises:
        ValueError: nothing there to report, a run that has not finished, or results of another
            version.
    """
    folder = location("run", run)
    path = folder / DRAWS if (folder / DRAWS).exists() else folder
    trials = folder / TRIALS
    is_draws = (path / "zarr.json").exists()
    if not is_draws and not trials.exists():
        raise ValueError(f"run: {str(folder)!r} holds neither {DRAWS} nor {TRIALS}")
    about = folder / ABOUT
    behaviour = None
    if (folder / BEHAVIOUR).exists():
        stored = read_zarr(folder / BEHAVIOUR)
        behaviour = require(stored, "behaviour_scores", argument=BEHAVIOUR)
    return report_results(
        folder / REPORT,
        open_draws(path) if is_draws else None,
        views=open_views(folder),
        trials=read_trials(trials) if trials.exists() else (),
        behaviour=behaviour,
        about=read_json(about) if about.exists() else {},
    )


@typed
def report_results(
    file: str | Path,
    draws: xr.DataTree | None,
    *,
    views: Mapping[str, View] | None = None,
    trials: Sequence[Trial] = (),
    behaviour: xr.Dataset | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of results that are at hand; :func:`write_report` reads them from a folder.

    Args:
        file: the HTML file.
        draws: from :func:`lens_slt.sample`.
        views: from :func:`lens_slt.structure.overview.read_structure`.
        trials: from :func:`lens_slt.cross_check`.
        behaviour: from :func:`lens_slt.behaviour_scores`.
        about: plain values about the run, shown first: ``title``, ``command``, ``data``, …

    Raises:
        ValueError: neither draws nor trials.
    """
    views, about = views or {}, dict(about or {})
    instance("views", views, Mapping[str, View])
    if behaviour is not None:
        behaviour = require(behaviour, "behaviour_scores", argument="behaviour")
    if draws is None and not trials:
        raise ValueError("a report needs draws or trials; got neither")
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
        sections.append(Section("modes", "Modes", _modes(views)))
    mapped = {key: view for key, view in views.items() if view.map is not None}
    if mapped:
        sections.append(Section("map", "Map of tokens", _maps(mapped)))
    if trials or behaviour is not None:
        sections.append(Section("circuits", "Circuits", _circuits(trials, behaviour, llc)))
    sections += [
        Section("disagrees", "What disagrees", _disagreements(llc, views, trials)),
        Section("limits", "Limits", _limits(draws, views, trials)),
    ]
    file = location("file", file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page.page(title, _lead(llc, views, trials), sections), "utf-8")
    return file


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
            "components": _few(component_names(draws)),
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


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 40 else f"{', '.join(names[:40])} … ({len(names)})"


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


def _modes(views: Mapping[str, View]) -> str:
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
    return {name: f"the token {words}" for name, words in rules(patterns.__doc__).items()}


def _view(view: View) -> str:
    n = min(MODES, view.modes.sizes["mode"])
    ends = {
        f"Mode {int(view.modes['mode'][i])}": token_strips(view.modes, i) for i in range(n)
    }  # the tokens at both ends, in context
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


def _maps(views: Mapping[str, View]) -> str:
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


def _circuits(trials: Sequence[Trial], behaviour: xr.Dataset | None, llc: xr.Dataset | None) -> str:
    parts = []
    if trials:
        parts.append(
            page.paragraph(
                "Hypotheses come from the draws, or from you. The trial ablates, on text that was "
                "not sampled: supported is what held in every test that votes, contradicted what "
                "failed in at least one, undecided the rest. Intervals are 95 %, over sequences; "
                "p-values are corrected by Holm over the voting tests of a trial."
            )
        )
        parts.append(page.table(verdicts_table(trials)))
        panels: dict[str, str] = {}
        for i, trial in enumerate(trials, 1):
            panels[f"{i}: {trial.hypothesis.pattern}, {trial.verdict}"] = _trial(trial, behaviour)
        parts.append(page.tabs(panels, "Hypothesis"))
    else:
        parts.append(page.paragraph("No circuit was proposed: no head stands out on any pattern."))
    if behaviour is not None:
        parts.append(page.figure(plot_behaviour(behaviour)))
        parts.append(
            page.fold("The same scores as a table", page.table(behaviour_table(behaviour, llc)))
        )
        kinds = rules(behaviour_scores.__doc__)
        for name, rule in rules(behaviour_scores.__doc__, table=1).items():
            kinds[f"type: {name}"] = rule
        parts.append(page.fold("What the scores and the types are", page.pairs(kinds)))
    return "".join(parts)


def _trial(trial: Trial, behaviour: xr.Dataset | None) -> str:
    parts = [
        page.heading(f"{trial.verdict.capitalize()}: {trial.hypothesis}"),
        page.bullets(trial.reasons),
        page.figure(plot_circuit(trial, behaviour)),
        page.figure(plot_evidence(trial)),
        page.fold("The evidence as a table", page.table(evidence_table(trial))),
    ]
    if trial.curve is not None:
        parts.append(page.figure(plot_faithfulness(trial)))
    return "".join(parts)


def _disagreements(
    llc: xr.Dataset | None, views: Mapping[str, View], trials: Sequence[Trial]
) -> str:
    parts = [
        page.heading(str(trial.hypothesis)) + page.bullets(trial.disagreements)
        for trial in trials
        if trial.disagreements
    ]
    lines = []
    for key, view in views.items():
        weak = view.matrix["component"].values[view.matrix["split_half"].values < RELIABLE]
        if len(weak):
            lines.append(
                f"{NAMES[key]}: columns whose split-half reliability is below {RELIABLE}: "
                f"{_few([str(name) for name in weak])}"
            )
        noise = view.modes["mode"].values[view.modes["verdict"].values == "may be noise"]
        if len(noise):
            lines.append(
                f"{NAMES[key]}: modes that may be noise: {', '.join(str(int(m)) for m in noise)}"
            )
    if len(views) > 1:
        lines += _modes_that_differ(views)
    if llc is not None:
        names = llc["component"].values[llc["verdict"].values != HEALTHY]
        if len(names):
            lines.append(f"Not healthy: {_few([str(name) for name in names])}")
    if lines:
        parts.append(page.heading("Draws and matrices") + page.bullets(lines))
    nothing = "Nothing on this page disagrees with anything else on it."
    return "".join(parts) or page.paragraph(nothing)


def _modes_that_differ(views: Mapping[str, View]) -> list[str]:
    """Patterns that a mode of one matrix tells apart clearly and no mode of the other does."""
    clear = {}
    for key, view in views.items():
        strong = (abs(view.by_mode["auc"] - 0.5) > 0.1) & (view.by_mode["q"] < CLEAR)
        strong = strong.isel(mode=slice(0, MODES)).any("mode")
        clear[key] = set(strong["pattern"].values[strong.values])
    lines = []
    for key, found in clear.items():
        for other, there in clear.items():
            only = sorted(str(name) for name in found - there)
            if key != other and only:
                lines.append(
                    f"{NAMES[key]} has modes that tell {', '.join(only)} from other tokens (AUC "
                    f"beyond 0.4 to 0.6), {NAMES[other]} has none among its first {MODES}"
                )
    return lines


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
