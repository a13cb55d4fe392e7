"""Figures of Bayes losses, WAIC and WBIC, and of the log likelihoods they are made of."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.colours import COLOURS
from lens_slt.report.figure import Figure, labels
from lens_slt.schema import require
from lens_slt.statistics import HALF_WIDTH
from lens_slt.text import figure_text

LOSSES = {
    "gibbs_training_loss": "Gibbs training",
    "bayes_training_loss": "Bayes training",
    "waic": "WAIC",
    "bayes_generalisation_loss": "Bayes generalisation",
    "gibbs_generalisation_loss": "Gibbs generalisation",
}


def plot_generalisation(result: xr.Dataset) -> go.Figure:
    """Losses of every component with 95 % intervals over the draws.

    ``result`` is from :func:`lens_slt.generalisation`.

    Example:
        >>> import lens_slt as ls, numpy as np
        >>> losses = np.random.default_rng(0).normal(size=(2, 40, 8))  # chain, draw, observation
        >>> figure = ls.plot_generalisation(ls.generalisation(losses, n_beta=8))
        >>> figure.layout.title.text.split("<br>")[0]
        "Losses in Bayes' sense, at β = 1"
    """
    result = require(result, "generalisation", argument="result")
    title = "Losses in Bayes' sense, at β = 1"
    return _dots(result, LOSSES, title, "loss, nats per observation")


def plot_wbic(result: xr.Dataset) -> go.Figure:
    """WBIC of every component with 95 % intervals over the draws, from :func:`lens_slt.wbic`.

    Example:
        >>> import lens_slt as ls, numpy as np
        >>> losses = np.random.default_rng(0).normal(size=(2, 40, 8))  # chain, draw, observation
        >>> figure = ls.plot_wbic(ls.wbic(losses, n_beta=8 / np.log(8)))
        >>> figure.layout.title.text.split("<br>")[0]
        'WBIC, at β = 1/log n'
    """
    result = require(result, "wbic", argument="result")
    return _dots(result, {"wbic": "WBIC"}, "WBIC, at β = 1/log n", "nats")


def plot_log_likelihood(values: xr.DataArray) -> go.Figure:
    """Mean log likelihood of the observations at every draw, a line for each chain.

    ``values`` is from :func:`lens_slt.log_likelihood`; chains that are not used are left out.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0", probes={"mix": text}, **how)
        >>> figure = ls.plot_log_likelihood(ls.log_likelihood(draws, "mix"))
        >>> figure.layout.title.text.split("<br>")[0]
        'Mean log likelihood at every draw'
    """
    values = require(values, "log_likelihood", argument="values")
    figure = Figure()
    for i, name in enumerate(values["component"].values):
        one = values.sel(component=name).mean("observation")
        for chain in one["chain"].values[one["used"].values]:
            figure.add_trace(
                go.Scatter(
                    x=one["draw"].values, y=one.sel(chain=chain).values, mode="lines",
                    line=dict(color=COLOURS[i % len(COLOURS)], width=1),
                    name=figure_text(str(name)), legendgroup=str(i),
                    showlegend=bool(chain == one["chain"].values[one["used"].values][0]),
                )
            )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=420, title="Mean log likelihood at every draw",
        xaxis_title="draw", yaxis_title=figure_text("nats per observation"),
    )  # fmt: skip
    return figure


def _dots(found: xr.Dataset, names: dict[str, str], title: str, axis: str) -> go.Figure:
    components = labels(found["component"].values)
    figure = Figure()
    for i, (name, words) in enumerate(names.items()):
        figure.add_trace(
            go.Scatter(
                x=found[name].values, y=components, mode="markers", name=words,
                marker=dict(color=COLOURS[i % len(COLOURS)], size=9),
                error_x=dict(array=HALF_WIDTH * found[f"{name}_se"].values, width=0),
            )
        )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=200 + 24 * len(components), margin=dict(t=100),
        title=f"{title}<br><sup>95 % intervals over draws</sup>", xaxis_title=axis,
    )  # fmt: skip
    return figure
