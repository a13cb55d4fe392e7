"""Figures of two models side by side."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.report.colours import COLOURS, NONE
from lens_slt.report.figure import Figure, labels
from lens_slt.report.plots import ROW_PIXELS
from lens_slt.report.results_said import carried_over, with_partners
from lens_slt.report.stacked import legend_below, titled
from lens_slt.schema import require
from lens_slt.structure.match import AMBIGUOUS, MATCHED, SHARED, UNTESTED

VERDICT_COLOURS = {
    "supported": COLOURS[2], "undecided": COLOURS[4], "contradicted": COLOURS[1], "no map": NONE,
}  # fmt: skip
MARKS = {MATCHED: "●", SHARED: "◐", AMBIGUOUS: "○", UNTESTED: "?"}


def plot_match(result: xr.Dataset) -> go.Figure:
    """Similarity of every component of one model to every one of another, matches marked.

    ``result`` is from :func:`lens_slt.match`.

    Example:
        >>> import lens_slt as ls
        >>> text = ls.load_tokens("mix", n_sequences=16, length=32)
        >>> models = map(ls.load_model, ("attn-2l", "attn-2l-seed1"))
        >>> one, other = (ls.attention_patterns(model, text) for model in models)
        >>> found = ls.match(one, other, n_null=20, n_bootstrap=20)
        >>> ls.plot_match(found).data[0].type
        'heatmap'
    """
    result = require(result, "match", argument="result")
    names, others = labels(result["component"].values), labels(result["other"].values)
    verdicts = dict(zip(names, map(str, result["verdict"].values), strict=True))
    partners = dict(zip(names, map(str, result["partner"].values), strict=True))
    marks = [
        [MARKS.get(verdicts[name], "") if partners[name] == other else "" for other in others]
        for name in names
    ]
    figure = Figure(
        go.Heatmap(
            z=result["similarities"].transpose("component", "other").values, x=others, y=names,
            zmin=-1, zmax=1, colorscale="RdBu_r", xgap=1, ygap=1, text=marks,
            texttemplate="%{text}", colorbar=dict(title="similarity", thickness=12),
            hovertemplate="%{y} and %{x}: %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="component of the other model", type="category", dtick=1)
    figure.update_yaxes(
        title_text="component", autorange="reversed", type="category", dtick=1,
    )  # fmt: skip
    titled(
        figure, with_partners(result),
        "correlation on the same tokens, corrected for noise; ● matched, ◐ shared: the "
        "partner of another, too; ○ ambiguous: resampled sequences give another partner; "
        "?: the likest, not tested; "
        f"{result.attrs['kinds'].replace(' ', ' and ').replace('_', ' ')}",
        ROW_PIXELS * len(names),
    )  # fmt: skip
    return figure


def plot_mean_attention(result: xr.Dataset) -> go.Figure:
    """Where every head attends on average over sequences, by distance to the token attended to.

    ``result`` is from :func:`lens_slt.attention_patterns`.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> figure = ls.plot_mean_attention(ls.attention_patterns(model, text, "L0H0, L0H1"))
        >>> figure.layout.title.text.split("<br>")[0]
        'Where heads attend'
    """
    result = require(result, "attention_patterns", argument="result")
    names = labels(result["component"].values)
    attention = result["attention"].transpose("component", "sequence", "query", "key").values
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
        f"mean attention over {result.sizes['sequence']} sequences and all positions that reach as "
        "far back",
        ROW_PIXELS * len(names),
    )  # fmt: skip
    return figure


def plot_match_family(result: xr.Dataset) -> go.Figure:
    """The same component in every model, one group a row, the most widespread first.

    ``result`` is from :func:`lens_slt.match_family`. Groups of one component are left out.

    Example:
        >>> import lens_slt as ls
        >>> text = ls.load_tokens("mix", n_sequences=8, length=32)
        >>> names = ("attn-2l", "attn-2l-seed1")
        >>> seen = {name: ls.attention_patterns(ls.load_model(name), text) for name in names}
        >>> figure = ls.plot_match_family(ls.match_family(seen, n_null=20, n_bootstrap=20))
        >>> figure.layout.xaxis.title.text
        'model'
    """
    result = require(result, "match_family", argument="result")
    shared = result.isel(group=result["n_models"].values > 1)
    models = labels(result["model_name"].values)
    rows = [str(group) for group in shared["group"].values]
    members, similarity = (shared[key].values for key in ("member", "similarity"))
    figure = Figure(
        go.Heatmap(
            z=similarity, x=models, y=rows, zmin=0, zmax=1, colorscale="Cividis", xgap=1, ygap=1,
            text=[labels(row) for row in members], texttemplate="%{text}",
            colorbar=dict(title="similarity", thickness=12),
            hovertemplate="%{x} %{text}: %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="model", type="category", dtick=1)
    figure.update_yaxes(title_text="group", autorange="reversed", type="category", dtick=1)
    everywhere = int((result["n_models"] == len(models)).sum())
    alone = int((result["n_models"] == 1).sum())
    titled(
        figure, f"All {len(models)} models have {everywhere} of {len(result['group'])} components",
        f"rows are groups of components that match; mean similarity to the others of the group; "
        f"{alone} components of any model match none",
        ROW_PIXELS * max(4, len(rows)),
    )  # fmt: skip
    return figure


def plot_transfer(result: xr.Dataset) -> go.Figure:
    """What trials in the other model say of each mapped circuit, and of random maps of it.

    ``result`` is the ``summary`` from :func:`lens_slt.transfer`.

    Example:
        >>> import lens_slt as ls
        >>> one, other = ls.load_model("attn-2l"), ls.load_model("attn-2l-seed1")
        >>> text = ls.load_tokens("mix", n_sequences=16, length=64)
        >>> found = ls.match(*(ls.attention_patterns(m, text) for m in (one, other)), n_null=20)
        >>> mine, few = ls.circuit("L0H2 -> L1H2.K", "induction"), dict(most_maps=1, n_null=2)
        >>> moved = ls.transfer(
        ...     [mine], found, other, text, **few, verdict_only=True, progress=False
        ... )
        >>> figure = ls.plot_transfer(moved.summary)
        >>> figure.layout.title.text.split("<br>")[0][2:]
        'of 1 circuit is supported where the match maps them'
    """
    result = require(result, "transfer", argument="result")
    rows = []
    for i in range(result.sizes["circuit"]):
        one = result.isel(circuit=i)
        ends = _parts(one["original"]), _parts(one["mapped"]) or "nothing"
        rows.append(f"{i + 1}. {' ⇒ '.join(ends)}: {one['verdict'].item()}")
    n = result["n_maps"].values
    figure = Figure()
    for word, colour in VERDICT_COLOURS.items():
        share = (result["map_verdict"] == word).sum("map").values / np.maximum(n, 1)
        figure.add_trace(
            go.Bar(
                y=labels(rows), x=share, name=word, orientation="h", marker_color=colour,
                hovertemplate=f"%{{x:.0%}} of random maps {word}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(barmode="stack", legend=legend_below(ROW_PIXELS * len(rows) * 2))
    figure.update_xaxes(title_text="share of random maps of the same layers", tickformat=".0%")
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)
    about = result.attrs
    titled(
        figure, carried_over(result).capitalize(),
        f"by chance {about['chance_rate']:.0%} (p {about['p']:.2g}); bars: verdicts of the same "
        "circuit under maps to the same layers",
        2 * ROW_PIXELS * len(rows),
    )  # fmt: skip
    return figure


def _parts(text: xr.DataArray) -> str:
    """A circuit without its name and pattern."""
    return str(text.values).rpartition(": ")[2]
