"""A circuit as a small drawing in the page itself: it follows the colours, its names are links."""

from __future__ import annotations

import xarray as xr

from lens_slt.circuits.graph import circuit_graph, edge_label
from lens_slt.circuits.hypothesis import CircuitHypothesis
from lens_slt.circuits.trial import Trial
from lens_slt.report.plots_circuits import bend_of, node_places
from lens_slt.text import html_text

ACROSS, DOWN = 170, 78  # pixels from node to node
MARGIN, TOP, BOTTOM = 72, 34, 52
RADIUS = 13
DASHES = {"failed": "7 4", "undecided": "2 4"}


def circuit_drawing(circuit: Trial | CircuitHypothesis, behaviour: xr.Dataset | None = None) -> str:
    """An SVG of a circuit, layers from left to right; what failed is dashed, undecided dotted."""
    graph = circuit_graph(circuit, behaviour)
    place = node_places(graph)
    bends = {
        (source, target, key): bend_of(place, source, target, 0.25 * key)
        for source, target, key in graph.edges(keys=True)
    }
    high = max(y for _, y in [*place.values(), *bends.values()])
    low = min(y for _, y in [*place.values(), *bends.values()])

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return MARGIN + ACROSS * point[0], TOP + DOWN * (high - point[1])

    parts = [
        _edge(at(place[source]), at(bends[source, target, key]), at(place[target]), edge)
        for source, target, key, edge in graph.edges(keys=True, data=True)
    ]
    parts += [_node(name, at(place[name]), node) for name, node in graph.nodes(data=True)]
    width = 2 * MARGIN + ACROSS * max(x for x, _ in place.values())
    height = TOP + BOTTOM + DOWN * (high - low)
    name = html_text(f"Circuit {graph.graph['name']}")
    return (
        f'<svg class="circuit" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="max-width:{width:.0f}px" aria-label="{name}" role="group">{"".join(parts)}</svg>'
    )


def _edge(
    start: tuple[float, float], bend: tuple[float, float], end: tuple[float, float],
    edge: dict[str, str],
) -> str:  # fmt: skip
    """A line in two parts, with a head that ends before the node, and its label."""
    (x0, y0), (xb, yb), (x1, y1) = start, bend, end
    long = max(((x1 - xb) ** 2 + (y1 - yb) ** 2) ** 0.5, 1.0)
    ux, uy = (x1 - xb) / long, (y1 - yb) / long
    tip = x1 - (RADIUS + 5) * ux, y1 - (RADIUS + 5) * uy
    back = tip[0] - 9 * ux, tip[1] - 9 * uy
    head = f"{tip[0]:.1f},{tip[1]:.1f}" + "".join(
        f" {back[0] + side * 5 * uy:.1f},{back[1] - side * 5 * ux:.1f}" for side in (1, -1)
    )
    dash = f' stroke-dasharray="{DASHES[edge["outcome"]]}"' if edge["outcome"] in DASHES else ""
    label = html_text(edge_label(edge))
    return (
        f'<g class="edge {edge["outcome"] or "untried"}">'
        f'<polyline points="{x0:.1f},{y0:.1f} {xb:.1f},{yb:.1f} '
        f'{back[0]:.1f},{back[1]:.1f}"{dash}/>'
        f'<polygon points="{head}"/>'
        f'<text x="{xb:.1f}" y="{yb - 7:.1f}">{label}</text></g>'
    )


def _node(name: str, place: tuple[float, float], node: dict[str, str]) -> str:
    x, y = place
    dash = f' stroke-dasharray="{DASHES[node["outcome"]]}"' if node["outcome"] in DASHES else ""
    shape = (
        f'<rect x="{x - 11:.1f}" y="{y - 11:.1f}" width="22" height="22"{dash}/>'
        if node["kind"] in ("logits", "mlp")
        else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"{dash}/>'
    )
    lines = [f'<text class="name" x="{x:.1f}" y="{y + 30:.1f}">{html_text(name)}</text>']
    if node["head_type"]:
        lines.append(f'<text x="{x:.1f}" y="{y + 45:.1f}">{html_text(node["head_type"])}</text>')
    return f'<g class="node {node["outcome"] or "untried"}">{shape}{"".join(lines)}</g>'
