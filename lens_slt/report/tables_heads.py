"""Heads as tables: their order, and everything about one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from rich.table import Table

from lens_slt.circuits.roles import node_of
from lens_slt.circuits.trial import Trial
from lens_slt.report.plots_modes import CLEAR, QUANTITIES
from lens_slt.report.ranking import ranking
from lens_slt.report.tables import PlainTable, cell, with_error
from lens_slt.report.tables_circuits import effect_words, outcome_words, styled
from lens_slt.sampling.result import dataset
from lens_slt.structure.overview import View

NOTHING = "–"
MOST_PROBES = 3  # columns
MOST_PATTERNS = 8  # rows
BEHAVIOUR = {  # of a head, in words
    "previous_token": "mean attention to the previous token",
    "current_token": "mean attention to the current token",
    "first_token": "mean attention to the first token",
    "duplicate_token": "mean attention to earlier copies of the token",
    "prefix_matching": "mean attention to what followed earlier, on repeated random tokens",
    "induction": "logits it adds to the token that followed earlier",
    "ngram": "logits it adds to what often follows the last tokens",
    "skip_gram": "logits it adds to what often follows tokens further back",
    "copying": "how much it raises the tokens it attends to, −1 to 1",
}  # fmt: skip


def ranking_table(
    llc: xr.Dataset,
    views: Mapping[str, View],
    trials: Sequence[Trial] = (),
    behaviour: xr.Dataset | None = None,
) -> Table:
    """One row per head, the largest λ̂ first, with what else is known of it."""
    table = PlainTable(
        "Heads by λ̂",
        "rank: places that cannot be told apart, where λ̂ differ by less than two joint standard "
        "errors; pattern: the one whose tokens the head tells best from others, by AUC with "
        "q < 0.05; in circuits: how their trials ended",
    )
    probes = [str(name) for name in llc["probe"].values[:MOST_PROBES]] if "probe" in llc else []
    more = {
        "does": behaviour is not None, "in circuits": bool(trials), "pattern": "llc" in views,
    }  # fmt: skip
    columns = [name for name, there in more.items() if there]
    for name in ("rank", "head"):
        table.add_column(name, no_wrap=True)
    table.add_column("λ̂ ± SE", justify="right", no_wrap=True)
    for name in ("number is", *columns):
        table.add_column(name)
    for name in probes:
        table.add_column(f"on {name}".replace("_", " "), justify="right", no_wrap=True)
    for place in ranking(llc):
        row = llc.sel(component=place.name)
        known = {
            "does": head_type(behaviour, place.name), "in circuits": _circuits(trials, place.name),
            "pattern": _best_pattern(views, place.name),
        }  # fmt: skip
        table.add_row(
            place.words, place.name, with_error(place.value, place.error),
            str(row["certificate"].values), *(known[name] for name in columns),
            *(with_error(*(float(row[key].sel(probe=name)) for key in ("probe_llc", "probe_se")))
              for name in probes),
        )  # fmt: skip
    return table


def head_type(behaviour: xr.Dataset | None, name: str) -> str:
    """What a head does, as its type."""
    if behaviour is None or name not in behaviour["component"].values:
        return NOTHING
    return str(behaviour["head_type"].sel(component=name).values)


def trials_of(trials: Sequence[Trial], name: str) -> list[Trial]:
    """The trials of circuits that a component is part of."""
    return [t for t in trials if name in map(node_of, t.hypothesis.components)]


def refinements_table(
    draws: xr.DataTree, llc: xr.Dataset, views: Mapping[str, View], name: str
) -> Table:
    """λ̂ of one component in every refinement."""
    table = PlainTable(f"{name} in all refinements", "± one standard error")
    for column, justify in (("refined by", "left"), ("on", "left"), ("value ± SE", "right")):
        table.add_column(column, justify=justify)
    row = llc.sel(component=name)
    table.add_row("weights", "the sampling tokens", with_error(float(row["llc"]), float(row["se"])))
    for probe in llc["probe"].values if "probe" in llc.dims else ():
        of_model = dataset(draws, f"probes/{probe}").attrs["loss"] == "divergence"
        value, error = (float(row[key].sel(probe=probe)) for key in ("probe_llc", "probe_se"))
        by = "weights and reference model" if of_model else "weights and data"
        table.add_row(by, f"probe {probe}".replace("_", " "), with_error(value, error))
    for key, view in views.items():
        if name in view.matrix["component"].values:
            one = view.matrix.sel(component=name)
            factor, unit = (1.0, "") if key == "llc" else (1e3, "1000 · ")
            number = with_error(factor * float(one["mean"]), factor * float(one["mean_se"]))
            what = "λ̂ per token, mean" if key == "llc" else "susceptibility χ, mean"
            reliable = f"split-half reliability {float(one['split_half']):.2f}"
            probe = view.matrix.attrs.get("probe", "")
            table.add_row(f"{unit}{what}", f"probe {probe}; {reliable}", number)
    return table


def scores_table(behaviour: xr.Dataset, name: str) -> Table:
    """The behaviour scores of one head."""
    row = behaviour.sel(component=name)
    table = PlainTable(f"What {name} does", f"by its scores it is: {row['head_type'].values}")
    for column, justify in (("score", "left"), ("value", "right"), ("what it is", "left")):
        table.add_column(column, justify=justify)
    for key, meaning in BEHAVIOUR.items():
        if key in row and np.isfinite(float(row[key])):
            table.add_row(key.replace("_", " "), f"{float(row[key]):.2f}", meaning)
    return table


def patterns_table(views: Mapping[str, View], name: str) -> Table:
    """The patterns whose tokens one component tells from others."""
    table = PlainTable(
        f"Patterns of {name}", "AUC with q < 0.05, the furthest from 0.5 first; –: none is clear"
    )
    table.add_column("matrix")
    table.add_column("patterns")
    for key, view in views.items():
        if name in view.by_component["component"].values:
            found = list(_clear_patterns(view.by_component, name))[:MOST_PATTERNS]
            table.add_row(QUANTITIES[key], "; ".join(found) or NOTHING)
    return table


def part_table(trials: Sequence[Trial], name: str) -> Table:
    """All evidence about one component, or about edges that it is an end of."""
    table = PlainTable(
        f"{name} on trial", "effect with 95 % interval; what is noted has no vote in the verdict"
    )
    for column in ("circuit", "verdict", "test", "part"):
        table.add_column(column)
    table.add_column("effect", justify="right")
    table.add_column("outcome")
    for trial in trials:
        for one in trial.evidence:
            if is_about(one.part, name):
                table.add_row(
                    str(trial.hypothesis), styled(trial.verdict), one.test, one.part,
                    effect_words(one), outcome_words(one),
                )  # fmt: skip
    if not table.row_count:
        for trial in trials:
            unsaid = cell("tests of the whole circuit only")
            table.add_row(str(trial.hypothesis), styled(trial.verdict), unsaid, "", "", "")
    return table


def is_about(part: str, name: str) -> bool:
    """Whether a component is this part of a circuit, or an end of the edge that is."""
    ends = (end.partition(".")[0] for end in part.split("→"))
    return name in map(node_of, ends)


def _clear_patterns(by_component: xr.Dataset, name: str) -> Iterator[str]:
    """Patterns with their AUC, the furthest from 0.5 first."""
    if name not in by_component["component"].values:
        return
    row = by_component.sel(component=name)
    auc, clear = row["auc"].values, np.flatnonzero(row["q"].values < CLEAR)
    for i in sorted(clear, key=lambda i: -abs(auc[i] - 0.5)):
        yield f"{row['pattern'].values[i]} {auc[i]:.2f}"


def _best_pattern(views: Mapping[str, View], name: str) -> str:
    return next(_clear_patterns(views["llc"].by_component, name), NOTHING) if "llc" in views else ""


def _circuits(trials: Sequence[Trial], name: str) -> str:
    found = [f"{t.hypothesis.pattern}: {t.verdict}" for t in trials_of(trials, name)]
    return "; ".join(dict.fromkeys(found)) or NOTHING
