"""Figures of modes and of the patterns they go with."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from scipy import stats

from lens_slt.arguments import integer, typed
from lens_slt.report.colours import COLOURS, SYMBOLS
from lens_slt.report.figure import Figure, labels, subplots
from lens_slt.report.plots import ROW_PIXELS
from lens_slt.schema import require
from lens_slt.statistics import ENDS
from lens_slt.text import figure_text

CLEAR = 0.05  # of q
QUANTITIES = {"chi": "susceptibilities", "llc": "per-token rLLCs"}


def plot_modes(result: xr.Dataset, *, n_modes: int = 4) -> go.Figure:
    """Loadings of the components on the first modes, with 95 % intervals.

    ``result`` is from :func:`lens_slt.modes`. A mode that may be noise has open symbols.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1", probes={"mix": text}, **how)
        >>> figure = ls.plot_modes(ls.modes(ls.per_token_llc(draws), n_bootstrap=20))
        >>> figure.layout.title.text.split("<br>")[0]
        'Modes of the per-token rLLCs: loadings with 95 % intervals'
    """
    result = require(result, "modes", argument="result")
    integer("n_modes", n_modes, at_least=1)
    result = result.isel(mode=slice(0, n_modes))
    names = labels(result["component"].values)
    titles = [_title(result, i) for i in range(result.sizes["mode"])]
    figure = subplots(
        cols=len(titles), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.02
    )
    for i in range(len(titles)):
        mode = result.isel(mode=i)
        stable = "verdict" not in mode or str(mode["verdict"].values).startswith("stable")
        loading = mode["loading"].values
        error = None
        if "loading_low" in mode:
            error = dict(
                array=mode["loading_high"].values - loading,
                arrayminus=loading - mode["loading_low"].values,
                symmetric=False, thickness=1.2, width=3,
            )  # fmt: skip
        symbol = SYMBOLS[0] if stable else f"{SYMBOLS[0]}-open"
        figure.add_trace(
            go.Scatter(
                x=loading, y=names, mode="markers", error_x=error, showlegend=False,
                marker=dict(size=8, color=COLOURS[0], symbol=symbol, line=dict(width=1.5)),
                hovertemplate="%{y}: %{x:.2f}<extra></extra>",
            ),
            row=1, col=i + 1,
        )  # fmt: skip
        figure.add_vline(x=0, line=dict(color="grey", width=1), row=1, col=i + 1)
        figure.update_xaxes(title_text="loading", range=[-1.05, 1.05], row=1, col=i + 1)
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(title_text="component", col=1)
    figure.update_layout(
        template="plotly_white", height=190 + ROW_PIXELS * len(names), margin=dict(t=130),
        title=f"Modes of the {_quantity(result)}{_whitened(result)}: loadings with 95 % intervals"
        "<br><sup>open symbols: the mode may be noise</sup>",
    )  # fmt: skip
    return figure


@typed
def plot_enrichment(enriched: xr.Dataset, *, title: str = "") -> go.Figure:
    """AUC of every mode, or component, for every pattern as a map; * where q < 0.05.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1", probes={"mix": text}, **how)
        >>> enriched = ls.enrichment(ls.per_token_llc(draws), ls.label_patterns(text))
        >>> figure = ls.plot_enrichment(enriched, title="Heads")
        >>> figure.layout.title.text.split("<br>")[0]
        'Heads'
    """
    enriched = require(enriched, "enrichment", argument="enriched")
    rows = str(next(iter(enriched["auc"].dims)))
    known = np.isfinite(enriched["auc"].values).any(0)
    shown = enriched.isel(pattern=np.flatnonzero(known))
    auc = shown["auc"].values.T
    text = np.where(shown["q"].values.T < CLEAR, "*", "")
    label = np.char.add(np.char.mod("%.2f", auc), text)
    label = np.where(np.isfinite(auc), label, "")
    names = [f"mode {x}" if rows == "mode" else x for x in labels(shown[rows].values)]
    patterns = [name.replace("_", " ") for name in labels(shown["pattern"].values)]
    hover = [
        [
            f"{pattern}, {name}: AUC {a:.2f} [{low:.2f}, {high:.2f}], q {q:.1g}"
            for name, a, low, high, q in zip(names, *columns, strict=True)
        ]
        for pattern, *columns in zip(
            labels(shown["pattern"].values),
            *(shown[key].values.T for key in ("auc", "low", "high", "q")),
            strict=True,
        )
    ]
    figure = Figure(
        go.Heatmap(
            z=auc, x=names, y=patterns,
            zmin=0, zmax=1, zmid=0.5, colorscale="PuOr", xgap=2, ygap=2, text=label,
            texttemplate="%{text}", hovertext=hover, hovertemplate="%{hovertext}<extra></extra>",
            colorbar=dict(title="AUC"),
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    words = figure_text(title) or f"Patterns of the {rows}s of the {_quantity(shown)}"
    figure.update_layout(
        template="plotly_white", height=220 + 26 * len(auc), margin=dict(t=110),
        title=f"{words}<br><sup>AUC over tokens; 0.5: no relation; *: q &lt; 0.05</sup>",
        yaxis_title="pattern",
    )  # fmt: skip
    return figure


@typed
def plot_pattern_llc(result: xr.Dataset) -> go.Figure:
    """What every component holds on each pattern's tokens beyond what it holds on others, as a map.

    ``result`` is from :func:`lens_slt.pattern_llc`. Values with an interval that leaves out zero
    are written in.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=8, length=64)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L1H1, L1H2", probes={"mix": text}, **how)
        >>> held = ls.pattern_llc(ls.per_token_llc(draws), ls.label_patterns(text))
        >>> ls.plot_pattern_llc(held).layout.title.text.split("<br>")[0]
        'Refined LLC on the tokens of patterns'
    """
    result = require(result, "pattern_llc", argument="result")
    contrast, error = (result[k].values.T for k in ("contrast", "contrast_se"))
    half = stats.t.ppf(ENDS[1], result.sizes["block"] - 1) * error
    names, patterns = (labels(result[dim].values) for dim in ("component", "pattern"))
    most = float(np.nanmax(np.abs(contrast), initial=1e-9))
    hover = [
        [
            f"{pattern}, {name}: λ̂ {level:.2f}, {value:+.2f} ± {wide:.2f} against other tokens"
            for name, level, value, wide in zip(names, *rows, strict=True)
        ]
        for pattern, *rows in zip(patterns, result["llc"].values.T, contrast, half, strict=True)
    ]
    figure = Figure(
        go.Heatmap(
            z=contrast, x=names, y=[name.replace("_", " ") for name in patterns], zmin=-most,
            zmax=most, colorscale="RdBu", reversescale=True, xgap=2, ygap=2,
            text=np.where(np.abs(contrast) > half, np.char.mod("%.1f", contrast), ""),
            texttemplate="%{text}", hovertext=hover, hovertemplate="%{hovertext}<extra></extra>",
            colorbar=dict(title="λ̂ − λ̂<br>elsewhere"),
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        template="plotly_white", height=220 + 26 * len(patterns), margin=dict(t=110),
        title="Refined LLC on the tokens of patterns<br><sup>mean there − mean on other tokens; "
        "written in where the 95 % interval of the draws leaves out 0</sup>",
        yaxis_title="pattern",
    )  # fmt: skip
    return figure


def _title(found: xr.Dataset, i: int) -> str:
    mode = found.isel(mode=i)
    words = f"mode {int(mode['mode'])}: {100 * float(mode['explained']):.1f} %"
    if "verdict" in mode:
        verdict = figure_text(mode["verdict"].values)
        words += f"<br><sup>{verdict}, angle {float(mode['angle']):.0f}°</sup>"
    return words


def _whitened(found: xr.Dataset) -> str:
    return ", noise-whitened" if found.attrs.get("whiten") else ""


def _quantity(found: xr.Dataset) -> str:
    return QUANTITIES.get(str(found.attrs.get("quantity")), "matrix")
