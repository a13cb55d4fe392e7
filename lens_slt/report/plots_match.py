"""Figures of two models side by side."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.figure import Figure, labels
from lens_slt.report.plots import ROW_PIXELS
from lens_slt.report.stacked import titled
from lens_slt.schema import require

MARKS = {"matched": "●", "ambiguous": "○"}


def plot_match(found: xr.Dataset) -> go.Figure:
    """Similarity of every component of one model to every one of another, matches marked.

    ``found`` is from :func:`lens_slt.match`.
    """
    found = require(found, "match", argument="found")
    names, others = labels(found["component"].values), labels(found["other"].values)
    verdicts = dict(zip(names, map(str, found["verdict"].values), strict=True))
    partners = dict(zip(names, map(str, found["partner"].values), strict=True))
    marks = [
        [MARKS.get(verdicts[name], "") if partners[name] == other else "" for other in others]
        for name in names
    ]
    figure = Figure(
        go.Heatmap(
            z=found["similarities"].transpose("component", "other").values, x=others, y=names,
            zmin=-1, zmax=1, colorscale="RdBu_r", xgap=1, ygap=1, text=marks,
            texttemplate="%{text}", colorbar=dict(title="similarity", thickness=12),
            hovertemplate="%{y} and %{x}: %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="component of the other model", type="category", dtick=1)
    figure.update_yaxes(
        title_text="component", autorange="reversed", type="category", dtick=1,
    )  # fmt: skip
    n = sum(verdict == "matched" for verdict in verdicts.values())
    titled(
        figure, f"{n} of {len(names)} components have a match",
        "correlation on the same tokens, corrected for noise; ● matched, ○ ambiguous: resampled "
        f"sequences give another partner; {found.attrs['kinds'].replace('_', ' ')}",
        ROW_PIXELS * len(names),
    )  # fmt: skip
    return figure


def plot_mean_attention(found: xr.Dataset) -> go.Figure:
    """Where every head attends on average over sequences, by distance to the token attended to.

    ``found`` is from :func:`lens_slt.attention_patterns`.
    """
    found = require(found, "attention_patterns", argument="found")
    names = labels(found["component"].values)
    attention = found["attention"].transpose("component", "sequence", "query", "key").values
    mean = np.nanmean(attention, axis=1)
    n = mean.shape[-1]
    by_distance = [[float(np.nanmean(np.diagonal(one, -d))) for d in range(n)] for one in mean]
    figure = Figure(
        go.Heatmap(
            z=by_distance, x=np.arange(n), y=names, zmin=0, zmax=1, colorscale="Cividis", ygap=1,
            colorbar=dict(title="attention", thickness=12),
            hovertemplate="%{y}, %{x} tokens back: %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="tokens back (0: the token itself)")
    figure.update_yaxes(title_text="head", autorange="reversed", type="category", dtick=1)
    titled(
        figure, "Where heads attend",
        f"mean attention over {found.sizes['sequence']} sequences and all positions that reach as "
        "far back",
        ROW_PIXELS * len(names),
    )  # fmt: skip
    return figure
