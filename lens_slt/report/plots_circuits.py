"""Figures of circuits and of their trials."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
import plotly.graph_objects as go
import xarray as xr

from lens_slt.arguments import typed
from lens_slt.circuits.evidence import Evidence
from lens_slt.circuits.graph import LOOKS, circuit_graph, edge_label
from lens_slt.circuits.hypothesis import CircuitHypothesis
from lens_slt.circuits.trial import Trial
from lens_slt.report.colours import COLOURS, DASHES, HEAD_TYPE_COLOURS, SYMBOLS
from lens_slt.report.figure import Figure, labels
from lens_slt.report.plots import ROW_PIXELS
from lens_slt.report.stacked import stacked, titled
from lens_slt.schema import require
from lens_slt.text import figure_text

DASH_NAMES = {"solid": "solid", "dashed": "dash", "dotted": "dot"}
OUTCOME_SYMBOLS = {"held": "circle", "failed": "x", "undecided": "circle-open",
                   "noted": "diamond-open"}  # fmt: skip
NODE_SYMBOLS = {
    "head": "circle", "mlp": "diamond", "embedding": "triangle-right", "logits": "square",
    "other": "circle",
}  # fmt: skip
CLEAR = 0.3  # of a line from nodes that it does not end in
Places = dict[str, tuple[float, float]]
VOTE_COLOURS = {**{word: look[0] for word, look in LOOKS.items()}, "noted": "#777777"}


@typed
def plot_circuit(
    circuit: Trial | CircuitHypothesis, behaviour: xr.Dataset | None = None
) -> go.Figure:
    """The circuit as a graph, layers from left to right; what failed is dashed.

    ``behaviour`` from :func:`lens_slt.behaviour_scores` adds the types of heads.

    Example:
        >>> import lens_slt as ls
        >>> mine = ls.circuit("L0H2 -> L1H2.K -> logits", pattern="induction")
        >>> figure = ls.plot_circuit(mine)
        >>> figure.layout.title.text.split("<br>")[0]
        'Circuit for induction'
    """
    graph = circuit_graph(circuit, behaviour)
    place = node_places(graph)
    units = figure_text(graph.graph["units"])
    figure = Figure()
    _draw_edges(figure, graph, place, units)
    _draw_nodes(figure, graph, place, units)
    xs, ys = zip(*place.values(), strict=True)
    bends = [y for trace in figure.data for y in trace.y]
    low, high = min(*ys, *bends), max(*ys, *bends)
    figure.update_xaxes(visible=False, range=[-0.5, max(xs) + 0.5])
    figure.update_yaxes(visible=False, range=[low - 0.8, high + 0.6])
    verdict = f": {circuit.verdict}" if isinstance(circuit, Trial) else ""
    what = figure_text(f"{graph.graph['pattern']}{verdict}")
    shapes = "; ".join(
        f"{NODE_SYMBOLS[kind].split('-')[0]}: {word}"
        for kind, word in (("mlp", "MLP"), ("embedding", "embedding"))
        if any(node["kind"] == kind for _, node in graph.nodes(data=True))
    )
    words = ["layers from left to right", shapes, "solid: holds, dashed: fails, dotted: undecided"]
    words.append(f"in {units}: what its ablation costs" if units else "")
    figure.update_layout(
        template="plotly_white", height=int(260 + 130 * (high - low)),
        title=f"Circuit for {what}<br><sup>{'; '.join(filter(None, words))}</sup>",
    )  # fmt: skip
    return figure


def _draw_edges(figure: Figure, graph: nx.MultiDiGraph, place: Places, units: str) -> None:
    """Lines with arrows and what they read."""
    between: dict[tuple[str, str], int] = {}
    for source, target, edge in graph.edges(data=True):
        colour, dash = LOOKS[edge["outcome"]]
        # Several edges between two nodes bend away from each other, all from nodes in between.
        shift = 0.25 * between.get((source, target), 0)
        between[source, target] = between.get((source, target), 0) + 1
        (x0, y0), (x1, y1) = place[source], place[target]
        bend = bend_of(place, source, target, shift)
        label = edge_label(edge)
        words = labels([f"{source}→{target}", label or "logits", edge["outcome"]])
        if edge["effect"] is not None:
            words.append(f"{edge['effect']:.2f} {units}")
        figure.add_trace(
            go.Scatter(
                x=[x0, bend[0], x1], y=[y0, bend[1], y1],
                mode="lines+text", text=labels(["", label, ""]),
                textposition="top center",
                line=dict(color=colour, width=2.5, dash=DASH_NAMES[dash]),
                showlegend=False,
                hovertemplate=f"{words[0]} {', '.join(filter(None, words[1:]))}<extra></extra>",
            )
        )  # fmt: skip
        figure.add_annotation(
            x=x1, y=y1, ax=(bend[0] + 2 * x1) / 3, ay=(bend[1] + 2 * y1) / 3, text="",
            xref="x", yref="y", axref="x", ayref="y", arrowhead=2, arrowcolor=colour,
            arrowwidth=2, standoff=22,
        )  # fmt: skip


def _draw_nodes(figure: Figure, graph: nx.MultiDiGraph, place: Places, units: str) -> None:
    """Symbols with names, types and effects."""
    for name, node in graph.nodes(data=True):
        colour, _ = LOOKS[node["outcome"]]
        words = labels([node["head_type"], node["outcome"]])
        if node["effect"] is not None:
            words.append(f"{node['effect']:.2f} {units}")
        said, label = ", ".join(filter(None, words)), figure_text(name)
        figure.add_trace(
            go.Scatter(
                x=[place[name][0]], y=[place[name][1]], mode="markers+text",
                text=[f"<b>{label}</b><br>{said}"], textposition="bottom center", showlegend=False,
                cliponaxis=False,
                marker=dict(
                    size=26, color=HEAD_TYPE_COLOURS.get(node["head_type"], "white"),
                    line=dict(color=colour, width=4),
                    symbol=NODE_SYMBOLS[node["kind"]],
                ),
                hovertemplate=f"{label}: {said or 'component'}<extra></extra>",
            )
        )  # fmt: skip


def node_places(graph: nx.MultiDiGraph) -> Places:
    """Where nodes are drawn: along the residual stream, MLPs below the heads."""
    nodes = dict(graph.nodes(data=True))
    depths = sorted({node["depth"] for node in nodes.values()})
    columns = [[name for name in nodes if nodes[name]["depth"] == depth] for depth in depths]
    low = -(max(len(names) for names in columns) - 1) / 2
    place = {}
    for x, names in enumerate(columns):
        for i, name in enumerate(names):
            below = nodes[name]["kind"] == "mlp"
            place[name] = float(x), low - 1 if below else (len(names) - 1) / 2 - i
    return place


def bend_of(place: Places, source: str, target: str, shift: float) -> tuple[float, float]:
    """Where an edge bends so that it does not run through other nodes."""
    (x0, y0), (x1, y1) = place[source], place[target]
    middle = (x0 + x1) / 2
    others = [place[name] for name in place if name not in (source, target)]

    def clear(y: float) -> bool:
        line = [x0, middle, x1], [y0, y, y1]
        return all(abs(np.interp(x, *line) - at) > CLEAR for x, at in others if x0 < x < x1)

    tried = [(y0 + y1) / 2 + shift + more for more in (0, 0.4, -0.4, 0.8, -0.8, 1.2, -1.2)]
    return middle, next(filter(clear, tried), tried[0])


@typed
def plot_evidence(trial: Trial) -> go.Figure:
    """Every effect of a trial with its 95 % interval, beside the middle 95 % of its null.

    What votes stands above, in colour; what is only noted below, in grey.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> mine = ls.circuit("L1H2", pattern="induction")
        >>> trial = ls.cross_check(model, text, mine, n_null=10, verdict_only=True, progress=False)
        >>> figure = ls.plot_evidence(trial)
        >>> figure.layout.title.text.split("<br>")[0]
        'Evidence: contradicted'
    """
    metric = trial.settings["units"]
    panels = [
        (votes, unit)
        for votes in (True, False)
        for unit in dict.fromkeys((metric, "share"))
        if any(e.unit == unit and e.votes == votes for e in trial.evidence)
    ]
    rows = [
        [e for e in trial.evidence if (e.votes, e.unit) == key and np.isfinite(e.effect)]
        for key in panels
    ]
    titles = ["What votes" if votes else "Noted, without a vote" for votes, _ in panels]
    figure, tall = stacked(titles, [(ROW_PIXELS + 6) * (len(shown) + 1) for shown in rows])
    for row, ((_, unit), shown) in enumerate(zip(panels, rows, strict=True), 1):
        for trace in _effects(shown):
            figure.add_trace(trace, row=row, col=1)
        effect = f"effect ({figure_text(unit)} per token)"
        title = effect if unit == metric else "share of the pattern's loss"
        figure.update_xaxes(title_text=title, zeroline=True, row=row, col=1)
        figure.update_yaxes(autorange="reversed", row=row, col=1)
    titled(
        figure, f"Evidence: {trial.verdict}",
        "filled circle: holds; cross: fails; open circle: undecided; open grey diamond: noted "
        "without a vote; grey bar: middle 95 % of the null",
        tall,
    )  # fmt: skip
    return figure


def _effects(shown: Sequence[Evidence]) -> list[go.Scatter]:
    """Nulls as bars, and before them effects with their intervals."""
    names = labels(e.test if e.part == "circuit" else f"{e.test}: {e.part}" for e in shown)
    nulls = [
        go.Scatter(
            x=[one.null_low, one.null_high], y=[name, name], mode="lines",
            line=dict(color="lightgrey", width=12), showlegend=False,
            hovertemplate=f"null, middle 95 %: {figure_text(one.null)}<extra></extra>",
        )
        for name, one in zip(names, shown, strict=True)
        if np.isfinite(one.null_low)
    ]  # fmt: skip
    looks = [look_of(e) for e in shown]
    effects = go.Scatter(
        x=[e.effect for e in shown], y=names, mode="markers", showlegend=False,
        error_x=dict(
            array=[e.high - e.effect for e in shown],
            arrayminus=[e.effect - e.low for e in shown], symmetric=False, thickness=1.5,
            color="#777777" if "noted" in looks else "#000000",
        ),
        marker=dict(
            size=10, symbol=[OUTCOME_SYMBOLS[look] for look in looks],
            color=[VOTE_COLOURS[look] for look in looks], line=dict(width=1.5),
        ),
        text=labels(f"{look}: {e.words}" for look, e in zip(looks, shown, strict=True)),
        hovertemplate="%{y}: %{x:.3f}<br>%{text}<extra></extra>",
    )  # fmt: skip
    return [*nulls, effects]


def look_of(one: Evidence) -> str:
    """The outcome that a piece of evidence is drawn as: what has no vote looks like none."""
    return one.outcome if one.votes else "noted"


def plot_faithfulness(result: Trial | xr.Dataset) -> go.Figure:
    """Share of the pattern's loss that growing circuits recover, beside random orders.

    ``result`` is a trial, or from :func:`lens_slt.faithfulness_curve`.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> everywhere = ls.label_patterns(text).sel(pattern="word_part") | True
        >>> found = ls.faithfulness_curve(model, text, everywhere, ["L0H2"], n_random=2)
        >>> figure = ls.plot_faithfulness(found)
        >>> figure.layout.title.text.split("<br>")[0]
        'Faithfulness of growing circuits'
    """
    curve = result.curve if isinstance(result, Trial) else result
    if curve is None and isinstance(result, Trial):
        raise ValueError("this trial has no curve: ablating everything does not hurt its pattern")
    curve = require(curve, "faithfulness_curve", argument="result")
    size = curve["size"].values
    figure = Figure()
    for i, values in enumerate(curve["random"].values):
        figure.add_trace(
            go.Scatter(
                x=size, y=values, mode="lines", line=dict(color="lightgrey", dash=DASHES[2]),
                name="random order", showlegend=i == 0, hoverinfo="skip",
            )
        )  # fmt: skip
    values = curve["faithfulness"].values
    figure.add_trace(
        go.Scatter(
            x=size, y=values, mode="lines+markers", name="this order",
            line=dict(color=COLOURS[0]), marker=dict(symbol=SYMBOLS[0], size=8),
            error_y=dict(array=curve["high"].values - values,
                         arrayminus=values - curve["low"].values, symmetric=False),
            hovertemplate="%{x} kept: %{y:.2f}<extra></extra>",
        )
    )  # fmt: skip
    figure.add_hline(y=1, line=dict(color="grey", width=1))
    inside = curve.attrs.get("n_circuit")
    if inside is not None:
        line = dict(color="grey", dash=DASHES[1])
        figure.add_vline(x=inside, line=line, annotation_text="circuit")
    figure.update_layout(
        template="plotly_white", height=420, xaxis_title="components kept",
        yaxis_title="faithfulness (share of the pattern's loss)",
        title="Faithfulness of growing circuits<br><sup>the first of the ranking are kept; "
        f"CPR {float(curve['cpr']):.2f}, CMD {float(curve['cmd']):.2f}</sup>",
    )  # fmt: skip
    return figure
