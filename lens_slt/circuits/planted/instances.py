"""Instances of planted circuits: models, tokens, labels, and hypotheses, true and false."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Generator, Tensor

from lens_slt.arguments import choice, integer, typed
from lens_slt.circuits.hypothesis import CircuitHypothesis, Edge
from lens_slt.circuits.planted.families import PLANS, Plan, Request, edge
from lens_slt.circuits.planted.weights import (
    KINDS,
    Slot,
    assemble,
    build,
    composition_decoy,
    distractor,
    head_weights,
    make_architecture,
    make_space,
    norm_range,
)
from lens_slt.models.names import head_name, head_place
from lens_slt.models.shipped import BACKENDS, has_hooked_transformer

__all__ = ["FAMILIES", "PlantedCircuit", "plant", "planted_suite"]

FAMILIES = tuple(PLANS)
BIGRAM, RANDOM = "bigram", "random"  # patterns that no circuit is for
RANGES = {
    "seed": (0, 2**63 - 1), "n_layers": (2, 6), "n_heads": (6, 16), "vocab": (16, 24),
    "n_sequences": (1, 100_000), "length": (24, 48),
}  # fmt: skip

_SIZES = ((2, 8, 20), (3, 6, 16), (2, 6, 24), (3, 8, 20), (2, 7, 16), (3, 7, 24))  # of the suite


@dataclass(frozen=True, eq=False)
class PlantedCircuit:
    """A model whose circuit is known, with the tokens and labels to find it by.

    ``patterns`` is bool (pattern, sequence, position), as from :func:`lens_slt.label_patterns`:
    position p labels the prediction of ``tokens[:, p + 1]``. Beside ``pattern``, the planted one,
    it holds ``bigram`` (the successor of the token before, which W_U knows without any head) and
    ``random`` (labels drawn at the planted pattern's rate). ``truth`` is None where there is no
    circuit; its provenance holds the ``rules`` of the family in token ids, (a, b, c), (a, c) or
    (opener, closer). ``decoys`` are false: their names say in which way.
    """

    name: str
    family: str
    model: Any  # HookedTransformer or native TransformerBridge
    tokens: Tensor  # int64 [sequence, position]
    patterns: xr.DataArray
    pattern: str
    truth: CircuitHypothesis | None
    decoys: tuple[CircuitHypothesis, ...]


@typed
def plant(
    family: str,
    *,
    seed: int = 0,
    n_layers: int = 2,
    n_heads: int = 8,
    vocab: int = 20,
    n_sequences: int = 128,
    length: int = 32,
    backend: str = "auto",
) -> PlantedCircuit:
    """One instance of a family; the same arguments give the same bits, and no global RNG moves.

    The circuit's heads lie at random places. ``backend`` is "hooked", "bridge" or "auto", as in
    :func:`lens_slt.load_model`. The model is on the CPU, in eval mode, with ``n_ctx = length``.

    Raises ValueError for an unknown family or backend and for sizes out of range (``RANGES``),
    ImportError for ``hooked`` on TransformerLens 4.
    """
    sizes = dict(seed=seed, n_layers=n_layers, n_heads=n_heads, vocab=vocab,
                 n_sequences=n_sequences, length=length)  # fmt: skip
    _check(family, sizes, backend)
    rng = Random(f"{family} {seed}")  # of strings, the same on every platform
    generator = Generator().manual_seed(rng.getrandbits(48))
    space = make_space(vocab, length, generator)
    plan = PLANS[family](Request(space, rng, n_layers, n_heads, vocab, n_sequences, length))
    made = {slot: head_weights(head, generator) for slot, head in plan.heads.items()}
    norms = norm_range(list(made.values()))
    placed = family not in ("decoy", "empty")
    heads = dict(made) if placed else {}
    linked = None
    if family == "decoy" or (family != "empty" and seed % 4 < 2):
        linked = _link(heads, n_layers, n_heads, rng)
        pair = composition_decoy(space, linked.through, _draw(norms, rng), generator)
        heads |= dict(zip(_ends(linked), pair, strict=True))
    for slot in _free(heads, n_layers, n_heads):
        heads[slot] = distractor(space, rng.choice(KINDS), _draw(norms, rng), generator)
    arch = make_architecture(space, n_layers, n_heads, vocab, "LNPre" if seed % 2 else None)
    weights = assemble(arch, space, heads, plan.task, generator)
    name = f"{family}-{seed}"
    truth = _truth(plan, family) if placed else None
    return PlantedCircuit(
        name=name,
        family=family,
        model=build(arch, weights, name, backend),
        tokens=plan.task.tokens,
        patterns=_patterns(plan, generator),
        pattern=plan.pattern,
        truth=truth,
        decoys=_decoys(plan, truth, linked, n_layers, n_heads, rng),
    )


@typed
def planted_suite(
    n_seeds: int = 6, *, n_sequences: int = 128, backend: str = "auto"
) -> Iterator[PlantedCircuit]:
    """Instances of all families, ``n_seeds`` of each, over two and three layers and many sizes.

    Six seeds make 48 instances: every family in all six sizes, four of the six with a composition
    decoy, three with LNPre.
    """
    integer("n_seeds", n_seeds, at_least=1)
    integer("n_sequences", n_sequences, at_least=1)
    choice("backend", backend, BACKENDS)
    return _suite(n_seeds, n_sequences, backend)


def _suite(n_seeds: int, n_sequences: int, backend: str) -> Iterator[PlantedCircuit]:
    for seed in range(n_seeds):
        for place, family in enumerate(FAMILIES):
            n_layers, n_heads, vocab = _SIZES[(seed + place) % len(_SIZES)]
            yield plant(
                family, seed=seed, n_layers=n_layers, n_heads=n_heads, vocab=vocab,
                n_sequences=n_sequences, backend=backend,
            )  # fmt: skip


# --- labels and hypotheses ------------------------------------------------------------------------


def _patterns(plan: Plan, generator: Generator) -> xr.DataArray:
    """Labels of the planted pattern, of bigrams that are not planted, and random ones."""
    tokens, planted = plan.task.tokens.numpy(), plan.task.planted
    bigram = np.array(plan.task.successor)[tokens[:, :-1]] == tokens[:, 1:]
    drawn = torch.rand(planted.shape, generator=generator).numpy() < planted.mean()
    return xr.DataArray(
        np.stack([planted, bigram & ~planted, drawn]),
        dims=("pattern", "sequence", "position"),
        coords={
            "pattern": [plan.pattern, BIGRAM, RANDOM],
            "token_id": (("sequence", "position"), tokens[:, 1:]),
        },
        name="patterns",
    )


def _truth(plan: Plan, family: str) -> CircuitHypothesis:
    components = tuple(head_name(*slot) for slot in sorted(plan.heads))
    provenance = {"family": family, "rules": [list(rule) for rule in plan.task.rules]}
    return CircuitHypothesis(components, plan.edges, plan.pattern, "planted circuit", provenance)


def _decoys(
    plan: Plan,
    truth: CircuitHypothesis | None,
    linked: Edge | None,
    n_layers: int,
    n_heads: int,
    rng: Random,
) -> tuple[CircuitHypothesis, ...]:
    """Hypotheses that are false by construction."""
    taken = set(plan.heads) if truth else set()
    if linked:
        taken |= set(_ends(linked))
    false = [_from_edges((linked,), plan.pattern, "composition without function")] if linked else []
    random_edge = _link(taken, n_layers, n_heads, rng, through="K")
    false.append(_from_edges((random_edge,), plan.pattern, "random heads"))
    if truth is None:
        return tuple(false)
    false.append(replace(truth, pattern=BIGRAM, name="wrong pattern"))
    if plan.edges:
        exchanged = []
        for link in plan.edges:
            (early, source), (late, target) = _ends(link)
            exchanged.append(edge((early, target), (late, source), link.through))
        false.append(_from_edges(tuple(exchanged), plan.pattern, "reversed roles"))
    else:
        [(layer, index)] = plan.heads
        other = head_name((layer + 1) % n_layers, index)
        false.append(CircuitHypothesis((other,), (), plan.pattern, "same place, other layer"))
    return tuple(false)


def _from_edges(edges: tuple[Edge, ...], pattern: str, name: str) -> CircuitHypothesis:
    slots = {slot for link in edges for slot in _ends(link)}
    return CircuitHypothesis(
        tuple(head_name(*slot) for slot in sorted(slots)), edges, pattern, name
    )


def _link(
    taken: Collection[Slot], n_layers: int, n_heads: int, rng: Random, through: str | None = None
) -> Edge:
    """A random edge between two heads that are not taken."""
    free = _free(taken, n_layers, n_heads)
    source = rng.choice([slot for slot in free if slot[0] < n_layers - 1])
    target = rng.choice([slot for slot in free if slot[0] > source[0]])
    return edge(source, target, through or rng.choice("QKV"))


def _free(taken: Collection[Slot], n_layers: int, n_heads: int) -> list[Slot]:
    slots = [(layer, index) for layer in range(n_layers) for index in range(n_heads)]
    return [slot for slot in slots if slot not in taken]


def _draw(norms: dict[str, tuple[float, float]], rng: Random) -> dict[str, float]:
    """Norms like the circuit heads', low ones as likely as high ones."""
    logs = {
        name: (math.log(0.9 * low), math.log(1.1 * high)) for name, (low, high) in norms.items()
    }
    return {name: math.exp(rng.uniform(low, high)) for name, (low, high) in logs.items()}


def _ends(link: Edge) -> tuple[Slot, Slot]:
    return head_place(link.source), head_place(link.target)


def _check(family: str, sizes: dict[str, Any], backend: str) -> None:
    choice("family", family, FAMILIES)
    choice("backend", backend, BACKENDS)
    for name, value in sizes.items():
        low, high = RANGES[name]
        integer(name, value, at_least=low, at_most=high)
    if backend == "hooked" and not has_hooked_transformer():
        raise ImportError(
            "backend='hooked' needs HookedTransformer, which TransformerLens 4 removed; "
            "use backend='bridge'"
        )
