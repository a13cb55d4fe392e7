"""The first screen of a sweep over checkpoints, and a page for each of its heads."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from lens_slt.circuits.hypothesis import circuit
from lens_slt.development.construction import SUPPORTED
from lens_slt.development.construction_table import construction_table
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.overview import DevelopmentView
from lens_slt.development.pattern_curves import (
    MOST_PATTERNS,
    Holder,
    held_at_first,
    holders,
    rise_of,
)
from lens_slt.report import page
from lens_slt.report.drawing import circuit_drawing
from lens_slt.report.first_screen import counted, held_tightest, outcome, screen
from lens_slt.report.page import Section
from lens_slt.report.plots_development import plot_curves
from lens_slt.report.run_results import MOST_PAGES, heads_of
from lens_slt.report.tables import PlainTable
from lens_slt.report.tables_development import heads_table, stages_table
from lens_slt.report.tables_heads import is_about
from lens_slt.sampling.certificate import CERTIFIED, LARGEST_SHARE


def development_screen(view: DevelopmentView) -> str:
    """Three sentences about a sweep, and the circuit that was there at its end."""
    llc = view.curves["refined_llc"].to_dataset()
    steps, attrs = llc[CHECKPOINT].values, view.curves.attrs
    names = [str(name) for name in llc["component"].values]
    measured = (
        f"Measured: the refined LLC λ̂ of {counted(names)} of {attrs['run']} at {len(steps)} "
        f"checkpoints, {attrs['unit']}s {int(steps[0])} to {int(steps[-1])}."
    )
    sure, n = int((llc["certificate"] == CERTIFIED).sum()), llc["certificate"].size
    limit = f"their own test allows a bias of at most {LARGEST_SHARE:.0%}"
    believe = (
        f"Believe it: all {n} numbers are certified ({limit})."
        if sure == n
        else f"Believe {sure} of {n} numbers, which are certified ({limit}); the others are named "
        "under Limits."
    )
    return screen(measured, believe, _found(view, llc), _circuit(view))


def development_heads(view: DevelopmentView) -> list[Section]:
    """A page for every head: its trajectory, its stages, its parts in circuits."""
    llc = view.curves["refined_llc"].to_dataset()
    names = heads_of(llc["component"])[:MOST_PAGES]
    return [Section(f"head-{name}", name, _page(view, llc, name)) for name in names]


def _found(view: DevelopmentView, llc: xr.Dataset) -> str:
    parts = []
    if tightest := held_tightest(llc.isel({CHECKPOINT: -1})):
        parts.append(f"at the end {tightest}")
    if view.stages is not None:
        one = view.stages.isel(component=0)
        types = [str(word) for word in one["type"].values[: int(one["n_stages"])]]
        parts.append(f"training has {len(types)} stage{'s' * (len(types) > 1)}")
    if view.held is not None and (held := holders(view.held)):
        pattern, holder = next(iter(held.items()))
        how = "most" if holder.most else "beyond other tokens"
        words = f"{holder.component} holds {pattern.replace('_', ' ')} {how}"
        parts.append(words + _since(view, view.held, pattern, holder))
    if view.construction is not None:
        tried = _tried(construction_table(view.construction))
        n = int((tried["verdict"] == "supported").sum())
        parts.append(f"{n} of {len(tried)} circuits on trial held at the end" if len(tried) else
                     "no circuit was on trial")  # fmt: skip
    return f"Found: {', and '.join(parts) or 'nothing that stands out'}."


def _since(view: DevelopmentView, held: xr.Dataset, pattern: str, holder: Holder) -> str:
    """Around which step it took the pattern up, where that is known."""
    if held_at_first(held, pattern, holder):
        return ", already at the first checkpoint"
    if view.taken_up is None or (rise := rise_of(held, view.taken_up, pattern, holder)) is None:
        return ""
    return f", since about {view.curves.attrs['unit']} {float(rise['midpoint']):.0f}"


def _tried(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that say from when on a circuit's trial supports it, those that held first."""
    tried = rows[rows["criterion"] == SUPPORTED]
    return tried.sort_values("verdict", key=lambda word: word != "supported", kind="stable")


def _circuit(view: DevelopmentView) -> str:
    """The first circuit that held at the end, or the first there is, and when it formed."""
    if view.construction is None:
        return ""
    rows = construction_table(view.construction)
    for one in _tried(rows).to_dict("records"):
        mine = rows[rows["circuit"] == one["circuit"]].drop_duplicates("part")
        edges, nodes = (list(mine["part"][mine["kind"] == k]) for k in ("edge", "component"))
        of_it = view.construction["circuit"].values == one["circuit"]
        pattern = str(view.construction["pattern"].values[of_it][0])
        drawn = circuit("; ".join([*edges, *nodes]), pattern)
        verdict = str(one["verdict"])
        return outcome(
            verdict, f"{verdict.capitalize()} at the end: {drawn.words}, for {pattern}",
            _when(one["exists"], view.curves.attrs["unit"]),
            "is from when on its trial supports it", circuit_drawing(drawn),
        )  # fmt: skip
    return ""


def _when(exists: str, unit: str) -> str:
    """A step with its interval, or that there is none."""
    return f"{unit} {exists}".capitalize() if exists[0].isdigit() else f"No {unit}"


def _page(view: DevelopmentView, llc: xr.Dataset, name: str) -> str:
    first = None if view.stages is None else view.stages.isel(component=[0])
    parts = [
        page.table(heads_table(view, name)),
        page.figure(plot_curves(llc.sel(component=[name]), stages=first)),
    ]
    if view.held is not None and name in view.held["component"].values:
        mine = view.held.sel(component=[name])
        most = np.argsort(-mine["contrast"].isel({CHECKPOINT: -1}).values.ravel())[:MOST_PATTERNS]
        parts.append(page.figure(plot_curves(mine.isel(pattern=most), stages=first)))
    if view.stages is not None and name in view.stages["component"].values:
        parts.append(page.table(stages_table(view, name)))
    for gamma, node in view.curves.children.get("gamma", xr.DataTree()).children.items():
        one = node.to_dataset().sel(component=[name])
        parts.append(page.fold(f"The same at γ = {gamma}", page.figure(plot_curves(one))))
    if "behaviour_scores" in view.curves.children:
        behaviour = view.curves["behaviour_scores"].to_dataset()
        if name in behaviour["component"].values:
            parts.append(page.figure(plot_curves(behaviour.sel(component=[name]), stages=first)))
    if view.construction is not None:
        parts.append(_pieces(view.construction, name))
    return "".join(parts)


def _pieces(found: xr.Dataset, name: str) -> str:
    """The parts of circuits that a head is, or is an end of."""
    table = PlainTable(f"{name} in circuits", "from which step on each part is there")
    for column in ("circuit", "part", "what", "from step"):
        table.add_column(column)
    for row in construction_table(found).to_dict("records"):
        if is_about(str(row["part"]), name):
            table.add_row(row["circuit"], row["part"], row["what"], row["exists"])
    return page.table(table) if table.row_count else ""
