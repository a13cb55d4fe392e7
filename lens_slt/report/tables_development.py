"""What a sweep over checkpoints says, as tables for a terminal of 80 columns."""

from __future__ import annotations

import numpy as np
import xarray as xr
from rich.table import Table

from lens_slt.development.construction_table import construction_table
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.overview import DevelopmentView
from lens_slt.development.pattern_curves import curve_name, held_at_first, holders, rise_of
from lens_slt.report.plain_table import PlainTable
from lens_slt.sampling.health import HEALTHY

NOWHERE = "–"
TYPES = (
    "A: the loss falls and λ̂ rises; B: both fall; below start: λ̂ is below zero, the checkpoint is "
    "no minimum of the loss"
)
TIMES = ("begin", "midpoint", "end")  # of a transition
CHANGED = 0.2  # share of a pattern's range that a transition has to make for the table


def stages_table(view: DevelopmentView, component: str | None = None) -> Table:
    """The stages of the model, or of one component, one row each."""
    stages = view.stages
    assert stages is not None
    name = str(stages["component"].values[0]) if component is None else component
    one = stages.sel(component=name)
    table = PlainTable(f"Stages of {name}", f"boundaries with 95 % intervals; {TYPES}")
    for column in ("stage", "from step", "to step", "type"):
        table.add_column(column)
    table.add_column("λ̂ per log step", justify="right")
    with_loss = "loss_change" in one
    if with_loss:
        table.add_column("loss, nats", justify="right")
    n = int(one["n_stages"])
    for i in range(n):
        stage = one.isel(stage=i)
        begin = f"{float(stage['start']):.0f}" if i == 0 else _boundary(one, i - 1)
        end = f"{float(stage['end']):.0f}" if i == n - 1 else _boundary(one, i)
        row = [str(i + 1), begin, end, str(stage["type"].values), _interval(stage, "slope")]
        table.add_row(*row, *([_interval(stage, "loss_change")] if with_loss else []))
    return table


def transitions_table(view: DevelopmentView) -> Table:
    """Transitions of the loss of every pattern, in order of time."""
    found = view.transitions
    assert found is not None
    table = PlainTable(
        "Transitions of the loss of patterns",
        f"steps with 95 % intervals; those of at least {CHANGED:.0%} of the curve's range",
    )
    table.add_column("pattern")
    for column in (*TIMES, "nats"):
        table.add_column(column, justify="right")
    rows = []
    for name in found["observable"].values:
        one = found.sel(observable=name)
        for i in range(int(one["n_transitions"])):
            each = one.isel(transition=i)
            if float(each["share"]) >= CHANGED:
                place = float(np.nan_to_num(each["midpoint"], nan=np.inf))
                cells = [_step(each, key) for key in TIMES]
                rows.append((place, [str(name), *cells, f"{float(each['change']):+.2f}"]))
    for _, row in sorted(rows, key=lambda pair: pair[0]):
        table.add_row(*row)
    return table


def taken_up_table(view: DevelopmentView) -> Table:
    """When each pattern's holder took it up, in order of time, or that it held it all along."""
    assert view.held is not None and view.taken_up is not None
    table = PlainTable(
        "Who holds each pattern at the end, and since when",
        "steps with 95 % intervals, of the rise that brought at least half of what is held at the "
        "end; λ̂ beyond other tokens at the end ± standard error",
    )
    table.add_column("pattern in component")
    for column in (*TIMES, "λ̂ beyond others"):
        table.add_column(column, justify="right")
    last, rows = view.held.isel({CHECKPOINT: -1}), []
    for pattern, holder in holders(view.held).items():
        rise = rise_of(view.held, view.taken_up, pattern, holder)
        cells, place = [NOWHERE] * len(TIMES), np.inf
        if held_at_first(view.held, pattern, holder):
            cells[0], place = "before the first", -np.inf
        elif rise is not None:
            cells, place = [_step(rise, key) for key in TIMES], float(rise["midpoint"])
        one = last.sel(pattern=pattern, component=holder.component)
        held = f"{float(one['contrast']):.2f} ± {float(one['contrast_se']):.2f}"
        rows.append((place, [curve_name(pattern, holder), *cells, held]))
    for _, row in sorted(rows, key=lambda pair: pair[0]):
        table.add_row(*row)
    return table


def heads_table(view: DevelopmentView, name: str | None = None) -> Table:
    """When each head, or one, differentiates, and with which it develops."""
    llc = view.curves["refined_llc"].to_dataset().isel({CHECKPOINT: -1})
    table = PlainTable(
        "Heads over training" if name is None else f"{name} over training",
        "λ̂ at the end ± standard error, !: not to be believed; differentiates: leaves the band of "
        "its layer's other heads for good; cluster of trajectories, if there are any",
    )
    for column in ("head", "λ̂ at the end", "differentiates at", "in", "cluster", "type"):
        table.add_column(column, justify="right" if column == "λ̂ at the end" else "left")
    for head in llc["component"].values if name is None else [name]:
        last = llc.sel(component=head)
        value, error = float(last["llc"]), float(last["se"])
        mark = "" if last["verdict"] == HEALTHY else " !"
        step, where = _differentiates(view.differentiation, str(head))
        cluster, kind = _cluster(view.trajectories, str(head))
        at_end = f"{value:.2f} ± {error:.2f}{mark}"
        table.add_row(str(head), at_end, step, where, cluster, kind)
    return table


def built_table(view: DevelopmentView) -> Table:
    """From which step on every part of the circuits is there."""
    assert view.construction is not None
    whole = None
    if view.stages is not None:
        whole = view.stages.isel(component=[0])
    rows = construction_table(view.construction, whole)
    table = PlainTable(
        "How the circuits were built",
        "from which step on, with an interval; effects at the last checkpoint",
    )
    columns = ["part", "what", "from step", *(["stage"] if "stage" in rows else []), "at the end"]
    for column in columns:
        table.add_column(column)
    for row in rows.to_dict("records"):
        stage = [str(row["stage"])] if "stage" in rows else []
        end = row["verdict"] or f"{row['end']:.2f} {row['unit']}"
        table.add_row(row["part"], row["what"], str(row["exists"]), *stage, end)
    return table


def _boundary(one: xr.Dataset, i: int) -> str:
    return _step(one.isel(boundary=i), "boundary_step")


def _step(one: xr.Dataset, key: str) -> str:
    middle, low, high = (float(one[f"{key}{end}"]) for end in ("", "_low", "_high"))
    return NOWHERE if np.isnan(middle) else f"{middle:.0f} ({low:.0f}–{high:.0f})"


def _interval(one: xr.Dataset, key: str) -> str:
    middle, low, high = (float(one[f"{key}{end}"]) for end in ("", "_low", "_high"))
    return NOWHERE if np.isnan(middle) else f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


def _differentiates(found: xr.Dataset | None, name: str) -> tuple[str, str]:
    if found is None or name not in found["component"].values:
        return NOWHERE, NOWHERE
    one = found.sel(component=name)
    where = str(one["first_refinement"].values)
    if not where:
        return NOWHERE, NOWHERE
    return _step(one.sel(refinement=where), "step"), where


def _cluster(found: xr.Dataset | None, name: str) -> tuple[str, str]:
    if found is None or name not in found["component"].values:
        return NOWHERE, NOWHERE
    one = found.sel(component=name)
    cluster = int(one["cluster"])
    kind = str(one["head_type"].values) if "head_type" in one else NOWHERE
    return (NOWHERE if cluster < 0 else str(cluster)), kind
