"""Figures of retrainings: what runs on other data do differently."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from scipy import stats

from lens_slt.arrays import FloatArray
from lens_slt.report.colours import COLOURS
from lens_slt.report.figure import labels
from lens_slt.report.stacked import stacked, titled
from lens_slt.schema import require
from lens_slt.statistics import ENDS, HALF_WIDTH
from lens_slt.training.verify_patterning import SHUFFLED, SURFACE, WISH

HEIGHT = 230  # pixels of a panel
SYMBOLS = {WISH: "circle", SHUFFLED: "x", SURFACE: "diamond-open"}


def plot_retrainings(result: xr.Dataset) -> go.Figure:
    """Every observable over training, each run in its colour, every seed a line.

    ``result`` is from :func:`lens_slt.retrainings` or :func:`lens_slt.developmental_ablation`,
    whose levels are dotted.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> runs, probes = {"all": None, "first": [1] + 7 * [0]}, {"text": ls.Probe(text)}
        >>> where = dict(steps=2, path=tempfile.mkdtemp(), seeds=[0], progress=False)
        >>> found = ls.retrainings(model, text, runs, probes, **where)
        >>> figure = ls.plot_retrainings(found)
        >>> figure.layout.title.text.split("<br>")[0]
        'Retrainings on other data'
    """
    result = require(result, "retrainings", "developmental_ablation", argument="result")
    names = [str(name) for name in result["observable"].values]
    figure, tall = stacked(names, [HEIGHT] * len(names))
    runs = [str(run) for run in result["run"].values]
    for row, name in enumerate(names, 1):
        for i, run in enumerate(runs):
            for j in range(result.sizes["seed"]):
                values = result["value"].sel(observable=name).isel(run=i, seed=j).values
                _line(figure, result["checkpoint"].values, values, run, i, row == 1 and j == 0, row)
        level = result.attrs.get(f"level of {name}")
        if level is not None:
            figure.add_hline(y=level, line=dict(dash="dot", width=1, color="grey"), row=row, col=1)
    figure.update_xaxes(title_text="step", row=len(names), col=1)
    n = result.sizes["seed"]
    line = f"{n} seed{'s' if n > 1 else ''} a run; runs with one seed see the same batches but for "
    line += "what their weights change"
    if "formed" in result:
        line += "; dotted: the level from which on it has formed"
    titled(figure, "Retrainings on other data", line, tall)
    return figure


def plot_patterning_check(result: xr.Dataset) -> go.Figure:
    """Predicted and realised changes, what of the wish came true, and how it came about.

    ``result`` is from :func:`lens_slt.verify_patterning`.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0", probes={"mix": text}, **how)
        >>> response = ls.data_response(draws, "mix", {"mix": "mix"})
        >>> where = dict(steps=1, path=tempfile.mkdtemp(), seeds=[0, 1], progress=False)
        >>> goal = (response, {"mix": -0.01}, {"mix": ls.Probe(text)})  # wish, measure
        >>> found = ls.verify_patterning(model, text, *goal, strengths=[1], **where)
        >>> figure = ls.plot_patterning_check(found)
        >>> figure.layout.title.text.split("<br>")[0]
        'Does data chosen for a wish bring it about?'
    """
    result = require(result, "patterning_check", argument="result")
    reach = float(stats.t.ppf(ENDS[1], result.sizes["seed"] - 1))  # of a mean over seeds
    wished = [str(o) for o in result["observable"].values[np.isfinite(result["wish"].values)]]
    titles = ["realised over predicted change", "share of the wish that came true"]
    titles += [f"change of {name} against the usual data" for name in wished]
    figure, tall = stacked(titles, [HEIGHT] * len(titles))
    for i, name in enumerate(wished):
        one = result.sel(observable=name)
        figure.add_trace(
            go.Scatter(
                x=one["predicted"].values, y=one["realised"].values, mode="markers",
                name=labels([name])[0], legend="legend",
                marker=dict(size=7, color=COLOURS[i % len(COLOURS)]),
                error_x=dict(array=HALF_WIDTH * one["predicted_se"].values, thickness=1, width=3),
                error_y=dict(array=reach * one["realised_se"].values, thickness=1, width=3),
            ),
            row=1, col=1,
        )  # fmt: skip
    strengths = result["strength"].values
    for i, kind in enumerate(map(str, result["kind"].values)):
        figure.add_trace(
            go.Scatter(
                x=strengths, y=result["share"].sel(kind=kind).values, name=kind, mode="markers",
                error_y=dict(
                    array=reach * result["share_se"].sel(kind=kind).values, thickness=1, width=3
                ),
                marker=dict(size=8, symbol=SYMBOLS[kind], color=COLOURS[i % len(COLOURS)]),
            ),
            row=2, col=1,
        )  # fmt: skip
    for row, name in enumerate(wished, 3):
        _courses(figure, result.sel(observable=name), row)
    for row in range(1, len(titles) + 1):
        figure.add_hline(y=0, line=dict(dash="dot", width=1, color="grey"), row=row, col=1)
    figure.update_xaxes(title_text="predicted change", row=1, col=1)
    figure.update_yaxes(title_text="realised", row=1, col=1)
    figure.update_xaxes(title_text="strength", row=2, col=1)
    figure.update_xaxes(title_text="step", row=len(titles), col=1)
    n = result.sizes["seed"]
    titled(
        figure, "Does data chosen for a wish bring it about?",
        f"changes after {result.attrs['steps']} steps against runs on the usual data with the same "
        f"seed; means of {n} seeds, bars 95 % by their spread; controls exchange the weights "
        "among sequences; dashed: negative strengths",
        tall,
    )  # fmt: skip
    return figure


def _courses(figure: go.Figure, one: xr.Dataset, row: int) -> None:
    """Mean change over seeds of one observable, of every run."""
    steps = one["checkpoint"].values
    for i, kind in enumerate(map(str, one["kind"].values)):
        for strength in one["strength"].values:
            values = one["change"].sel(kind=kind, strength=strength).mean("seed").values
            if np.isfinite(values).any():
                figure.add_trace(
                    go.Scatter(
                        x=steps, y=values, mode="lines", showlegend=False,
                        line=dict(color=COLOURS[i % len(COLOURS)], width=1.5,
                                  dash="solid" if strength > 0 else "dash"),
                        name=f"{kind} {strength:+g}",
                    ),
                    row=row, col=1,
                )  # fmt: skip


def _line(
    figure: go.Figure, steps: FloatArray, values: FloatArray, run: str, colour: int, named: bool,
    row: int,
) -> None:  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=steps, y=values, mode="lines", name=labels([run])[0], legendgroup=run,
            showlegend=named, line=dict(color=COLOURS[colour % len(COLOURS)], width=1.2),
        ),
        row=row, col=1,
    )  # fmt: skip
