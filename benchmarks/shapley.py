"""The circuit of a trained model by Shapley values, the truth of ``benchmarks.trained_circuits``.

Ablating one part at a time says too little where parts share work: of three heads that copy none is
missed, though all three do it. The Shapley value (1953; of neurons, Ghorbani & Zou 2002.09815) is
what a part brings on average over the contexts in which others are missing already: parts are
ablated one after the other in random orders, and a part's value is the mean of what its own
ablation takes. It is the one division of the model's work in which parts that do the same get the
same, those that change nothing in any context get nothing, and all values add up to the whole.

- *Work* is the mean probability of the right answer. It is bounded, so that a broken model that is
  confidently wrong does not count for more than one that knows nothing, as it would in nats.
- *Ablation* is of two kinds: by resampling (what a part writes in another sequence, of the same
  distribution, at the same positions), which asks what wrong content can hurt, and by zero, which
  asks what its absence does. They disagree where a part writes what the others drown out.
- *Nodes* are all heads and MLPs; *edges* all paths between the nodes of the circuit, ablated in a
  game of their own in which nothing else is.
- A *step* is what works side by side: heads of one layer; an MLP; paths from one layer's heads into
  another's through one input (Q, K or V), and likewise of MLPs. What stands in different layers
  works in series and does not share credit, what stands side by side does: with k heads that stand
  in for one another each is worth far less than the one head before them. So a step is judged by
  the sum of its values, and its parts by one another.

The circuit holds the steps worth at least a tenth of the work that all nodes bring together, and of
each the parts worth at least a quarter of its largest, with p < 0.01 over sequences after Holm's
correction over all nodes, or all edges. *Idle* are parts that are worth less than half of what
would bring them in. Both kinds of ablation have to say so; what only one of them brings in is
*unclear*, as are all paths to or from an unclear node: such a part is neither right nor wrong.

All of it is measured on two samples of sequences, each with orders and stand-ins of its own, and
taken together; what each of them alone says shows how well the circuit is known.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

import lens_slt as ls
from lens_slt.arrays import FloatArray
from lens_slt.circuits.null_sets import all_paths
from lens_slt.circuits.runs import Runs
from lens_slt.models.adapter import adapt
from lens_slt.models.names import is_head, layer_of
from lens_slt.statistics import holm

LEAST_STEP = 0.1  # of the work of all nodes together
LEAST_PART = 0.25  # of the largest of its step
CERTAIN = 0.01
ORDERS = 24
ABLATIONS = ("resample", "zero")  # neither is the trial's
KINDS = [
    *(("head", "head", through) for through in "QKV"), ("head", "MLP", ""), ("MLP", "MLP", ""),
    *(("MLP", "head", through) for through in "QKV"),
]  # fmt: skip
Work = Callable[[frozenset[Any]], FloatArray]  # [sequence], without some parts


@dataclass(frozen=True)
class Worth:
    """Shapley values of parts by sequence, and which of them are the circuit's."""

    parts: tuple[Any, ...]
    values: FloatArray  # [part, sequence]; the halves of the sequences are the two samples
    whole: float  # work of all nodes together
    step_of: Callable[[Any], Hashable]

    @cached_property
    def chosen(self) -> frozenset[Any]:
        """The circuit's."""
        if not self.parts:
            return frozenset()
        mean, n = self.values.mean(1), self.values.shape[1]
        se = np.maximum(self.values.std(1, ddof=1) / np.sqrt(n), 1e-30)
        p = holm(stats.t.sf(mean / se, n - 1))
        certain = {part for part, one in zip(self.parts, p, strict=True) if one < CERTAIN}
        return self._worth(LEAST_STEP, LEAST_PART) & certain

    @property
    def idle(self) -> frozenset[Any]:
        """Those that are clearly not."""
        return frozenset(self.parts) - self._worth(LEAST_STEP / 2, LEAST_PART / 2)

    @property
    def shares(self) -> dict[str, float]:
        """Of every part, its value over the work of all nodes."""
        means = self.values.mean(1) / self.whole
        return {str(part): round(float(x), 4) for part, x in zip(self.parts, means, strict=True)}

    @property
    def halves(self) -> list[Worth]:
        """What each sample says alone."""
        return [replace(self, values=half) for half in np.split(self.values, 2, axis=1)]

    def _worth(self, of_whole: float, of_largest: float) -> frozenset[Any]:
        """Of steps that are worth enough, the parts that are."""
        mean = self.values.mean(1)
        steps: dict[Hashable, list[int]] = {}
        for i, part in enumerate(self.parts):
            steps.setdefault(self.step_of(part), []).append(i)
        return frozenset(
            self.parts[i]
            for members in steps.values() if mean[members].sum() >= of_whole * self.whole
            for i in members if mean[i] >= of_largest * mean[members].max()
        )  # fmt: skip


@dataclass(frozen=True)
class Agreed:
    """What both kinds of ablation say of some parts."""

    kinds: tuple[Worth, ...]

    @property
    def chosen(self) -> frozenset[Any]:
        """The circuit's."""
        return frozenset.intersection(*(worth.chosen for worth in self.kinds))

    @property
    def unclear(self) -> frozenset[Any]:
        """Those on which they disagree."""
        return frozenset.union(*(worth.chosen for worth in self.kinds)) - self.chosen

    @property
    def idle(self) -> frozenset[Any]:
        """Those that are clearly not the circuit's."""
        return frozenset.intersection(*(worth.idle for worth in self.kinds))

    @property
    def halves(self) -> list[Agreed]:
        """What each sample says alone."""
        pairs = zip(*(worth.halves for worth in self.kinds), strict=True)
        return [Agreed(pair) for pair in pairs]


@dataclass(frozen=True)
class TrueCircuit:
    """Nodes and edges with their values; ``paths`` are all that there are."""

    nodes: Agreed
    edges: Agreed
    paths: frozenset[ls.Edge]

    @property
    def parts(self) -> tuple[set[str], set[str]]:
        """Names of nodes and edges."""
        return set(self.nodes.chosen), set(map(str, self.edges.chosen))

    @property
    def unclear(self) -> tuple[set[str], set[str]]:
        """Names of those that may be or not be the circuit's."""
        nodes = self.nodes.unclear
        touched = {path for path in self.paths if {path.source, path.target} & nodes}
        return set(nodes), set(map(str, self.edges.unclear | touched))

    @property
    def halves(self) -> list[tuple[set[str], set[str]]]:
        """The circuit by each sample alone."""
        both = zip(self.nodes.halves, self.edges.halves, strict=True)
        return [TrueCircuit(nodes, edges, self.paths).parts for nodes, edges in both]

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """By kind of ablation: of the work of all nodes, what each node and edge brings."""
        kinds = zip(ABLATIONS, self.nodes.kinds, self.edges.kinds, strict=True)
        return {kind: nodes.shares | edges.shares for kind, nodes, edges in kinds}


def true_circuit(
    model: Any, tokens: Tensor, weights: Tensor, seed: int, n_orders: int = ORDERS
) -> TrueCircuit:
    """The circuit behind the answers that ``weights [sequence, position - 1]`` mark."""
    samples = list(enumerate(zip(tokens.chunk(2), weights.chunk(2), strict=True)))
    games = {
        kind: [_Game(model, *half, kind=kind, seed=2 * seed + i) for i, half in samples]
        for kind in ABLATIONS
    }
    runs = games["resample"][0].runs
    whole = {
        kind: float(np.mean([game.work() - game.work(runs.nodes) for game in both]))
        for kind, both in games.items()
    }

    def played(parts: tuple[Any, ...], work: str, step_of: Callable[[Any], Hashable]) -> Agreed:
        values = {
            kind: [shapley(parts, getattr(game, work), n_orders, game.rng) for game in both]
            for kind, both in games.items()
        }
        return Agreed(
            tuple(
                Worth(parts, np.concatenate(values[kind], axis=1), whole[kind], step_of)
                for kind in ABLATIONS
            )
        )

    nodes = played(runs.nodes, "work", _place)
    paths = all_paths(runs, KINDS)
    between = tuple(sorted(e for e in paths if {e.source, e.target} <= nodes.chosen))
    return TrueCircuit(nodes, played(between, "along", _wire), frozenset(paths))


class _Game:
    """The model's work on some sequences without some of its parts."""

    def __init__(self, model: Any, tokens: Tensor, weights: Tensor, kind: str, seed: int) -> None:
        how = ls.Ablation(kind, seed=seed)
        self.runs = Runs(adapt(model), tokens, how, weights=weights, pad_id=-1)
        self.rng = np.random.default_rng(seed)
        counts = np.asarray(weights, dtype=np.float64)
        self._counts = counts / counts.sum(1, keepdims=True)

    def work(
        self, nodes: frozenset[str] | tuple[str, ...] = (), paths: frozenset[ls.Edge] = frozenset()
    ) -> FloatArray:
        """Mean probability of each sequence's answers."""
        right = np.exp(-np.nan_to_num(self.runs.loss(nodes, paths)))
        return np.asarray((self._counts * right).sum(1), dtype=np.float64)

    def along(self, paths: frozenset[ls.Edge]) -> FloatArray:
        """Without some paths."""
        return self.work(paths=paths)


def shapley(
    parts: Sequence[Any], work: Work, n_orders: int, rng: np.random.Generator
) -> FloatArray:
    """Values ``[part, sequence]`` over random orders, every other one the last one backwards."""
    before = work(frozenset())
    values = np.zeros((len(parts), len(before)))
    order = list(range(len(parts)))
    for i in range(n_orders):
        order = order[::-1] if i % 2 else rng.permutation(len(parts)).tolist()
        removed: frozenset[Any] = frozenset()
        now = before
        for place in order:
            removed |= {parts[place]}
            left = work(removed)
            values[place] += (now - left) / n_orders
            now = left
    return values


def _place(node: str) -> tuple[bool, int]:
    return is_head(node), layer_of(node)


def _wire(edge: ls.Edge) -> Hashable:
    return _place(edge.source), _place(edge.target), edge.through
