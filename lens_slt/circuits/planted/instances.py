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
from lens_slt.circuits.hypothesis import CircuitHypothesis, Edge, circuit
from lens_slt.circuits.planted.families import PLANS, Plan, Request, edge
from lens_slt.circuits.planted.hard import HARD_HEADS, HARD_PLANS, HARD_SIZES, subspaces
from lens_slt.circuits.planted.model import assemble, build, make_architecture
from lens_slt.circuits.planted.weights import (
    HeadWeights,
    MlpWeights,
    Slot,
    carry_position,
    composition_decoy,
    distractor,
    head_weights,
    junk_translator,
    make_space,
    mlp_weights,
    norm_range,
)
from lens_slt.models.names import head_name, head_place
from lens_slt.models.shipped import BACKENDS, has_hooked_transformer

FAMILIES, HARD_FAMILIES = tuple(PLANS), tuple(HARD_PLANS)
BIGRAM, RANDOM = "bigram", "random"  # patterns that no circuit is for
RANGES = {
    "seed": (0, 2**63 - 1), "n_layers": (2, 6), "n_heads": (6, 16), "vocab": (16, 24),
    "n_sequences": (1, 100_000), "length": (24, 48),
}  # fmt: skip

_USUAL_HEADS = 8
_IDLE_NEURONS = 8  # beside those that translate, and as many more in all other MLPs
_SIZES = ((2, 8, 20), (3, 6, 16), (2, 6, 24), (3, 8, 20), (2, 7, 16), (3, 7, 24))  # of the suite


@dataclass(frozen=True, eq=False)
class PlantedCircuit:
    """A model whose circuit is known, with the tokens and labels to find it by.

    ``patterns`` is bool (pattern, sequence, position), as from :func:`lens_slt.label_patterns`:
    position p labels the prediction of ``tokens[:, p + 1]``. Beside ``pattern``, the planted one,
    it holds ``bigram`` (the successor of the token before, which W_U knows without any head) and
    ``random`` (labels drawn at the planted pattern's rate). ``truth`` is None where there is no
    circuit; its provenance holds the ``rules`` of the family in token ids, (a, b, c), (a, c) or
    (opener, closer). ``decoys`` are false: their names say in which way. ``weights`` say how much
    every prediction counts, None that all count alike. Where only answers do, the pattern is
    ``all``, and ``random`` half of them.
    """

    name: str
    family: str
    model: Any  # HookedTransformer or native TransformerBridge
    tokens: Tensor  # int64 [sequence, position]
    patterns: xr.DataArray
    pattern: str
    truth: CircuitHypothesis | None
    decoys: tuple[CircuitHypothesis, ...]
    weights: Tensor | None = None  # float32 [sequence, position - 1]


@typed
def plant(
    family: str,
    *,
    seed: int = 0,
    n_layers: int = 2,
    n_heads: int | None = None,
    vocab: int = 20,
    n_sequences: int = 128,
    length: int = 32,
    backend: str = "auto",
) -> PlantedCircuit:
    """One instance of a family; the same arguments give the same bits, and no global RNG moves.

    The circuit's heads lie at random places. ``n_heads`` is 8 by default, or the most that the
    family may have (``crowd`` 4 to 6, ``few_heads`` 1 or 2, others 6 to 16). ``backend`` is
    "hooked", "bridge" or "auto", as in :func:`lens_slt.load_model`. The model is on the CPU, in
    eval mode, with ``n_ctx = length``.

    Raises ValueError for an unknown family or backend and for sizes out of range (the message
    says which), ImportError for ``hooked`` on TransformerLens 4.

    Example:
        >>> import lens_slt as ls
        >>> p = ls.plant("through_mlp", n_sequences=8)
        >>> p.truth.components
        ('L0H4', 'L0MLP', 'L1H7')
    """
    if n_heads is None:
        n_heads = min(_USUAL_HEADS, *HARD_HEADS.get(family, RANGES["n_heads"])[1:])
    sizes = dict(seed=seed, n_layers=n_layers, n_heads=n_heads, vocab=vocab,
                 n_sequences=n_sequences, length=length)  # fmt: skip
    _check(family, sizes, backend)
    rng = Random(f"{family} {seed}")  # of strings, the same on every platform
    generator = Generator().manual_seed(rng.getrandbits(48))
    space = make_space(vocab, length, generator, **subspaces(family, vocab))
    request = Request(space, rng, n_layers, n_heads, vocab, n_sequences, length, seed)
    plan = (PLANS | HARD_PLANS)[family](request)
    placed = family not in ("decoy", "empty")
    pair = plan.pair and (family == "decoy" or (family != "empty" and seed % 4 < 2))
    heads, linked = _all_heads(plan, request, generator, placed=placed, pair=pair)
    mlps = _all_mlps(plan, request, generator)
    norm = "LNPre" if seed % 2 and not plan.carriers else None
    arch = make_architecture(space, n_layers, n_heads, vocab, norm, mlps=bool(mlps))
    weights = assemble(arch, space, heads, plan.task, generator, mlps, len(plan.carriers))
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
        decoys=_decoys(plan, truth, linked, request),
        weights=None if plan.counts is None else torch.tensor(plan.counts, dtype=torch.float32),
    )


@typed
def planted_suite(
    n_seeds: int = 6, *, n_sequences: int = 128, backend: str = "auto", seed: int = 0
) -> Iterator[PlantedCircuit]:
    """Instances of the eight plain families, ``n_seeds`` of each from ``seed`` on, in many sizes.

    Six seeds make 48 instances: every family in all six sizes, of two and three layers, four of the
    six with a composition decoy, three with LNPre.

    Example:
        >>> import lens_slt as ls
        >>> names = [p.family for p in ls.planted_suite(1, n_sequences=8)]
        >>> len(names), names[0]
        (8, 'induction')
    """
    _check_suite(n_seeds, n_sequences, backend, seed)
    return _suite(FAMILIES, n_seeds, n_sequences, backend, seed)


@typed
def hard_suite(
    n_seeds: int = 6, *, n_sequences: int = 128, backend: str = "auto", seed: int = 0
) -> Iterator[PlantedCircuit]:
    """Instances of the hard families, ``n_seeds`` of each from ``seed`` on, in many sizes.

    They have what circuits of trained models have and those of :func:`planted_suite` lack. Six
    seeds make 36 instances, every family in all of its six sizes. Pass ``weights`` of those whose
    loss counts at answers alone: ``ls.cross_check(p.model, p.tokens, p.truth, patterns=p.patterns,
    weights=p.weights)``.

    Example:
        >>> import lens_slt as ls
        >>> [p.family for p in ls.hard_suite(1, n_sequences=8)]
        ['crowd', 'few_heads', 'dead_head', 'positions', 'through_mlp', 'answer_only']
    """
    _check_suite(n_seeds, n_sequences, backend, seed)
    return _suite(HARD_FAMILIES, n_seeds, n_sequences, backend, seed)


def _suite(
    families: tuple[str, ...], n_seeds: int, n_sequences: int, backend: str, first: int
) -> Iterator[PlantedCircuit]:
    for seed in range(first, first + n_seeds):
        for place, family in enumerate(families):
            sizes = HARD_SIZES.get(family, _SIZES)
            n_layers, n_heads, vocab = sizes[(seed + place) % len(sizes)]
            yield plant(
                family, seed=seed, n_layers=n_layers, n_heads=n_heads, vocab=vocab,
                n_sequences=n_sequences, backend=backend,
            )  # fmt: skip


# --- heads and MLPs -------------------------------------------------------------------------------


def _all_heads(
    plan: Plan, request: Request, generator: Generator, *, placed: bool, pair: bool
) -> tuple[dict[Slot, HeadWeights], Edge | None]:
    """All heads: those of the plan if they are placed, idle ones, a composition decoy, distractors.

    The edge is that of the composition decoy.
    """
    space, rng = request.space, request.rng
    made = {slot: head_weights(head, generator) for slot, head in plan.heads.items()}
    norms = norm_range(list(made.values()))
    heads = dict(made) if placed else {}
    heads |= {slot: head_weights(head, generator) for slot, head in plan.idle.items()}
    linked = _link(heads, request) if pair else None
    if linked:
        two = composition_decoy(space, linked.through, _draw(norms, rng), generator)
        heads |= dict(zip(_ends(linked), two, strict=True))
    for slot in _free(heads, request):
        heads[slot] = distractor(space, rng.choice(plan.kinds), _draw(norms, rng), generator)
        if slot[0] in plan.carriers:
            place = rng.randrange(len(space.place))
            heads[slot] = carry_position(space, heads[slot], place, generator)
    return heads, linked


def _all_mlps(plan: Plan, request: Request, generator: Generator) -> list[MlpWeights]:
    """One MLP per layer where any is in the circuit; all are as wide, and full of idle neurons."""
    if not plan.translators:
        return []
    like = next(iter(plan.translators.values()))
    width = len(like.read) + _IDLE_NEURONS
    mlps = []
    for layer in range(request.n_layers):
        own = [plan.translators[layer]] if layer in plan.translators else []
        rest = width - sum(len(one.read) for one in own)
        mlps.append(mlp_weights(*own, junk_translator(request.space, rest, like, generator)))
    return mlps


# --- labels and hypotheses ------------------------------------------------------------------------


def _patterns(plan: Plan, generator: Generator) -> xr.DataArray:
    """Labels of the planted pattern, of bigrams that are not planted, and random ones.

    Where only answers count, all of which are planted, random ones are half of them.
    """
    tokens, planted = plan.task.tokens.numpy(), plan.task.planted
    bigram = np.array(plan.task.successor)[tokens[:, :-1]] == tokens[:, 1:]
    drawn = torch.rand(planted.shape, generator=generator).numpy()
    labels = {plan.pattern: planted, BIGRAM: bigram & ~planted, RANDOM: drawn < planted.mean()}
    if plan.counts is not None:
        labels = {plan.pattern: planted, RANDOM: planted & (drawn < 0.5)}
    return xr.DataArray(
        np.stack(list(labels.values())),
        dims=("pattern", "sequence", "position"),
        coords={
            "pattern": list(labels),
            "token_id": (("sequence", "position"), tokens[:, 1:]),
        },
        name="patterns",
    )


def _truth(plan: Plan, family: str) -> CircuitHypothesis:
    heads = [head_name(*slot) for slot in plan.heads]
    provenance = {"family": family, "rules": [list(rule) for rule in plan.task.rules]}
    text = "; ".join([*map(str, plan.edges), *heads])
    return circuit(text, plan.pattern, name="planted circuit", provenance=provenance)


def _decoys(
    plan: Plan, truth: CircuitHypothesis | None, linked: Edge | None, request: Request
) -> tuple[CircuitHypothesis, ...]:
    """Hypotheses that are false by construction."""
    taken = {*plan.heads, *plan.idle} if truth else set()
    if linked:
        taken |= set(_ends(linked))
    false = [_from_edges((linked,), plan.pattern, "composition without function")] if linked else []
    random_edge = _link(taken, request, through="K")
    if random_edge:
        false.append(_from_edges((random_edge,), plan.pattern, "random heads"))
    if truth is None:
        return tuple(false)
    wrong = BIGRAM if plan.counts is None else RANDOM
    false.append(replace(truth, pattern=wrong, name="wrong pattern"))
    if plan.false is not None:
        false += [_from_edges(edges, plan.pattern, name) for name, edges in plan.false.items()]
    elif plan.edges:
        exchanged = []
        for link in plan.edges:
            (early, source), (late, target) = _ends(link)
            exchanged.append(edge((early, target), (late, source), link.through))
        false.append(_from_edges(tuple(exchanged), plan.pattern, "reversed roles"))
    else:
        [(layer, index)] = plan.heads
        other = head_name((layer + 1) % request.n_layers, index)
        false.append(CircuitHypothesis((other,), (), plan.pattern, "same place, other layer"))
    return tuple(false)


def _from_edges(edges: tuple[Edge, ...], pattern: str, name: str) -> CircuitHypothesis:
    return circuit("; ".join(map(str, edges)), pattern, name=name)


def _link(taken: Collection[Slot], request: Request, through: str | None = None) -> Edge | None:
    """A random edge between two heads that are not taken; None where there are none."""
    free = _free(taken, request)
    sources = [slot for slot in free if slot[0] < free[-1][0]]
    if not sources:
        return None
    source = request.rng.choice(sources)
    target = request.rng.choice([slot for slot in free if slot[0] > source[0]])
    return edge(source, target, through or request.rng.choice("QKV"))


def _free(taken: Collection[Slot], request: Request) -> list[Slot]:
    slots = [(layer, i) for layer in range(request.n_layers) for i in range(request.n_heads)]
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
    choice("family", family, FAMILIES + HARD_FAMILIES)
    choice("backend", backend, BACKENDS)
    ranges = RANGES | {"n_heads": HARD_HEADS.get(family, RANGES["n_heads"])}
    for name, value in sizes.items():
        low, high = ranges[name]
        integer(name, value, at_least=low, at_most=high)
    if backend == "hooked" and not has_hooked_transformer():
        raise ImportError(
            "backend='hooked' needs HookedTransformer, which TransformerLens 4 removed; "
            "use backend='bridge'"
        )


def _check_suite(n_seeds: int, n_sequences: int, backend: str, seed: int) -> None:
    integer("n_seeds", n_seeds, at_least=1)
    integer("n_sequences", n_sequences, at_least=1)
    integer("seed", seed, at_least=0)
    choice("backend", backend, BACKENDS)
