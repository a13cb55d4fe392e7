"""A circuit as a graph: networkx for computing, DOT for drawing elsewhere."""

from __future__ import annotations

from typing import Any

import networkx as nx
import xarray as xr

from lens_slt.arguments import typed
from lens_slt.circuits.hypothesis import LOGITS, CircuitHypothesis, Edge
from lens_slt.circuits.roles import at_role, node_of
from lens_slt.circuits.trial import Trial
from lens_slt.models.names import EMBEDDINGS, MLP, depth_of, is_head, is_mlp, parts_of, read_part
from lens_slt.schema import require
from lens_slt.text import dot_text

LAST = 10**6  # the layer of what stands behind all others

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
        Nodes, one for each role of a head or MLP that is named at roles, with ``kind`` (head, mlp,
        embedding, logits, or other for layers and unions), ``layer`` (−1 for embeddings),
        ``depth``, which orders them along the residual stream (the heads of a layer, then its MLP),
        ``outcome`` and ``effect`` of their minimality, and ``head_type``; edges with ``through``,
        ``role``, ``outcome`` and ``effect``. Outcomes are "" without a trial. The graph has the
        ``pattern`` and the ``units`` of effects.

    Example:
        >>> import lens_slt as ls
        >>> graph = ls.circuit_graph(ls.circuit("L0H2 -> L1H2.K -> logits", pattern="induction"))
        >>> list(graph.edges(data="through"))
        [('L0H2', 'L1H2', 'K'), ('L1H2', 'logits', '')]
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

    units = circuit.settings["units"] if isinstance(circuit, Trial) else ""
    graph = nx.MultiDiGraph(name=str(hypothesis), pattern=hypothesis.pattern, units=units)
    for name in hypothesis.components:
        head_type, node = "", node_of(name)
        if behaviour is not None and node in behaviour["component"].values:
            head_type = str(behaviour["head_type"].sel(component=node).values)
        graph.add_node(name, **_place(name), head_type=head_type, **found(name))
    for edge in hypothesis.edges:
        if edge.target == LOGITS and LOGITS not in graph:
            graph.add_node(LOGITS, **_place(LOGITS), head_type="", **found(LOGITS))
        source = edge.writer if edge.writer in graph else edge.source
        for target in _readers(edge, graph):
            said = found(str(edge))
            graph.add_edge(source, target, through=edge.through, role=edge.role, **said)
    return graph


def _readers(edge: Edge, graph: nx.MultiDiGraph) -> list[str]:
    """The components that an edge leads to: its target, at whichever roles it is one.

    A query or an MLP acts where it reads; keys and values also further on.
    """
    same = at_role(edge.target, edge.role)
    if edge.through not in ("K", "V") and same in graph:
        return [same]
    return [name for name in graph if node_of(name) == edge.target]


def _place(name: str) -> dict[str, Any]:
    """What a node is, and where it stands."""
    name = node_of(name)
    if name in EMBEDDINGS:
        return {"kind": "embedding", "layer": -1, "depth": depth_of(name)}
    part = read_part(parts_of(name)[0])
    if part is None:  # the logits, the unembedding, the whole model
        return {"kind": LOGITS if name == LOGITS else "other", "layer": LAST, "depth": 2 * LAST}
    kind = "head" if is_head(name) else "mlp" if is_mlp(name) else "other"
    return {"kind": kind, "layer": part.layer, "depth": 2 * part.layer + (part.kind == MLP)}


@typed
def to_dot(graph: nx.MultiDiGraph) -> str:
    """A graph from :func:`circuit_graph` in the DOT language of Graphviz.

    Example:
        >>> import lens_slt as ls
        >>> graph = ls.circuit_graph(ls.circuit("L0H2 -> L1H2.K", pattern="induction"))
        >>> print(ls.to_dot(graph).splitlines()[-2].split(" [")[0].strip())
        "L0H2" -> "L1H2"
    """
    lines = [f"digraph {dot_text(graph.graph['name'])} {{", "  rankdir=LR;"]
    lines.append('  node [shape=box, fontname="sans-serif"]; edge [fontname="sans-serif"];')
    for name, node in graph.nodes(data=True):
        words = [name, *([node["head_type"]] if node["head_type"] else []), *_said(graph, node)]
        colour, dash = LOOKS[node["outcome"]]
        label = dot_text(*words)
        lines.append(f'  {dot_text(name)} [label={label}, color="{colour}", style="{dash}"];')
    for source, target, edge in graph.edges(data=True):
        colour, dash = LOOKS[edge["outcome"]]
        label = dot_text(" ".join([edge_label(edge), *_said(graph, edge)]).strip())
        lines.append(
            f"  {dot_text(source)} -> {dot_text(target)} "
            f'[label={label}, color="{colour}", style="{dash}"];'
        )
    return "\n".join([*lines, "}", ""])


def edge_label(edge: dict[str, Any]) -> str:
    """Through what an edge of the graph leads, and at which role."""
    return " ".join(filter(None, [edge["through"], at_role("", edge["role"])]))


def _said(graph: nx.MultiDiGraph, part: dict[str, Any]) -> list[str]:
    if part["effect"] is None:
        return []
    return [f"{part['outcome']} ({part['effect']:.2f} {graph.graph['units']})"]
