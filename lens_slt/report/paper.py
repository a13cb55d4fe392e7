"""Figures for papers: matplotlib, one or two columns wide, to be saved as vectors.

``ls.paper_rllc(llc).savefig("rllc.pdf")``. Colours and signs are those of the plotly figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lens_slt.arguments import integer, number, typed
from lens_slt.circuits.evidence import Evidence
from lens_slt.circuits.trial import Trial
from lens_slt.report.colours import COLOURS
from lens_slt.report.plots import LLC_AXIS, group_label, group_of, group_place
from lens_slt.report.plots_circuits import VOTE_COLOURS, look_of
from lens_slt.sampling.health import HEALTHY
from lens_slt.schema import require
from lens_slt.statistics import HALF_WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLUMN, PAGE = 3.3, 6.9  # inches
ROW, FRAME = 0.16, 0.8  # inches
MARKERS = ("o", "D", "s", "^", "P", "*", "X")  # in the order of colours.SYMBOLS
OUTCOME_MARKERS = {"held": "o", "failed": "x", "undecided": "o", "noted": "D"}
OPEN = ("undecided", "noted")


def paper_rllc(llc: xr.Dataset, *, width: float = COLUMN) -> Figure:
    """Components ranked by λ̂ with 95 % intervals; open symbols, as the legend says, not healthy.

    Args:
        llc: from :func:`lens_slt.refined_llc`.
        width: of the figure in inches.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> figure = ls.paper_rllc(ls.refined_llc(draws))
        >>> figure.axes[0].get_xlabel()
        'λ̂ (dimensionless)'
    """
    llc = require(llc, "refined_llc", argument="llc")
    order = np.argsort(np.nan_to_num(llc["llc"].values, nan=-np.inf), kind="stable")
    llc = llc.isel(component=order)
    names = [str(name) for name in llc["component"].values]
    groups = sorted({group_of(name) for name in names}, key=group_place)
    figure, (axes,) = _figure(width, len(names))
    labelled = set()
    for row, name in enumerate(names):
        one, group = llc.isel(component=row), group_of(name)
        place = groups.index(group)
        colour = COLOURS[place % len(COLOURS)]
        axes.errorbar(
            float(one["llc"]), row, xerr=HALF_WIDTH * float(one["se"]), color=colour, capsize=2,
            marker=MARKERS[place % len(MARKERS)], markersize=4, linewidth=0.8, linestyle="none",
            markerfacecolor=colour if str(one["verdict"].values) == HEALTHY else "white",
            label="" if group in labelled else group_label(group),
        )  # fmt: skip
        labelled.add(group)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel(LLC_AXIS)
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    handles = axes.get_legend_handles_labels()[0]
    if (llc["verdict"].values != HEALTHY).any():
        handles.append(_symbol("open: not healthy"))
    axes.legend(handles=handles, frameon=False, fontsize=7, loc="lower right")
    return figure


def paper_modes(result: xr.Dataset, *, n_modes: int = 3, width: float = PAGE) -> Figure:
    """Loadings of the components on the first modes with 95 % intervals; open: may be noise.

    Args:
        result: from :func:`lens_slt.modes`.
        n_modes: panels.
        width: of the figure in inches.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> found = ls.modes(ls.per_token_llc(draws), n_bootstrap=20)
        >>> len(ls.paper_modes(found, n_modes=2).axes)
        2
    """
    result = require(result, "modes", argument="result")
    names = [str(name) for name in result["component"].values]
    integer("n_modes", n_modes, at_least=1)
    n_modes = min(n_modes, result.sizes["mode"])
    figure, panels = _figure(width, len(names), n_modes)
    all_stable = True
    for i, axes in enumerate(panels):
        mode = result.isel(mode=i)
        loading = mode["loading"].values
        stable, spread = True, None
        if "verdict" in mode:
            stable = str(mode["verdict"].values).startswith("stable")
            low, high = mode["loading_low"].values, mode["loading_high"].values
            spread = np.abs([loading - low, high - loading])
        all_stable &= stable
        axes.errorbar(
            loading, range(len(names)), xerr=spread, color=COLOURS[0], capsize=2, marker="o",
            markersize=4, linewidth=0.8, linestyle="none",
            markerfacecolor=COLOURS[0] if stable else "white",
        )  # fmt: skip
        axes.axvline(0, color="grey", linewidth=0.6)
        axes.set_title(
            f"mode {int(mode['mode'])}: {100 * float(mode['explained']):.1f} % of variance",
            fontsize=8,
        )
        axes.set_xlabel("loading")
        axes.set_xlim(-1.05, 1.05)
    panels[0].set_yticks(range(len(names)), names, parse_math=False)
    panels[0].invert_yaxis()
    if not all_stable:
        _legend_above(figure, [_symbol("open: may be noise", colour=COLOURS[0])])
    return figure


@typed
def paper_evidence(trial: Trial, *, width: float = COLUMN) -> Figure:
    """Effects of a trial with 95 % intervals, beside the middle 95 % of their nulls.

    Filled circles hold, crosses fail, open circles are undecided, open diamonds have no vote; the
    legend has those that occur.

    Args:
        trial: from :func:`lens_slt.cross_check`.
        width: of the figure in inches.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> mine = ls.circuit("L1H2", pattern="induction")
        >>> trial = ls.cross_check(model, text, mine, n_null=10, verdict_only=True, progress=False)
        >>> ls.paper_evidence(trial).axes[0].get_xlabel()
        'effect (nats per token)'
    """
    units = trial.settings["units"]
    shown: list[Evidence] = [
        one for one in trial.evidence if one.unit == units and np.isfinite(one.effect)
    ]
    figure, (axes,) = _figure(width, len(shown))
    looks = [look_of(one) for one in shown]
    for row, (one, look) in enumerate(zip(shown, looks, strict=True)):
        colour = VOTE_COLOURS[look]
        if np.isfinite(one.null_low):
            axes.plot(
                [one.null_low, one.null_high], [row, row], color="lightgrey", linewidth=5,
                solid_capstyle="butt", zorder=0,
            )  # fmt: skip
        axes.errorbar(
            one.effect, row, xerr=[[one.effect - one.low], [one.high - one.effect]], color=colour,
            marker=OUTCOME_MARKERS[look], markersize=4, capsize=2, linewidth=0.8,
            markerfacecolor="white" if look in OPEN else colour,
        )  # fmt: skip
    axes.set_yticks(
        range(len(shown)),
        [one.test if one.part == "circuit" else f"{one.test}: {one.part}" for one in shown],
        parse_math=False,
    )
    axes.invert_yaxis()
    axes.axvline(0, color="grey", linewidth=0.6)
    axes.set_xlabel(f"effect ({units} per token)", parse_math=False)
    _legend_above(figure, [
        _symbol(look, marker, VOTE_COLOURS[look], look in OPEN)
        for look, marker in OUTCOME_MARKERS.items() if look in looks
    ])  # fmt: skip
    return figure


def _symbol(text: str, marker: str = "o", colour: str = "grey", hollow: bool = True) -> Line2D:
    """A symbol in a legend."""
    from matplotlib.lines import Line2D  # on use: as in _figure

    return Line2D(
        [], [], color=colour, marker=marker, markersize=4, linestyle="none", label=text,
        markerfacecolor="white" if hollow else colour,
    )  # fmt: skip


def _legend_above(figure: Figure, symbols: list[Line2D]) -> None:
    """Where it covers nothing."""
    figure.legend(
        handles=symbols, loc="outside upper right", ncols=2, frameon=False, fontsize=7,
        columnspacing=1, handletextpad=0.1, borderpad=0,
    )  # fmt: skip


def _figure(width: float, rows: int, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure for so many rows, panels side by side."""
    from matplotlib.figure import Figure  # on use: it takes most of a second to load

    number("width", width, above=0)

    figure = Figure(figsize=(width, FRAME + ROW * rows), layout="constrained")
    made = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for axes in made:
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_fontsize(8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, made
