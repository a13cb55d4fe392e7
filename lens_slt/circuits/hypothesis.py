"""A circuit hypothesis as a value: nodes, edges, the pattern it is for, where the guess came from.

Written by hand it is one line, ``circuit("L0H2 -> L1H2.K", pattern="induction")``: head 2 of layer
0 writes what head 2 of layer 1 reads through its keys. Parts are separated by ``;`` or ``,``; a
part is an edge, a chain of edges ``L0H2 -> L1H2.K -> logits``, or a component without edges.
Edges lead from a head, an MLP or an embedding (``embed``, ``pos_embed``) to what reads the residual
stream after it: a head's ``Q``, ``K`` or ``V`` (``L0MLP -> L1H2.K``), an MLP (``L0H2 -> L0MLP``),
or ``logits``.

A node may stand at a *role*, positions that the caller knows: ``L0H1@S2 -> L1H2@END.V -> logits``
says that L1H2 reads through V what L0H1 writes at S2, and that the logits read what L1H2 puts out
at END. What is written at a position is read at that position, so an edge has one role, that of its
source; queries, MLPs and logits act where they read, keys and values also further on. Without a
role all positions are meant, with ``@~S2~END`` all but those of S2 and END.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from lens_slt.arguments import choice, instance, location, typed
from lens_slt.circuits.roles import (
    EVERYWHERE,
    at_role,
    check_role,
    node_of,
    parse_at_roles,
    role_names,
    split_role,
)
from lens_slt.json_files import read_json
from lens_slt.models.adapter import AdaptedModel
from lens_slt.models.names import (
    EMBEDDINGS,
    MLP,
    depth_of,
    is_head,
    is_mlp,
    parts_of,
    read_part,
)
from lens_slt.text import visible

THROUGH = ("Q", "K", "V")
MLP_INPUT = ""  # through what an MLP reads
LOGITS = "logits"
FIELDS = ("components", "edges", "pattern", "name", "provenance", "model")

_ENDS = re.compile(r"\s*(?:->|→)\s*")


@dataclass(frozen=True, order=True)
class Edge:
    """What a node writes, read by a later head through Q, K or V, an MLP, or the unembedding.

    With a ``role``: what it writes at the positions of that role.

    Example:
        >>> import lens_slt as ls
        >>> print(ls.Edge("L0H2", "L1H2", through="K"), ls.Edge("L0H1", "L0MLP", role="END"))
        L0H2→L1H2.K L0H1@END→L0MLP
    """

    source: str
    target: str
    through: str = ""
    role: str = EVERYWHERE

    def __post_init__(self) -> None:
        for part in fields(self):
            instance(f"edge {part.name}", getattr(self, part.name), str)
        if not (is_head(self.source) or is_mlp(self.source) or self.source in EMBEDDINGS):
            raise ValueError(
                "edge source must be a head such as 'L0H2', an MLP such as 'L0MLP', or one of "
                f"{', '.join(EMBEDDINGS)}; got {self.source!r}"
            )
        if not (is_head(self.target) or is_mlp(self.target) or self.target == LOGITS):
            raise ValueError(
                "edge target must be a head such as 'L1H2', an MLP such as 'L1MLP', or 'logits'; "
                f"got {self.target!r}"
            )
        if not is_head(self.target):
            if self.through:
                what = "the logits" if self.target == LOGITS else "an MLP"
                raise ValueError(f"an edge into {what} goes through '', not {self.through!r}")
        elif self.through not in THROUGH:
            raise ValueError(
                f"edge {self.source} -> {self.target} must say through what, as in "
                f"'{self.source} -> {self.target}.K': one of {', '.join(THROUGH)}; "
                f"got {self.through!r}"
            )
        if self.target != LOGITS and depth_of(self.source) >= depth_of(self.target):
            raise ValueError(
                f"edge {self} runs backwards: its source must stand before its target in the "
                "residual stream (an earlier layer; for an MLP also the heads of its own)"
            )
        if self.role:
            check_role(self.role, str(self))

    def __str__(self) -> str:
        return f"{self.writer}→{self.target}" + (f".{self.through}" if self.through else "")

    @property
    def writer(self) -> str:
        """Its source at its role."""
        return at_role(self.source, self.role)

    @property
    def path(self) -> tuple[str, str, str]:
        """Its source, its target and through what, wherever it is."""
        return self.source, self.target, self.through


@dataclass(frozen=True, repr=False)
class CircuitHypothesis:
    """Components and edges that are claimed to do what a pattern of tokens needs.

    ``components`` are heads, MLPs or layers in the grammar of :mod:`lens_slt.models.components`, at
    a role or everywhere; the ends of all edges are among them. ``provenance`` holds plain values
    that let a reader retrace the guess. ``model`` is the hash of the weights that it was made for,
    "" for any model.

    Example:
        >>> import lens_slt as ls
        >>> edge = ls.Edge("L0H2", "L1H2", through="K")
        >>> mine = ls.CircuitHypothesis(("L0H2", "L1H2"), (edge,), pattern="induction")
        >>> mine == ls.circuit("L0H2 -> L1H2.K", pattern="induction")
        True
        >>> [mine]
        [circuit('L0H2→L1H2.K', pattern='induction')]
    """

    components: tuple[str, ...]
    edges: tuple[Edge, ...]
    pattern: str
    name: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)
    model: str = ""

    def __post_init__(self) -> None:
        for name in ("pattern", "name", "model"):
            instance(name, getattr(self, name), str)
        instance("components", self.components, Sequence[str])
        instance("edges", self.edges, Sequence[Edge])
        instance("provenance", self.provenance, Mapping)
        for name in ("components", "edges"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.components:
            raise ValueError("components: a circuit hypothesis names at least one component")
        if not self.pattern:
            raise ValueError("pattern must name the tokens that the circuit is for; got ''")
        for kind, parts in (("component", self.components), ("edge", self.edges)):
            twice = sorted(str(part) for part, n in Counter(parts).items() if n > 1)
            if twice:
                raise ValueError(f"{kind} {twice[0]} is named twice")
        whole = {name for name in self.components if not split_role(name)[1]}
        for name in self.components:
            if node_of(name) in whole - {name}:
                raise ValueError(
                    f"component {name} is a part of {node_of(name)}, which is named everywhere: "
                    "name it everywhere or at roles"
                )
        nodes = {*map(node_of, self.components), LOGITS}
        missing = {edge.target for edge in self.edges} - nodes
        missing |= {e.writer for e in self.edges if not {e.writer, e.source} & {*self.components}}
        if missing:
            raise ValueError(f"edges end in {', '.join(sorted(missing))}, not among the components")

    def __str__(self) -> str:
        return visible(f"{self.name or 'circuit'} for {self.pattern}: {self.words}")

    def __repr__(self) -> str:
        """How to write it by hand; without its provenance, which may be long."""
        named = f", name={self.name!r}" if self.name else ""
        return f"circuit({self.words!r}, pattern={self.pattern!r}{named})"

    @property
    def words(self) -> str:
        """Its edges, and those of its components that none of them joins."""
        joined = {end for edge in self.edges for end in (edge.writer, edge.target)}
        alone = [name for name in self.components if name not in joined]
        return "; ".join([*map(str, self.edges), *alone])

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads among its components, each once, without roles."""
        return tuple(dict.fromkeys(filter(is_head, map(node_of, self.components))))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that it names."""
        said = [*(split_role(name)[1] for name in self.components), *(e.role for e in self.edges)]
        return tuple(sorted({name for role in said for name in role_names(role)}))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "components": list(self.components),
            "edges": [str(edge) for edge in self.edges],
            "pattern": self.pattern,
            "name": self.name,
            "provenance": dict(self.provenance),
            "model": self.model,
        }


@typed
def circuit(
    text: str,
    pattern: str,
    *,
    name: str = "",
    provenance: Mapping[str, Any] | None = None,
    model: str = "",
) -> CircuitHypothesis:
    """A hypothesis from one line, such as ``"L0H2 -> L1H2.K -> logits; L1H4"``.

    With roles: ``"L0H1@S2 -> L1H2@END.V -> logits"`` (see the head of this module). What is read
    without a role is a component at the roles that it is named with elsewhere in the line.

    Raises ValueError for edges that run backwards, lack their Q, K or V, or do not parse.

    Example:
        >>> import lens_slt as ls
        >>> found = ls.circuit("L0H1@S2 -> L1H2@END.V -> logits", pattern="all")
        >>> print(found)
        circuit for all: L0H1@S2→L1H2.V; L1H2@END→logits
        >>> found.components, found.roles
        (('L0H1@S2', 'L1H2@END'), ('END', 'S2'))
    """
    if not re.sub(r"[;,\s]", "", text):
        raise ValueError(f"text must name at least one component, such as 'L0H2'; got {text!r}")
    named: set[str] = set()
    edges: dict[Edge, None] = {}
    for part in re.split(r"[;,]", text):
        if not part.strip():
            continue
        ends = list(_read(part.strip()))
        for (source, role, _), (target, _, through) in pairwise(ends):
            edges[Edge(source, target, through, role)] = None
        # What is only read, without a role, is there as it is named elsewhere.
        said = ends if len(ends) == 1 or ends[-1][1] else ends[:-1]
        named |= {at_role(node, role) for node, role, _ in said}
    written = {edge.writer for edge in edges if edge.role and edge.source in named}
    components = {name for name in named if name != LOGITS} - written
    components |= {edge.target for edge in edges} - set(map(node_of, components)) - {LOGITS}
    return CircuitHypothesis(
        tuple(sorted(components, key=_place)), tuple(edges), pattern, name, provenance or {}, model
    )


def _read(part: str) -> Iterator[tuple[str, str, str]]:
    """Node, role and through what of the ends of a chain."""
    for place, end in enumerate(_ENDS.split(part)):
        name, _, through = end.strip().partition(".")
        node, role = split_role(name)
        if through and not place:
            raise ValueError(
                f"{part!r} begins with {end!r}: a source has no '.'; an edge is written ->"
            )
        if role and node == LOGITS:
            raise ValueError(f"{part!r}: what the logits read stands where its source does, not @")
        yield node, role, through.upper()


@typed
def write_hypotheses(path: Path | str, hypotheses: Sequence[CircuitHypothesis]) -> None:
    """Write hypotheses to a JSON file.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> path = tempfile.mkdtemp() + "/hypotheses.json"
        >>> ls.write_hypotheses(
        ...     path, [ls.circuit("L1H2", "induction"), ls.circuit("L1H3", "induction")]
        ... )
        >>> len(ls.read_hypotheses(path))
        2
    """
    records = [hypothesis.as_dict() for hypothesis in hypotheses]
    text = json.dumps(records, indent=1, ensure_ascii=False)
    location("path", path).write_text(f"{text}\n", "utf-8")


@typed
def read_hypotheses(path: Path | str) -> list[CircuitHypothesis]:
    """Hypotheses from a JSON file that holds one of them or a list.

    Raises ValueError, naming the file and the entry, for anything else.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> path = tempfile.mkdtemp() + "/hypotheses.json"
        >>> ls.write_hypotheses(path, [ls.circuit("L0H2 -> L1H2.K", pattern="induction")])
        >>> print(ls.read_hypotheses(path)[0])
        circuit for induction: L0H2→L1H2.K
    """
    content = read_json(path)
    records = content if isinstance(content, list) else [content]
    if not records:
        raise ValueError(f"{path} holds no hypothesis: its list is empty")
    found: list[CircuitHypothesis] = []
    for i, record in enumerate(records, 1):
        try:
            one = from_record(record)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, hypothesis {i}: {error}") from None
        if one in found:
            same = found.index(one) + 1
            raise ValueError(f"{path}, hypothesis {i} is hypothesis {same} again: keep one")
        found.append(one)
    return found


def check_hypothesis(hypothesis: CircuitHypothesis, model: AdaptedModel, model_hash: str) -> None:
    """Raise ValueError where the model has no such component or is not the one it was made for."""
    parse_at_roles(hypothesis.components, model)
    if hypothesis.model and hypothesis.model != model_hash:
        raise ValueError(
            f"hypothesis {str(hypothesis)!r} was made for a model with weights "
            f"{hypothesis.model[:12]}…; this one has {model_hash[:12]}…: heads of different models "
            "do not correspond (clear the field 'model' to test it all the same)"
        )


def _place(name: str) -> tuple[int, int, str]:
    """Order of components: by layer, then heads by index, then the MLP."""
    part = read_part(parts_of(node_of(name))[0])
    if part is None:
        return (-1, -1, name) if node_of(name) in EMBEDDINGS else (10**6, -1, name)
    if part.kind == MLP:
        return part.layer, 10**6, name
    return part.layer, -1 if part.head is None else part.head, name


def from_record(record: Any) -> CircuitHypothesis:
    """A hypothesis from what :meth:`CircuitHypothesis.as_dict` gives, or a part of it.

    Raises ValueError or TypeError for keys that are not known, a part named twice, wrong types.
    """
    if not isinstance(record, dict):
        raise TypeError(
            f"must be an object with 'pattern', and 'components' or 'edges'; got {str(record)[:80]}"
        )
    for key in record:
        choice("a key", key, FIELDS)
    if "pattern" not in record or not {"components", "edges"} & set(record):
        raise ValueError(
            "must be an object with 'pattern', and 'components' or 'edges'; "
            f"got {', '.join(record) or 'none'}"
        )
    parts: list[str] = []
    for name in ("edges", "components"):
        here = record.get(name, [])
        instance(name, here, Sequence[str])
        twice = [part for part, n in sorted(Counter[str](here).items()) if n > 1]
        if twice:
            raise ValueError(f"{name} has {twice[0]!r} twice: keep one")
        parts += here
    return circuit(
        ";".join(parts), record["pattern"], name=record.get("name", ""),
        provenance=record.get("provenance"), model=record.get("model", ""),
    )  # fmt: skip
