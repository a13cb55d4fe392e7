"""A circuit as a graph: networkx for computing, DOT for drawing elsewhere."""

from __future__ import annotations

from typing import Any

import networkx as nx
import xarray as xr

from lens_slt.arguments import typed
from lens_slt.circuits.hypothesis import LOGITS, CircuitHypothesis
from lens_slt.circuits.trial import Trial
from lens_slt.models.names import layer_of
from lens_slt.schema import require
from lens_slt.text import dot_text

# Outcomes by colour, dash and word (colours of Okabe & Ito 2008).
LOOKS = {
    "held": ("#009E73", "solid"),
    "failed": ("#D55E00", "dashed"),
    "undecided": ("#E69F00", "dotted"),
    "": ("#0072B2", "solid"),
}


@typed
def circuit_graph(
    circuit: Trial | CircuitHypothesis, behaviour: xr.Dataset | None = None
) -> nx.MultiDiGraph:
    """The components and edges of a hypothesis, with what its trial found.

    Args:
        circuit: a hypothesis, or the trial of one.
        behaviour: from :func:`lens_slt.behaviour_scores`, for the types of heads.

    Returns:
        Nodes with ``layer`` (−1 for other than heads), ``outcome`` and ``effect`` of their
        minimality, and ``head_type``; edges with ``through``, ``outcome`` and ``effect``. Outcomes
        are "" without a trial.
    """
    if behaviour is not None:
        behaviour = require(behaviour, "behaviour_scores", argument="behaviour")
    hypothesis = circuit.hypothesis if isinstance(circuit, Trial) else circuit
    votes = {}
    if isinstance(circuit, Trial):
        tests = ("minimality", "edge")
        votes = {one.part: one for one in circuit.evidence if one.test in tests}

    def found(part: str) -> dict[str, Any]:
        vote = votes.get(part)
        return {"outcome": "", "effect": None} if vote is None else {
            "outcome": vote.outcome, "effect": vote.effect
        }  # fmt: skip

    graph = nx.MultiDiGraph(name=str(hypothesis), pattern=hypothesis.pattern)
    for name in hypothesis.components:
        kind = ""
        if behaviour is not None and name in behaviour["component"].values:
            kind = str(behaviour["head_type"].sel(component=name).values)
        layer = layer_of(name) if name in hypothesis.heads else -1
        graph.add_node(name, layer=layer, head_type=kind, **found(name))
    for edge in hypothesis.edges:
        if edge.target == LOGITS and LOGITS not in graph:
            graph.add_node(LOGITS, layer=10**6, head_type="", **found(LOGITS))
        graph.add_edge(edge.source, edge.target, through=edge.through, **found(str(edge)))
    return graph


@typed
def to_dot(graph: nx.MultiDiGraph) -> str:
    """A graph from :func:`circuit_graph` in the DOT language of Graphviz."""
    lines = [f"digraph {dot_text(graph.graph['name'])} {{", "  rankdir=LR;"]
    lines.append('  node [shape=box, fontname="sans-serif"]; edge [fontname="sans-serif"];')
    for name, node in graph.nodes(data=True):
        words = [name, *([node["head_type"]] if node["head_type"] else []), *_said(node)]
        colour, dash = LOOKS[node["outcome"]]
        label = dot_text(*words)
        lines.append(f'  {dot_text(name)} [label={label}, color="{colour}", style="{dash}"];')
    for source, target, edge in graph.edges(data=True):
        colour, dash = LOOKS[edge["outcome"]]
        label = dot_text(" ".join([edge["through"], *_said(edge)]).strip())
        lines.append(
            f"  {dot_text(source)} -> {dot_text(target)} "
            f'[label={label}, color="{colour}", style="{dash}"];'
        )
    return "\n".join([*lines, "}", ""])


def _said(part: dict[str, Any]) -> list[str]:
    return [] if part["effect"] is None else [f"{part['outcome']} ({part['effect']:.2f} nats)"]
