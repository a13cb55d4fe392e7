"""Edges of ACDC: between hooks, the reader first, with an index that says which head.

Only edges of the residual stream are edges here; those inside a head or an MLP, such as from
``hook_q_input`` to ``hook_q``, are passed over when read and complete when written.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lens_slt.circuits.exchange_graph import Graph, Sizes
from lens_slt.circuits.hypothesis import LOGITS, Edge
from lens_slt.models.names import head_name, head_place, is_head, is_mlp, layer_of, mlp_name

Index = tuple[int | None, ...]
Key = tuple[str, Index, str, Index]  # reader, writer

_HOOK = r"blocks\.\d+\.(?:attn\.)?hook_\w+|hook_(?:pos_)?embed\b"
_PLACE = re.compile(
    rf"(?P<hook>{_HOOK})['\",\s]*(?:(?:TorchIndex\()?[\[(](?P<index>[^\])]*)[\])]+"
    r"|(?<=\s)(?P<head>\d+)(?![\d.]))?"
)
_READS = re.compile(r"blocks\.(\d+)\.(?:hook_([qkv])_input|attn\.hook_([qkv]))")
_MLP_READS = re.compile(r"blocks\.(\d+)\.(?:hook_resid_mid|hook_mlp_in)")
_LAST = re.compile(r"blocks\.\d+\.hook_resid_post")
_HEAD = re.compile(r"blocks\.(\d+)\.attn\.hook_result")
_MLP = re.compile(r"blocks\.(\d+)\.hook_mlp_out")
_EMBED = {"blocks.0.hook_resid_pre": "embed", "hook_embed": "embed", "hook_pos_embed": "pos_embed"}
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_RESULT = re.compile(
    rf"(?:Result is (?P<score>{_NUMBER.pattern}))?\s*\.\.\.so (?P<what>keeping|removing) connection"
)


def acdc_from(path: Path) -> Graph:
    """The edges of a file; ValueError, naming it, for anything else."""
    content = path.read_bytes()
    try:
        if content[:2] == b"PK":
            found = [*_from_subgraph(path)]
        elif content[:1] == b"\x80":
            found = [*_from_pickle(content)]
        else:
            found = [*_from_text(content.decode("utf-8"))]
    except (ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} has no edges of ACDC: {error}") from None
    edges: list[Edge] = []
    scores: dict[Edge, float] = {}
    for key, inside, score in found:
        try:
            edge = _edge(key)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if edge is None or edge in scores:
            continue
        if inside and edge not in edges:
            edges.append(edge)
        if score is not None:
            scores[edge] = score
    return Graph(edges, [], scores)


def acdc_to(path: Path, graph: Graph, sizes: Sizes | None) -> None:
    """Write the circuit's edges: as text, or as ACDC's subgraph, which lists all edges.

    A subgraph needs sizes; so does text with an edge into the logits.
    """
    positions = any(edge.source == "pos_embed" for edge in graph.edges)
    last = None if sizes is None else sizes.n_layers - 1
    inside = [_key(edge, last, positions) for edge in graph.edges]
    if path.suffix.lower() != ".pth":
        lines = []
        for edge, (reader, at, writer, there) in zip(graph.edges, inside, strict=True):
            score = f" {graph.scores[edge]:.6g}" if edge in graph.scores else ""
            lines.append(f"{reader}{_shown(at)} {writer}{_shown(there)}{score}\n")
        path.write_text("".join(lines), "utf-8")
        return
    assert sizes is not None
    every = replace(sizes, positions=positions).edges()
    subgraph = dict.fromkeys((_key(edge, last, positions) for edge in every), False)
    subgraph |= dict.fromkeys((*inside, *_within(sizes)), True)
    torch.save(subgraph, path)


def _key(edge: Edge, last: int | None, positions: bool) -> Key:
    """An edge as ACDC names it; with ``positions`` these are apart from the embedding."""
    everything: Index = (None,)
    if edge.target == LOGITS:
        if last is None:
            raise ValueError(
                f"model: ACDC names the logits of {edge} by the model's last layer; pass it"
            )
        reader = f"blocks.{last}.hook_resid_post", everything
    elif is_mlp(edge.target):
        reader = f"blocks.{layer_of(edge.target)}.hook_mlp_in", everything
    else:
        layer, head = head_place(edge.target)
        reader = f"blocks.{layer}.hook_{edge.through.lower()}_input", (None, None, head)
    if is_head(edge.source):
        layer, head = head_place(edge.source)
        return *reader, f"blocks.{layer}.attn.hook_result", (None, None, head)
    if is_mlp(edge.source):
        return *reader, f"blocks.{layer_of(edge.source)}.hook_mlp_out", everything
    return *reader, f"hook_{edge.source}" if positions else "blocks.0.hook_resid_pre", everything


def _within(sizes: Sizes) -> Iterator[Key]:
    """Edges inside heads and MLPs, which are always there."""
    for layer in range(sizes.n_layers):
        block = f"blocks.{layer}"
        for head in range(sizes.n_heads):
            at: Index = (None, None, head)
            for letter in "qkv":
                yield f"{block}.attn.hook_result", at, f"{block}.attn.hook_{letter}", at
                yield f"{block}.attn.hook_{letter}", at, f"{block}.hook_{letter}_input", at
        if not sizes.attn_only:
            yield f"{block}.hook_mlp_out", (None,), f"{block}.hook_mlp_in", (None,)


def _edge(key: Key) -> Edge | None:
    """The edge of the residual stream, or None for one inside a head or an MLP."""
    reader, at, writer, there = key
    if _READS.fullmatch(writer) or _MLP_READS.fullmatch(writer):
        return None
    source = _EMBED.get(writer, "")
    if match := _HEAD.fullmatch(writer):
        source = head_name(int(match[1]), _head(writer, there))
    elif match := _MLP.fullmatch(writer):
        source = mlp_name(int(match[1]))
    if not source:
        raise ValueError(f"{writer} is no hook at which ACDC has what a node writes")
    if match := _READS.fullmatch(reader):
        through = (match[2] or match[3]).upper()
        return Edge(source, head_name(int(match[1]), _head(reader, at)), through)
    if match := _MLP_READS.fullmatch(reader):
        return Edge(source, mlp_name(int(match[1])))
    if _LAST.fullmatch(reader):
        return Edge(source, LOGITS)
    raise ValueError(f"{reader} is no hook at which ACDC has what a node reads")


def _head(hook: str, index: Index) -> int:
    found = [one for one in index if one is not None]
    if len(found) != 1:
        raise ValueError(f"{hook} needs the index of one head, such as [:, :, 2]; got {index}")
    return found[0]


def _shown(index: Index) -> str:
    return f"[{', '.join(':' if one is None else str(one) for one in index)}]"


def _from_text(text: str) -> Iterator[tuple[Key, bool, float | None]]:
    """Reader, writer, whether it is in the circuit, and its score, of every line."""
    lines = text.splitlines()
    if any(_RESULT.search(line) for line in lines):
        yield from _from_log(lines)
        return
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        places = list(_PLACE.finditer(line))
        if len(places) != 2:
            raise ValueError(
                f"line {number} must name two hooks, such as 'blocks.1.hook_k_input[:, :, 2] "
                f"blocks.0.attn.hook_result[:, :, 5]'; got {line.strip()[:80]!r}"
            )
        one, other = (_place(place) for place in places)
        between = line[places[0].end() : places[1].start()]
        key = (*other, *one) if re.search("->|→", between) else (*one, *other)
        score = _NUMBER.search(line[places[1].end() :])
        yield key, True, None if score is None else float(score[0])


def _from_log(lines: list[str]) -> Iterator[tuple[Key, bool, float | None]]:
    """Every connection that a run kept or removed: the node that writes comes first there."""
    key: Key | None = None
    for line in lines:
        if line.startswith("Node: "):
            places = [_place(place) for place in _PLACE.finditer(line)]
            key = (*places[1], *places[0]) if len(places) == 2 else None
        match = _RESULT.search(line)
        if match:
            if key is None:
                raise ValueError(f"its log names no node before {line.strip()[:60]!r}")
            score = match["score"]
            yield key, match["what"] == "keeping", None if score is None else float(score)


def _place(match: re.Match[str]) -> tuple[str, Index]:
    hook = match["hook"]
    if match["index"] is None:
        return hook, (None,) if match["head"] is None else (None, None, int(match["head"]))
    parts = [part.strip() for part in match["index"].split(",") if part.strip()]
    return hook, tuple(int(part) if part.isdecimal() else None for part in parts)


def _from_subgraph(path: Path) -> Iterator[tuple[Key, bool, float | None]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names neither the file nor what is wrong with it
        raise ValueError(f"torch cannot read it ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise TypeError(f"a subgraph is a dictionary of edges; got {type(content).__name__}")
    for key, inside in content.items():
        if not isinstance(inside, bool):
            raise TypeError(f"{key} must be true or false; got {str(inside)[:40]!r}")
        yield _checked(key), inside, None


def _from_pickle(content: bytes) -> Iterator[tuple[Key, bool, float | None]]:
    try:
        found = _Unpickler(io.BytesIO(content)).load()
    except ValueError:
        raise
    except Exception as error:  # whatever damaged bytes do to a pickle
        raise ValueError(f"it is no pickle ({type(error).__name__})") from None
    if not isinstance(found, list):
        raise TypeError(f"a pickle of ACDC holds a list of edges; got {type(found).__name__}")
    for entry in found:
        if not isinstance(entry, tuple) or len(entry) != 2:
            raise ValueError(f"an edge is a pair of its ends and an effect; got {str(entry)[:60]}")
        key, score = entry
        plain = isinstance(score, int | float) and not isinstance(score, bool)
        yield _checked(key), True, float(score) if plain else None


def _checked(key: Any) -> Key:
    if not isinstance(key, tuple) or len(key) != 4:
        raise ValueError(f"an edge has two hooks and two indices; got {str(key)[:80]}")
    reader, at, writer, there = key
    if not (isinstance(reader, str) and isinstance(writer, str)):
        raise TypeError(f"hooks are texts; got {reader!r} and {writer!r}")
    return reader, _index(at), writer, _index(there)


def _index(found: Any) -> Index:
    plain = getattr(found, "hashable_tuple", found)
    if not isinstance(plain, tuple | list):
        raise TypeError(f"an index is a tuple such as (None, None, 2); got {str(plain)[:40]}")
    return tuple(plain)


class _Index:
    """Stands for ACDC's TorchIndex, of which only the values are read."""

    hashable_tuple: Index


class _Unpickler(pickle.Unpickler):
    """Runs nothing from the file: indices are the only class that it may name."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "TorchIndex":
            return _Index
        if (module, name) == ("builtins", "slice"):
            return slice
        raise ValueError(f"it holds a {module}.{name}, which is not read from a pickle")
