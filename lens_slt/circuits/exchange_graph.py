"""A graph of nodes and scored edges between files and hypotheses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lens_slt.circuits.hypothesis import LOGITS, THROUGH, Edge
from lens_slt.models.adapter import AdaptedModel
from lens_slt.models.names import EMBEDDINGS, head_name, mlp_name


@dataclass(frozen=True)
class Graph:
    """Edges and nodes that are in a circuit, and the scores of these and other edges."""

    edges: list[Edge]
    nodes: list[str]
    scores: dict[Edge, float]

    def best(self, n: int) -> list[Edge]:
        """Edges with the largest scores, by size."""
        return sorted(self.scores, key=lambda edge: -abs(self.scores[edge]))[:n]


@dataclass(frozen=True)
class Sizes:
    """How many nodes a model has, and what its MLPs read."""

    n_layers: int
    n_heads: int
    d_model: int
    attn_only: bool = False
    parallel: bool = False  # MLPs do not read the heads of their own layer
    positions: bool = False  # learned ones are added to the embedding

    @classmethod
    def of(cls, adapted: AdaptedModel) -> Sizes:
        known: Any = adapted.architecture or adapted.module.cfg
        return cls(
            adapted.n_layers, adapted.n_heads, adapted.d_model, adapted.attn_only,
            bool(getattr(known, "parallel_attn_mlp", False)), adapted.positions == "standard",
        )  # fmt: skip

    def edges(self) -> Iterator[Edge]:
        """All edges, in the order of EAP-IG: by layer of the target, then by source."""
        before = list(EMBEDDINGS if self.positions else EMBEDDINGS[:1])
        for layer in range(self.n_layers):
            heads = [head_name(layer, head) for head in range(self.n_heads)]
            mlp = mlp_name(layer)
            yield from (Edge(s, head, x) for s in before for head in heads for x in THROUGH)
            read = before if self.parallel else before + heads
            if not self.attn_only:
                yield from (Edge(source, mlp) for source in read)
            before += [*heads, *([] if self.attn_only else [mlp])]
        yield from (Edge(source, LOGITS) for source in before)

    def check(self, graph: Graph) -> None:
        """Raise ValueError for an edge or node that is not this model's."""
        known = set(self.edges())
        ends = {edge.source for edge in known}
        for part in (*graph.edges, *graph.scores, *graph.nodes):
            if part not in (known if isinstance(part, Edge) else ends):
                raise ValueError(
                    f"circuit: {part} is not in the model, which has {self.n_layers} layers of "
                    f"{self.n_heads} heads" + ", and no MLPs" * self.attn_only
                )
