"""Figures of data chosen for a wish."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.colours import COLOURS
from lens_slt.report.figure import Figure, labels
from lens_slt.report.plots import ROW_PIXELS
from lens_slt.report.stacked import stacked, titled
from lens_slt.schema import require
from lens_slt.statistics import HALF_WIDTH

HEIGHT = 260  # pixels


def plot_patterning(result: xr.Dataset) -> go.Figure:
    """The weight of every sequence, and what it is predicted to change.

    ``result`` is from :func:`lens_slt.patterning`.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0", probes={"mix": text}, **how)
        >>> response = ls.data_response(draws, "mix", {"first": ls.Shift("mix", [1] + 7 * [0])})
        >>> figure = ls.plot_patterning(ls.patterning(response, {"first": -0.01}))
        >>> figure.layout.title.text.split("<br>")[0]
        'Data for a wish'
    """
    result = require(result, "patterning", argument="result")
    names = labels(result["observable"].values)
    heights = (HEIGHT, max(120, ROW_PIXELS * len(names)))
    figure, tall = stacked(("weight of the sequences", "change of observables"), heights)
    weight = np.sort(result["weight"].values)[::-1]
    figure.add_trace(
        go.Scatter(
            x=np.arange(len(weight)), y=weight, mode="markers", showlegend=False,
            marker=dict(size=4, color=COLOURS[0]),
            hovertemplate="rank %{x}: %{y:.2f}<extra></extra>",
        ),
        row=1, col=1,
    )  # fmt: skip
    figure.add_hline(y=1, line=dict(dash="dot", width=1, color="grey"), row=1, col=1)
    strength = float(result.attrs["strength"])
    figure.add_trace(
        go.Scatter(
            x=strength * result["wish"].values, y=names, name="wish", mode="markers",
            marker=dict(symbol="line-ns-open", size=14, color=COLOURS[1]),
        ),
        row=2, col=1,
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=result["predicted"].values, y=names, name="predicted", mode="markers",
            error_x=dict(array=HALF_WIDTH * result["predicted_se"].values, thickness=1, width=3),
            marker=dict(size=7, color=COLOURS[0]),
            hovertemplate="%{y}: %{x:.3f} nats<extra></extra>",
        ),
        row=2, col=1,
    )  # fmt: skip
    figure.update_xaxes(title_text="sequences, the heaviest first", row=1, col=1)
    figure.update_yaxes(title_text="weight", row=1, col=1)
    figure.update_xaxes(title_text="nats per token", row=2, col=1)
    figure.update_yaxes(autorange="reversed", type="category", row=2, col=1)
    titled(
        figure, "Data for a wish",
        f"worth {result.attrs['effective_sequences']:.0f} of {len(weight)} equal sequences, "
        f"{result.attrs['clipped']:.0%} of the weight cut off at 0; predictions to first order, "
        f"bars 95 %; posterior of {result.attrs['component']}, {result.attrs['certificate']}",
        tall,
    )  # fmt: skip
    return figure


def plot_data_response(result: xr.Dataset) -> go.Figure:
    """How much each observable answers to the weight of each sequence.

    ``result`` is from :func:`lens_slt.data_response`.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0", probes={"mix": text}, **how)
        >>> figure = ls.plot_data_response(ls.data_response(draws, "mix", {"all": "mix"}))
        >>> figure.layout.title.text.split("<br>")[0]
        'How observables answer to the data'
    """
    result = require(result, "data_response", argument="result")
    names = labels(result["observable"].values)
    value = result["response"].values
    largest = float(np.abs(value).max()) or 1.0
    figure = Figure(
        go.Heatmap(
            z=value, x=result["sequence"].values, y=names, zmin=-largest, zmax=largest,
            colorscale="RdBu_r", colorbar=dict(title="nats", thickness=12),
            hovertemplate="%{y}, sequence %{x}: %{z:.2g} nats<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="candidate sequence")
    figure.update_yaxes(autorange="reversed", type="category", dtick=1)
    noise = float(np.sqrt((result["se"].values ** 2).mean()))
    titled(
        figure, "How observables answer to the data",
        f"change per relative change of a sequence's weight, to first order; standard error "
        f"{noise:.2g} nats on average; posterior of {result.attrs['component']}, "
        f"{result.attrs['certificate']}",
        ROW_PIXELS * len(names) + 60,
    )  # fmt: skip
    return figure
