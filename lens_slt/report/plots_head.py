"""Figures of one head."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.figure import Figure, labels
from lens_slt.schema import require

MOST = 64  # tokens of a sequence
DECIMALS = 3


def plot_head_attention(
    result: xr.Dataset, name: str, *, texts: list[str] | None = None, sequence: int = 0
) -> go.Figure:
    """Where one head attends on one sequence, from every token (down) to the ones before it.

    Args:
        result: from :func:`lens_slt.attention_patterns`.
        name: of the head.
        texts: what the tokens of the sequence say.
        sequence: which one.
    """
    result = require(result, "attention_patterns", argument="result")
    one = result["attention"].sel(component=name).isel(sequence=sequence).values[:MOST, :MOST]
    n = len(one)
    value = np.where(np.tri(n, dtype=bool), one.astype(float), np.nan).round(DECIMALS)
    words = labels(texts[:n]) if texts is not None else [""] * n
    token = np.array([f"{i} {word}" for i, word in enumerate(words)])
    figure = Figure(
        go.Heatmap(
            z=value, zmin=0, zmax=1, colorscale="Cividis", colorbar=dict(title="attention"),
            x=np.arange(n), y=np.arange(n), hoverongaps=False,
            text=[[f"from {query} to {key}" for key in token] for query in token],
            hovertemplate="%{text}: %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="attended to (position)")
    figure.update_yaxes(title_text="from (position)", autorange="reversed")
    figure.update_layout(
        template="plotly_white", height=430,
        title=f"Attention pattern of {labels([name])[0]}<br><sup>the first {n} tokens of one "
        "sequence; rows sum to 1</sup>",
    )  # fmt: skip
    return figure
