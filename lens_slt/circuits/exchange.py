"""Circuits of other tools: EAP-IG's graphs, which MIB takes too, and ACDC's edges.

================  ==============================================================================
``eap-ig``        the graph of hannamw/EAP-IG: ``.json`` (cfg, nodes, edges with score and
                  in_graph) or ``.pt`` (the same as tensors)
``mib``           the files of MIB's circuit track: EAP-IG's, with importances or with membership
``acdc``          edges of ArthurConmy/Automatic-Circuit-Discovery: ``save_edges``'s pickle,
                  ``save_subgraph``'s ``.pth``, or text: one edge a line, the reader first, such as
                  ``blocks.1.hook_k_input[:, :, 2] blocks.0.attn.hook_result[:, :, 5] 0.1``, or the
                  log of a run
================  ==============================================================================

Their ``input``, or ``blocks.0.hook_resid_pre``, is ``embed`` here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import xarray as xr

from lens_slt.arguments import choice, integer, location, typed
from lens_slt.circuits.exchange_acdc import acdc_from, acdc_to
from lens_slt.circuits.exchange_eap import eap_from, eap_to
from lens_slt.circuits.exchange_graph import Graph, Sizes
from lens_slt.circuits.hypothesis import CircuitHypothesis, Edge, circuit
from lens_slt.models.adapter import adapt
from lens_slt.models.names import EMBEDDINGS, is_head, is_mlp
from lens_slt.schema import require

FORMATS = ("eap-ig", "mib", "acdc")


@typed
def read_circuit(
    path: Path | str,
    pattern: str,
    *,
    format: str | None = None,
    top: int | None = None,
    name: str = "",
    model: str = "",
) -> CircuitHypothesis:
    """A hypothesis from a file of another tool.

    Args:
        path: the file.
        pattern: which tokens the circuit is for; these files do not say.
        format: ``eap-ig``, ``mib`` or ``acdc``; by what the file looks like by default. Pickles
            are read without running code in them.
        top: take so many edges with the largest scores, by size, instead of those that the file
            marks as the circuit's: for importances without a circuit.
        name, model: as in :func:`lens_slt.circuit`.

    Returns:
        The hypothesis. Its ``provenance`` has the file, the format and the scores of its edges.
        Where a file has a circuit of nodes alone, so has the hypothesis.

    Raises:
        OSError, ValueError: a file that cannot be read or is of no such format; no edge in it.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> path = tempfile.mkdtemp() + "/edges.txt"
        >>> ls.write_circuit(path, ls.circuit("L0H2 -> L1H2.K", "induction"), format="acdc")
        >>> print(ls.read_circuit(path, pattern="induction"))
        circuit for induction: L0H2→L1H2.K
    """
    if format is not None:
        choice("format", format, FORMATS)
    if top is not None:
        integer("top", top, at_least=1)
    found = location("path", path)
    kind = format or ("eap-ig" if found.suffix.lower() in (".json", ".pt") else "acdc")
    graph = acdc_from(found) if kind == "acdc" else eap_from(found)
    edges = graph.best(top) if top is not None else graph.edges
    nodes = [] if top is not None else graph.nodes
    if not edges and not nodes:
        why = (
            "no edge or node is marked as in it; pass top= to take the best scored edges"
            if top is None
            else "its edges have no scores; leave out top= to take those that are marked as in it"
        )
        raise ValueError(f"{path} has no circuit: {why}")
    provenance: dict[str, Any] = {"file": found.name, "format": kind}
    scores = {str(edge): graph.scores[edge] for edge in edges if edge in graph.scores}
    provenance |= {"scores": scores} if scores else {}
    parts = [*map(str, edges), *nodes]
    return circuit(";".join(parts), pattern, name=name, provenance=provenance, model=model)


@typed
def write_circuit(
    path: Path | str,
    circuit: CircuitHypothesis | xr.Dataset,
    *,
    format: str = "eap-ig",
    model: Any = None,
    top: int | None = None,
) -> None:
    """Write a hypothesis, or an attribution of edges, to a file that another tool reads.

    Args:
        path: ``.json`` or ``.pt`` for ``eap-ig`` and ``mib``; ``.pth`` or text (``.txt``) for
            ``acdc``.
        circuit: a hypothesis, whose edges have a score of 1, others 0; or what
            :func:`lens_slt.edge_attribution` returns, whose effects are the scores (those of
            learned positions are left out where the format has no node for them).
        format: ``eap-ig``, ``mib`` or ``acdc``.
        model: a HookedTransformer or TransformerBridge; for all files but text without an edge into
            the logits.
        top: mark so many edges of an attribution with the largest effects, by size, as the
            circuit; none by default (importances).

    Raises:
        OSError, ValueError: a node, such as a layer, or an edge that the format or the model does
            not have; nodes or edges at roles; no model; a name that ends otherwise.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> mine = ls.circuit("L0H2 -> L1H2.K -> logits", pattern="induction")
        >>> path = tempfile.mkdtemp() + "/mine.json"
        >>> ls.write_circuit(path, mine, model=ls.load_model("attn-2l"))
        >>> ls.read_circuit(path, pattern="induction").edges == mine.edges
        True
    """
    choice("format", format, FORMATS)
    if top is not None:
        integer("top", top, at_least=1)
    found = location("path", path)
    ends = (".pth", ".txt", ".log", "") if format == "acdc" else (".json", ".pt")
    if found.suffix.lower() not in ends:
        raise ValueError(f"path must end in {' or '.join(filter(None, ends))}; got {str(path)!r}")
    whole = found.suffix.lower() in (".json", ".pt", ".pth")
    if model is None and whole:
        raise ValueError(f"model: a {found.suffix} file lists all edges of its model; pass it")
    if format == "acdc" and isinstance(circuit, xr.Dataset) and top is None:
        raise ValueError("top must say how many edges of an attribution are ACDC's circuit")
    graph = _graph(circuit, top, positions=format == "acdc")
    sizes = None if model is None else Sizes.of(adapt(model))
    if sizes is not None:
        sizes.check(graph)
    if format == "acdc":
        acdc_to(found, graph, sizes)
    else:
        assert sizes is not None
        eap_to(found, graph, sizes)


def _graph(circuit: CircuitHypothesis | xr.Dataset, top: int | None, *, positions: bool) -> Graph:
    """Its edges; without ``positions`` those of an attribution that begin there are left out."""
    if isinstance(circuit, CircuitHypothesis):
        if top is not None:
            raise ValueError(f"top is for an attribution, not for a hypothesis; got {top}")
        if circuit.roles:
            raise ValueError(
                f"circuit: {circuit} is at roles, and files of other tools have none; write it "
                "without roles"
            )
        for node in circuit.components:
            if not (is_head(node) or is_mlp(node) or node in EMBEDDINGS):
                raise ValueError(
                    f"circuit: {node!r} is no head, MLP or embedding, which is all that other "
                    "tools know"
                )
        scores = dict.fromkeys(circuit.edges, 1.0)
        return Graph(list(circuit.edges), list(circuit.components), scores)
    effect = require(circuit, "edge_attribution", argument="circuit")["effect"]
    found = {
        Edge(source, target, through): float(value)
        for (source, target, through), value in effect.to_series().items()
        if math.isfinite(value) and (positions or source != "pos_embed")
    }
    graph = Graph([], [], found)
    edges = [] if top is None else graph.best(top)
    ends = dict.fromkeys(end for edge in edges for end in (edge.source, edge.target))
    return Graph(edges, [end for end in ends if end != "logits"], found)
