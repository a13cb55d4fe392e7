"""What every test of a trial needs: a hypothesis, runs of the model and a contrast."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from lens_slt.circuits.hypothesis import LOGITS, CircuitHypothesis, Edge, check_hypothesis
from lens_slt.circuits.interventions import outside_of
from lens_slt.circuits.null_sets import Kind, all_paths, kind_of
from lens_slt.circuits.paths import as_read
from lens_slt.circuits.roles import apart, node_of, nodes_of, pieces
from lens_slt.circuits.runs import Losses, Runs
from lens_slt.circuits.statistics import Contrast
from lens_slt.models.names import is_head


def check_case(hypothesis: CircuitHypothesis, runs: Runs, digest: str) -> None:
    """Raise ValueError where the model of these runs, with weights ``digest``, cannot try it."""
    check_hypothesis(hypothesis, runs.adapted, digest)
    nodes_of(hypothesis.components, runs.adapted)
    runs.roles.check(hypothesis.roles)
    runs.roles.check_apart(hypothesis.roles)


@dataclass
class Case:
    """A hypothesis with what is needed to test it."""

    hypothesis: CircuitHypothesis
    runs: Runs
    contrast: Contrast
    least_effect: float
    n_null: int
    seed: int
    nodes: frozenset[str] = field(init=False)
    outside: str = field(init=False)
    unit: str = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = nodes_of(self.hypothesis.components, self.runs.adapted)
        self.unit = self.runs.metric.units
        # MLPs stay where the hypothesis speaks of heads only (as in Wang et al. 2211.00593).
        self.outside = "heads" if all(is_head(node_of(x)) for x in self.nodes) else "all"

    @cached_property
    def kinds(self) -> frozenset[Kind]:
        """Of its edges between nodes; those to the logits speak of no other reader."""
        return frozenset(kind_of(e) for e in self.hypothesis.edges if e.target != LOGITS)

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Of its edges between nodes, and the rest; together they are everywhere."""
        return apart(edge.role for edge in self.hypothesis.edges if edge.target != LOGITS)

    @cached_property
    def universe(self) -> frozenset[Edge]:
        """Every path of these kinds, at every role that its edges name and at all other positions.

        At all positions where they name none.
        """
        paths = all_paths(self.runs, self.kinds)
        return frozenset(replace(path, role=role) for path in paths for role in self.roles)

    @cached_property
    def own_paths(self) -> frozenset[Edge]:
        """Those that the hypothesis names."""
        return self.universe & self.in_pieces(self.hypothesis.edges)

    def in_pieces(self, edges: Iterable[Edge]) -> frozenset[Edge]:
        """Edges as the universe has them: one everywhere is one at each role."""
        edges = [as_read(edge, self.runs.adapted) for edge in edges]
        return frozenset(
            replace(edge, role=role) for edge in edges for role in pieces(edge.role, self.roles)
        )

    def along(self, edges: frozenset[Edge]) -> Losses:
        """Losses where every path of these kinds but some is ablated."""
        return self.runs.loss(paths=self.universe - edges)

    def rise(self, nodes: Iterable[str] = (), paths: Iterable[Edge] = ()) -> Losses:
        """Rise of the loss of every token under an ablation."""
        return self.runs.loss(nodes, paths) - self.runs.base

    def beyond(self, given: frozenset[Edge], *paths: Edge) -> Losses:
        """What ablating some paths adds where others are ablated already."""
        return self.rise(paths=given | set(paths)) - self.rise(paths=given)

    def kept(self, nodes: Iterable[str]) -> Losses:
        """Losses where everything outside some nodes is ablated."""
        return self.runs.loss(outside_of(frozenset(nodes), self.runs, self.outside))

    def of(self, component: str) -> frozenset[str]:
        """Nodes of one component."""
        return nodes_of([component], self.runs.adapted)
