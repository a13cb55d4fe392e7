"""The graphs of EAP-IG and of MIB's circuit track, as JSON or as tensors.

Nodes are ``input``, ``a0.h1``, ``m0`` and ``logits``; edges ``a0.h1->a1.h2<q>``, ``a0.h1->m0``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lens_slt.circuits.exchange_graph import Graph, Sizes
from lens_slt.circuits.hypothesis import LOGITS, Edge
from lens_slt.json_files import read_json
from lens_slt.models.names import head_name, head_place, is_head, layer_of, mlp_name

INPUT = "input"
EMBED = "embed"
_NODE = re.compile(r"a(\d+)\.h(\d+)|m(\d+)")
_TARGET = re.compile(r"(?P<node>.+?)(?:<(?P<through>[qkv])>)?")
_TENSORS = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")


def eap_from(path: Path) -> Graph:
    """The graph of a file; ValueError, naming it, for anything else."""
    try:
        return _from_json(read_json(path)) if path.suffix.lower() != ".pt" else _from_pt(path)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is no graph of EAP-IG or MIB: {error}") from None


def eap_to(path: Path, graph: Graph, sizes: Sizes) -> None:
    """Write a graph; ValueError for positions as a source, which the format does not have."""
    for part in (*graph.edges, *graph.nodes):
        if getattr(part, "source", part) == "pos_embed":
            raise ValueError(
                f"circuit: {part} has positions, for which EAP-IG and MIB have no node (their "
                "input is the embedding of tokens); leave it out, or write ACDC's format"
            )
    known = replace(sizes, attn_only=False, positions=False)  # their graphs always have MLPs
    inside, nodes = set(graph.edges), {_eap_node(node) for node in graph.nodes}
    cfg = {
        "n_layers": sizes.n_layers, "n_heads": sizes.n_heads,
        "parallel_attn_mlp": sizes.parallel, "d_model": sizes.d_model,
    }  # fmt: skip
    edges = {
        eap_name(edge): {"score": graph.scores.get(edge, 0.0), "in_graph": edge in inside}
        for edge in known.edges()
    }
    names = [*_sources(sizes), LOGITS]
    content: dict[str, Any] = {
        "cfg": cfg,
        "nodes": {name: {"in_graph": name in nodes or name == LOGITS} for name in names},
        "edges": edges,
    }
    if path.suffix.lower() == ".pt":
        torch.save(_tensors(content, sizes), path)
    else:
        path.write_text(json.dumps(content), "utf-8")


def eap_name(edge: Edge) -> str:
    """An edge as EAP-IG writes it."""
    through = f"<{edge.through.lower()}>" if edge.through else ""
    return f"{_eap_node(edge.source)}->{_eap_node(edge.target)}{through}"


def _eap_node(name: str) -> str:
    if name in (EMBED, LOGITS):
        return INPUT if name == EMBED else LOGITS
    if is_head(name):
        layer, head = head_place(name)
        return f"a{layer}.h{head}"
    return f"m{layer_of(name)}"


def _node(name: str) -> str:
    if name in (INPUT, LOGITS):
        return EMBED if name == INPUT else LOGITS
    match = _NODE.fullmatch(name)
    if match is None:
        raise ValueError(f"a node reads 'a0.h1', 'm0', 'input' or 'logits'; got {name!r}")
    layer, head, mlp = match.groups()
    return mlp_name(int(mlp)) if mlp else head_name(int(layer), int(head))


def _edge(name: str) -> Edge:
    source, arrow, rest = name.partition("->")
    match = _TARGET.fullmatch(rest)
    if not arrow or match is None:
        raise ValueError(f"an edge reads 'a0.h1->a1.h2<q>'; got {name!r}")
    return Edge(_node(source), _node(match["node"]), (match["through"] or "").upper())


def _sizes(cfg: Any) -> Sizes:
    if not isinstance(cfg, Mapping):
        raise TypeError("'cfg' must be an object with n_layers and n_heads")
    n_layers, n_heads = cfg.get("n_layers"), cfg.get("n_heads")
    for count in (n_layers, n_heads):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"'cfg' must have n_layers and n_heads above 0; got {dict(cfg)}")
    assert isinstance(n_layers, int) and isinstance(n_heads, int)
    parallel = bool(cfg.get("parallel_attn_mlp", False))
    return Sizes(n_layers, n_heads, int(cfg.get("d_model", 0)), parallel=parallel)


def _from_json(content: Any) -> Graph:
    if not isinstance(content, dict):
        raise TypeError("it must be an object with cfg, nodes and edges")
    missing = [key for key in ("cfg", "nodes", "edges") if key not in content]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    sizes = _sizes(content["cfg"])
    edges: list[Edge] = []
    scores: dict[Edge, float] = {}
    for name, info in content["edges"].items():
        edge = _edge(name)
        if _marked(info, name):
            edges.append(edge)
        if isinstance(info, dict) and info.get("score") is not None:
            scores[edge] = _number(info["score"], name)
    nodes = [
        _node(name) for name, info in content["nodes"].items()
        if name not in (INPUT, LOGITS) and _marked(info, name)
    ]  # fmt: skip
    graph = Graph(edges, nodes, scores)
    sizes.check(graph)
    return graph


def _from_pt(path: Path) -> Graph:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch names neither the file nor what is wrong with it
        raise ValueError(f"torch cannot read it ({type(error).__name__})") from None
    if not isinstance(content, dict) or any(key not in content for key in _TENSORS):
        raise ValueError(f"it must hold {', '.join(_TENSORS)}")
    sizes = _sizes(content["cfg"])
    rows = {name: i for i, name in enumerate(content["src_nodes"])}
    columns = {name: i for i, name in enumerate(content["dst_nodes"])}
    score, inside = content["edges_scores"], content["edges_in_graph"]
    for key in ("edges_scores", "edges_in_graph"):
        shape = tuple(content[key].shape)
        if shape != (len(rows), len(columns)):
            raise ValueError(f"{key} must be [{len(rows)}, {len(columns)}]; got {list(shape)}")
    edges: list[Edge] = []
    scores: dict[Edge, float] = {}
    for edge in sizes.edges():  # others are marked, too, where nodes were chosen
        source, target = eap_name(edge).split("->")
        at = rows[source], columns[target]
        scores[edge] = _number(float(score[at]), eap_name(edge))
        if bool(inside[at]):
            edges.append(edge)
    nodes = [
        _node(name) for name, i in rows.items()
        if name != INPUT and bool(content["nodes_in_graph"][i])
    ]  # fmt: skip
    return Graph(edges, nodes, scores)


def _marked(info: Any, name: str) -> bool:
    inside = info.get("in_graph", False) if isinstance(info, dict) else info
    if not isinstance(inside, bool):
        raise TypeError(f"in_graph of {name} must be true or false; got {str(inside)[:40]!r}")
    return inside


def _number(score: Any, name: str) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"score of {name} must be a finite number; got {str(score)[:40]!r}")
    return float(score)


def _sources(sizes: Sizes) -> Iterator[str]:
    yield INPUT
    for layer in range(sizes.n_layers):
        yield from (f"a{layer}.h{head}" for head in range(sizes.n_heads))
        yield f"m{layer}"


def _targets(sizes: Sizes) -> Iterator[str]:
    for layer in range(sizes.n_layers):
        yield from (f"a{layer}.h{head}<{x}>" for x in "qkv" for head in range(sizes.n_heads))
        yield f"m{layer}"
    yield LOGITS


def _tensors(content: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    sources, targets = list(_sources(sizes)), list(_targets(sizes))
    rows = {name: i for i, name in enumerate(sources)}
    columns = {name: i for i, name in enumerate(targets)}
    scores = torch.zeros(len(sources), len(targets))
    inside = torch.zeros(len(sources), len(targets), dtype=torch.bool)
    for name, info in content["edges"].items():
        source, target = name.split("->")
        scores[rows[source], columns[target]] = info["score"]
        inside[rows[source], columns[target]] = info["in_graph"]
    nodes = torch.tensor([content["nodes"][name]["in_graph"] for name in sources])
    values = (content["cfg"], sources, targets, scores, inside, nodes)
    return dict(zip(_TENSORS, values, strict=True))
