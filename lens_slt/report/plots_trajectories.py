"""Figures of heads over training: their clusters, when they differentiate, what migrates."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.differentiation import FROM_START
from lens_slt.development.migration import UNSHOWN
from lens_slt.development.multigram_effects import MULTIGRAM
from lens_slt.models.names import is_head
from lens_slt.report.colours import COLOURS
from lens_slt.report.dots import dots
from lens_slt.report.figure import Figure, labels
from lens_slt.report.plots import ROW_PIXELS
from lens_slt.report.stacked import legend_below, stacked, titled
from lens_slt.report.time_axis import DOUBT, PANEL_PIXELS, STEP_AXIS, band, step_axis
from lens_slt.schema import require
from lens_slt.statistics import HALF_WIDTH
from lens_slt.text import figure_text

SAMPLED_ON = {"llc": "sampling tokens"}  # what the refinement without a probe is called
CELL = 17  # pixels, of a pair of heads
ABOVE_BELOW = {"above": "▲", "below": "▼"}  # the band


def plot_trajectories(result: xr.Dataset) -> go.Figure:
    """Mean curves of the clusters of heads with 95 % bands, and how often two heads go together.

    ``result`` is from :func:`lens_slt.head_trajectories`. One panel a refinement; below, the share
    of clusterings that put two heads into one cluster, heads in the order of clusters, with what
    they do. Without clusters there is only the second.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([0, 300, 1000, 1800, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=12, chains=2, steps_per_draw=1), progress=False)
        >>> draws = {step: ls.sample(run.load(step), text, "L1H*", **how) for step in run}
        >>> curves = ls.join_checkpoints({step: ls.refined_llc(one) for step, one in draws.items()})
        >>> figure = ls.plot_trajectories(ls.head_trajectories(curves, n_bootstrap=10))
        >>> figure.layout.title.text.split("<br>")[0]
        'Trajectories of heads'
    """
    result = require(result, "head_trajectories", argument="result")
    names = [_refinement(name) for name in result["refinement"].values]
    names = names if result.sizes["label"] else []
    order = np.lexsort((np.arange(result.sizes["component"]), result["cluster"].values))
    heights = [PANEL_PIXELS] * len(names) + [CELL * len(order)]
    figure, height = stacked([*names, "share of clusterings that join two"], heights)
    steps = result[CHECKPOINT].values
    for row in range(len(names)):
        for i, label in enumerate(result["label"].values):
            one = result.isel(refinement=row, label=i)
            value, wide = one["centre"].values, HALF_WIDTH * one["centre_se"].values
            size = int(one["size"])
            name = f"cluster {label} ({size} head{'s' if size > 1 else ''})"
            for trace in band(steps, value, value - wide, value + wide, name, i, legend=row == 0):
                figure.add_trace(trace, row=row + 1, col=1)
        step_axis(figure, steps, row=row + 1, col=1)
        figure.update_yaxes(title_text="mean λ̂", row=row + 1, col=1)
    last = len(heights)
    figure.add_trace(
        _together(result.isel(component=order, other_component=order)), row=last, col=1
    )
    place = figure.layout[f"yaxis{last if last > 1 else ''}"].domain
    figure.update_traces(
        selector=dict(type="heatmap"),
        colorbar=dict(thickness=10, len=place[1] - place[0], y=sum(place) / 2),
    )
    figure.update_xaxes(tickangle=-90, type="category", dtick=1, row=last, col=1)
    figure.update_yaxes(autorange="reversed", type="category", dtick=1, row=last, col=1)
    titled(
        figure, "Trajectories of heads",
        f"{result.attrs['verdict']}; lines: means over the heads of a cluster, with 95 % bands; "
        f"below: heads, what they do, and their cluster; {STEP_AXIS}",
        height,
    )  # fmt: skip
    return figure


def _together(found: xr.Dataset) -> go.Heatmap:
    kinds = found["head_type"].values if "head_type" in found else None
    heads = [
        (f"{name} {kinds[i]}" if kinds is not None else str(name))
        + ("" if cluster < 0 else f" ({cluster})")
        for i, (name, cluster) in enumerate(
            zip(found["component"].values, found["cluster"].values, strict=True)
        )
    ]
    return go.Heatmap(
        z=found["together"].values, x=labels(found["component"].values), y=labels(heads), zmin=0,
        zmax=1, colorscale="Cividis", xgap=1, ygap=1,
        hovertemplate="%{y} and %{x}: %{z:.2f}<extra></extra>",
    )  # fmt: skip


def plot_differentiation(result: xr.Dataset) -> go.Figure:
    """When every head leaves its band for good, with 95 % intervals, one symbol a refinement.

    ``result`` is from :func:`lens_slt.differentiation`. A row without a symbol is a head that stays
    in its band, or comes back; an open symbol is one that is outside from the first checkpoint on.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([0, 1000, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=12, chains=2, steps_per_draw=1), progress=False)
        >>> draws = {step: ls.sample(run.load(step), text, "L1H2", **how) for step in run}
        >>> curves = ls.join_checkpoints({step: ls.refined_llc(one) for step, one in draws.items()})
        >>> figure = ls.plot_differentiation(ls.differentiation(curves, against="start"))
        >>> figure.layout.title.text.split("<br>")[0]
        'When each head differentiates'
    """
    result = require(result, "differentiation", argument="result")
    heads, refinements = labels(result["component"].values), result["refinement"].values
    steps, n = result[CHECKPOINT].values, len(refinements)
    figure = Figure()
    for i, name in enumerate(refinements):
        one = result.isel(refinement=i)
        x, low, high = (np.log1p(one[key].values) for key in ("step", "step_low", "step_high"))
        rows = np.arange(len(heads)) + (i + 1) / (n + 1) - 0.5
        words = [_onset(one.isel(component=k), head) for k, head in enumerate(heads)]
        trace = dots(
            x, np.where(np.isfinite(low), low, x), np.where(np.isfinite(high), high, x), rows,
            _refinement(name), i, clear=one["verdict"].values != FROM_START, said=words,
        )  # fmt: skip
        trace.update(
            mode="markers+text",
            textposition="middle right",
            hovertext=trace.text,
            text=[ABOVE_BELOW.get(str(side), "") for side in one["side"].values],
            textfont=dict(size=11, color=COLOURS[i % len(COLOURS)]),
            hovertemplate="%{hovertext}<extra></extra>",
        )
        figure.add_trace(trace)
    step_axis(figure, steps)
    ends = np.log1p(steps[[0, -1]])
    edge = 0.03 * (ends[1] - ends[0])
    figure.update_xaxes(title_text="training step", range=[ends[0] - edge, ends[1] + 2 * edge])
    figure.update_yaxes(
        tickvals=list(range(len(heads))), ticktext=heads, range=[len(heads) - 0.4, -0.6],
        zeroline=False,
    )  # fmt: skip
    own = result.attrs["against"] == "start"
    against = "of its own start" if own else "of the other heads of its layer"
    height = max(ROW_PIXELS, 12 * n) * len(heads)
    figure.update_layout(legend=legend_below(height))
    titled(
        figure, "When each head differentiates",
        f"it leaves for good the band {against}; ▲ above it, ▼ below; "
        "lines: 95 % intervals; open: outside from the start; "
        f"no symbol: stays, or comes back; {STEP_AXIS}",
        height,
    )  # fmt: skip
    return figure


def _onset(one: xr.Dataset, head: str) -> str:
    step, low, high = (float(one[key]) for key in ("step", "step_low", "step_high"))
    when = "" if np.isnan(step) else f", step {step:.0f}"
    when += "" if np.isnan(low) else f" ({low:.0f}–{high:.0f})"
    return f"{head} {figure_text(one['verdict'].item())}{when}"


def plot_migration(result: xr.Dataset) -> go.Figure:
    """Whether multigrams leave layer 0: λ̂ of layers, and changes of heads with 95 % intervals.

    ``result`` is from :func:`lens_slt.migration`. Means over the heads of each layer, the peak of
    layer 0 in colour; then the change of every head from there to the end, of λ̂ and, where heads
    were ablated, of what the ablation costs on multigrams. Filled: the change is clear.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([0, 300, 1000, 1800, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> probes = {"one_layer": ls.Probe(text, reference=ls.load_model("attn-1l"))}
        >>> how = dict(
        ...     settings=ls.Settings(draws=12, chains=2, steps_per_draw=1),
        ...     progress=False,
        ...     probes=probes,
        ... )
        >>> draws = {step: ls.sample(run.load(step), text, "L0H2, L1H2", **how) for step in run}
        >>> curves = ls.join_checkpoints({step: ls.refined_llc(one) for step, one in draws.items()})
        >>> figure = ls.plot_migration(ls.migration(curves))
        >>> figure.layout.title.text.split("<br>")[0]
        'Migration of multigrams'
    """
    result = require(result, "migration", argument="result")
    heads = [str(name) for name in result["component"].values if is_head(str(name))]
    layers = [str(name) for name in result["component"].values if not is_head(str(name))]
    changes = [("change of λ̂", result, "change", "word")]
    if "effect_change" in result:
        ablated = result.sel(pattern=MULTIGRAM)
        changes.append(
            ("change of ablation effects (nats)", ablated, "effect_change",
             "effect_word")
        )  # fmt: skip
    rows = ROW_PIXELS * len(heads)
    figure, height = stacked(["mean λ̂ over heads", *(c[0] for c in changes)],
                      [PANEL_PIXELS + 40, *[rows] * len(changes)])  # fmt: skip
    steps = result[CHECKPOINT].values
    for i, name in enumerate(layers):
        one = result.sel(component=name)
        value, wide = one["llc"].values, HALF_WIDTH * one["se"].values
        for trace in band(steps, value, value - wide, value + wide, name, i, legend=True):
            figure.add_trace(trace, row=1, col=1)
    _mark_times(figure, result)
    step_axis(figure, steps, row=1, col=1)
    figure.update_yaxes(title_text="mean λ̂", row=1, col=1)
    for row, (_, one, key, word) in enumerate(changes, start=2):
        for i, layer in enumerate(layers):
            own = [name for name in heads if name.startswith(layer.removesuffix("*"))]
            figure.add_trace(_changes(one.sel(component=own), key, word, i), row=row, col=1)
        figure.add_vline(x=0, line=dict(dash="dot", width=1, color="grey"), row=row, col=1)
        figure.update_yaxes(
            categoryorder="array", categoryarray=labels(heads[::-1]), dtick=1, row=row, col=1
        )
    effects = "; effects: of heads on the loss of multigrams" if len(changes) > 1 else ""
    before, after = (int(result.attrs[f"{key}_step"]) for key in ("before", "after"))
    titled(
        figure, "Migration of multigrams",
        f"{result.attrs['verdict']}; λ̂ refined by {result.attrs['probe']}; changes from step "
        f"{before} to {after} (dotted), with 95 % bands and intervals; in colour: interval of "
        f"layer 0's peak; filled: clear{effects}; {STEP_AXIS}",
        height,
    )  # fmt: skip
    return figure


def _changes(one: xr.Dataset, key: str, word: str, i: int) -> go.Scatter:
    """Changes of the heads of a layer; filled where they are clear."""
    heads, words = one["component"].values, one[word].values
    value, low, high = (one[f"{key}{end}"].values for end in ("", "_low", "_high"))
    said = [f"{name} {what}" for name, what in zip(heads, words, strict=True)]
    return dots(
        value, low, high, labels(heads), f"heads of layer {i}", i, clear=words != UNSHOWN,
        said=said, legend=False,
    )  # fmt: skip


def _mark_times(figure: go.Figure, found: xr.Dataset) -> None:
    """The two checkpoints that are compared, and the interval of the peak."""
    attrs = found.attrs
    low, high, *compared = np.log1p(
        [attrs[key] for key in ("peak_low", "peak_high", "before_step", "after_step")]
    )
    figure.add_vrect(x0=low, x1=high, fillcolor=DOUBT, line_width=0, layer="below", row=1, col=1)
    for at in compared:
        line = dict(dash="dot", width=1, color="grey")
        figure.add_vline(x=float(at), line=line, layer="below", row=1, col=1)


def _refinement(name: object) -> str:
    return SAMPLED_ON.get(str(name), str(name))
