"""Figures of refined LLCs and of their calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.arguments import typed
from lens_slt.calibration import Calibration
from lens_slt.models.names import head_place, is_head, read_part
from lens_slt.report.colours import COLOURS, DASHES, SYMBOLS
from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.sampling.health import HEALTHY
from lens_slt.schema import require
from lens_slt.statistics import HALF_WIDTH
from lens_slt.text import figure_text

LLC_AXIS = "λ̂ (dimensionless)"
ROW_PIXELS = 24
FEWEST_ROWS = 4  # a figure has the height of so many


def plot_rllc(llc: xr.Dataset) -> go.Figure:
    """Components ranked by λ̂ with 95 % intervals; one panel more for every probe.

    ``llc`` is from :func:`lens_slt.refined_llc`. Open symbols mark components that are not healthy.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1", probes={"mix": text}, **how)
        >>> figure = ls.plot_rllc(ls.refined_llc(draws))
        >>> figure.layout.title.text.split("<br>")[0]
        'Refined LLC of every component, with 95 % intervals'
    """
    llc = require(llc, "refined_llc", argument="llc")
    panels = ["sampling tokens"]
    if "probe" in llc.dims:
        panels += [f"probe: {name}" for name in labels(llc["probe"].values)]
    order = np.argsort(np.nan_to_num(llc["llc"].values, nan=-np.inf), kind="stable")
    llc = llc.isel(component=order)
    names = labels(llc["component"].values)
    layers = np.array([group_of(name) for name in llc["component"].values])
    figure = subplots(
        cols=len(panels), shared_yaxes=True, subplot_titles=panels, horizontal_spacing=0.03
    )
    for column in range(len(panels)):
        value, error = llc["llc"], llc["se"]
        if column:
            value, error = llc["probe_llc"][:, column - 1], llc["probe_se"][:, column - 1]
        for place, layer in enumerate(sorted(set(layers), key=group_place)):
            rows = np.flatnonzero(layers == layer)
            figure.add_trace(
                _points(llc, rows, value.values, error.values, place,
                    figure_text(group_label(layer)), column),
                row=1, col=column + 1,
            )  # fmt: skip
        figure.update_xaxes(title_text=LLC_AXIS, rangemode="tozero", col=column + 1)
    area = ROW_PIXELS * max(len(names), FEWEST_ROWS)
    figure.update_yaxes(categoryorder="array", categoryarray=names)
    figure.update_yaxes(title_text="component", col=1)
    figure.update_layout(
        template="plotly_white", height=area + 200, showlegend=len(set(layers)) > 1,
        title="Refined LLC of every component, with 95 % intervals"
        "<br><sup>filled: healthy; open: see the verdict on hover</sup>",
        legend=dict(orientation="h", y=-60 / area, yanchor="top"), margin=dict(t=100, b=100),
    )  # fmt: skip
    return figure


def plot_rllc_map(llc: xr.Dataset) -> go.Figure:
    """λ̂ of every head as a layer × head map with the numbers written in.

    Raises ValueError if ``llc`` has no heads.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1", probes={"mix": text}, **how)
        >>> figure = ls.plot_rllc_map(ls.refined_llc(draws))
        >>> figure.layout.title.text.split("<br>")[0]
        'Refined LLC λ̂ (dimensionless) ± standard error'
    """
    llc = require(llc, "refined_llc", argument="llc")
    found = {
        head_place(name): i
        for i, name in enumerate(map(str, llc["component"].values))
        if is_head(name)
    }
    if not found:
        raise ValueError("llc has no single heads, such as L1H3; a layer × head map needs them")
    n_layers = 1 + max(layer for layer, _ in found)
    n_heads = 1 + max(head for _, head in found)
    value = np.full((n_layers, n_heads), np.nan)
    text = np.full((n_layers, n_heads), "", dtype=object)
    for (layer, head), i in found.items():
        row = llc.isel(component=i)
        value[layer, head] = float(row["llc"])
        sign = "" if str(row["verdict"].values) == HEALTHY else "!"
        number = f"{float(row['llc']):.2f}" if np.isfinite(float(row["llc"])) else "no chain"
        text[layer, head] = f"{number}{sign}<br>±{float(row['se']):.2f}"
    figure = Figure(
        go.Heatmap(
            z=value, text=text, texttemplate="%{text}", colorscale="Cividis", xgap=2, ygap=2,
            x=[f"H{head}" for head in range(n_heads)], y=[f"L{n}" for n in range(n_layers)],
            colorbar=dict(title="λ̂"), hovertemplate="%{y}%{x}: %{text}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        template="plotly_white", height=220 + 70 * n_layers,
        title="Refined LLC λ̂ (dimensionless) ± standard error<br><sup>!: not healthy</sup>",
        xaxis_title="head", yaxis_title="layer", margin=dict(t=100),
    )  # fmt: skip
    return figure


@typed
def plot_calibration(calibration: Calibration) -> go.Figure:
    """λ̂ and the lowering of the loss below the control's, over nβ, one panel for each γ.

    Filled symbols are accepted settings, a star is the chosen one; lines join one component.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> short = ls.Settings(draws=40, chains=2)
        >>> found = ls.calibrate(model, text, "L0H0", n_betas=[30], settings=short, progress=False)
        >>> figure = ls.plot_calibration(found)
        >>> figure.layout.title.text.split("<br>")[0]
        'Calibration: one line per component, with 95 % intervals'
    """
    evidence = calibration.evidence
    gammas = [float(gamma) for gamma in evidence["gamma"].values]
    figure = subplots(
        rows=2, cols=len(gammas), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.06,
        horizontal_spacing=0.03, subplot_titles=[f"γ = {gamma:g}" for gamma in gammas],
    )  # fmt: skip
    for column, gamma in enumerate(gammas, start=1):
        for row in (1, 2):
            for line in _calibration_lines(calibration, gamma, row, legend=(row, column) == (1, 1)):
                figure.add_trace(line, row=row, col=column)
    figure.update_xaxes(type="log", tickvals=[float(x) for x in evidence["n_beta"].values])
    figure.update_xaxes(title_text="inverse temperature nβ", row=2)
    figure.update_yaxes(title_text=LLC_AXIS, row=1, col=1)
    if not bool((evidence["llc"] <= 0).any()):
        figure.update_yaxes(type="log", row=1)
    figure.update_yaxes(title_text="mean loss below the control's (%)", row=2, col=1)
    title = "Calibration: one line per component, with 95 % intervals"
    signs = "star: chosen; filled: accepted; open: refused (the reason is on hover)"
    figure.update_layout(
        template="plotly_white", height=700, title=f"{title}<br><sup>{signs}</sup>",
        margin=dict(t=110),
    )  # fmt: skip
    return figure


def _calibration_lines(
    calibration: Calibration, gamma: float, row: int, legend: bool
) -> list[go.Scatter]:
    """One line per component: λ̂ (row 1) or the lowering of the loss in per cent (row 2)."""
    at = calibration.evidence.sel(gamma=gamma)
    value, error = at["llc"], at["se"]
    if row == 2:
        value = 100 * at["lowered"] / at["control_loss"]
        error = 100 * at["lowered_se"] / abs(at["control_loss"])
    symbols = _calibration_symbols(calibration, gamma)
    names = labels(at["component"].values)
    groups = sorted({group_of(name) for name in names}, key=group_place)
    lines: list[go.Scatter] = []
    for i, name in enumerate(names):
        place = groups.index(group_of(name))
        lines.append(
            go.Scatter(
                x=at["n_beta"].values, y=value[:, i].values, mode="lines+markers",
                error_y=dict(array=HALF_WIDTH * error[:, i].values, thickness=1, width=2),
                line=dict(
                    color=COLOURS[place % len(COLOURS)], width=1, dash=DASHES[place % len(DASHES)]
                ),
                marker=dict(symbol=symbols, size=[13 if s == "star" else 8 for s in symbols]),
                name=group_label(group_of(name)), legendgroup=group_of(name),
                showlegend=legend and group_of(name) not in map(group_of, names[:i]),
                text=[f"{name}: {why}" for why in labels(at["why"].values)],
                hovertemplate="nβ %{x}: %{y:.3g}<br>%{text}<extra></extra>",
            )
        )  # fmt: skip
    return lines


def _calibration_symbols(calibration: Calibration, gamma: float) -> list[str]:
    chosen = calibration.settings
    symbols = []
    for n_beta in calibration.evidence["n_beta"].values:
        ok = bool(calibration.evidence["accepted"].sel(n_beta=n_beta, gamma=gamma))
        symbol = "circle" if ok else "circle-open"
        if chosen is not None and (chosen.n_beta, chosen.gamma) == (n_beta, gamma):
            symbol = "star"
        symbols.append(symbol)
    return symbols


def _points(
    llc: xr.Dataset,
    rows: Sequence[int] | np.ndarray,
    value: np.ndarray,
    error: np.ndarray,
    place: int,
    label: str,
    column: int,
) -> go.Scatter:
    verdicts = labels(llc["verdict"].values[rows])
    symbol = SYMBOLS[place % len(SYMBOLS)]
    return go.Scatter(
        x=value[rows], y=labels(llc["component"].values[rows]), mode="markers",
        error_x=dict(array=HALF_WIDTH * error[rows], thickness=1.2, width=3),
        marker=dict(
            size=8, color=COLOURS[place % len(COLOURS)], line=dict(width=1.5),
            symbol=[symbol if word == HEALTHY else f"{symbol}-open" for word in verdicts],
        ),
        text=verdicts, name=label, legendgroup=label, showlegend=column == 0,
        hovertemplate="%{y}: %{x:.3f}<br>%{text}<extra></extra>",
    )  # fmt: skip


def group_of(name: str) -> str:
    """The layer of a component as text; the name of what belongs to no single layer."""
    part = read_part(name)
    return name if part is None else str(part.layer)


def group_label(group: str) -> str:
    """What a legend calls a group."""
    return f"layer {group}" if group.isdigit() else group


def group_place(group: str) -> tuple[int, str]:
    """Sort key: layers by number, then what belongs to no single layer."""
    return (int(group), "") if group.isdigit() else (10**6, group)
