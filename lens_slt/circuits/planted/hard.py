"""The hard families of planted circuits: kinds that trained models have and the others lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lens_slt.circuits.hypothesis import Edge
from lens_slt.circuits.pattern_masks import ALL
from lens_slt.circuits.planted.families import (
    PREVIOUS,
    Plan,
    Request,
    edge,
    induction_head,
    previous_head,
    skip_trigram,
)
from lens_slt.circuits.planted.tokens import repeats
from lens_slt.circuits.planted.weights import (
    CONSTANT_NORM,
    N_PLACES,
    Copy,
    Head,
    Match,
    Slot,
    Translator,
    position_copy,
)
from lens_slt.models.names import head_name

_THRESHOLD = 1.0  # of an MLP's neurons; the previous token stands at 6
_SWAY = 1.5  # of the score of an induction head, per unit of what stands in the sink

# In turn layers, heads and vocabulary, where they are other than those of the first suite.
HARD_SIZES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "crowd": ((2, 6, 20), (3, 4, 16), (2, 5, 24), (3, 6, 20), (2, 4, 16), (3, 5, 24)),
    "few_heads": ((2, 2, 20), (3, 1, 16), (2, 1, 24), (3, 2, 20), (2, 2, 16), (3, 1, 24)),
}
HARD_HEADS = {"crowd": (4, 6), "few_heads": (1, 2)}  # fewest and most, likewise


def subspaces(family: str, vocab: int) -> dict[str, int]:
    """Dimensions of the subspaces that only this family needs."""
    if family == "through_mlp":
        return {"mapped": vocab}
    return {"place": N_PLACES, "sink": 1} if family == "positions" else {}


def _crowd(request: Request) -> Plan:
    """All heads of the late layer but one or two: in turn each for its own words, or all for all.

    Each matters: of its words it is the only one, or it writes its share of what all write.
    """
    rng, n_heads = request.rng, request.n_heads
    n = n_heads - (1 if n_heads == 4 else rng.choice((1, 2)))
    layer = rng.randrange(1, request.n_layers)
    early = rng.randrange(layer), rng.randrange(n_heads)
    late = [(layer, index) for index in sorted(rng.sample(range(n_heads), n))]
    words = rng.sample(request.words, len(request.words))
    heads = {early: previous_head(request.space, request.words)}
    for i, slot in enumerate(late):
        heads[slot] = (
            induction_head(request.space, request.words, share=1 / n)
            if request.seed // 2 % 2
            else induction_head(request.space, request.words, asked=words[i::n])
        )
    task = repeats(*request.sizes, rng)
    other = early[0], rng.choice([index for index in range(n_heads) if index != early[1]])
    false = {"wrong source": tuple(edge(other, slot) for slot in late)} | _wrong_input(early, late)
    edges = tuple(edge(early, slot) for slot in late)
    return Plan(task, "induction", heads, edges, false=false, pair=False)


def _few_heads(request: Request) -> Plan:
    """One or two heads a layer: hardly any are left to compare the circuit with."""
    cut = request.rng.randrange(1, request.n_layers)
    early, late = (
        (request.rng.randrange(low, high), request.rng.randrange(request.n_heads))
        for low, high in ((0, cut), (cut, request.n_layers))
    )
    heads = {
        early: previous_head(request.space, request.words),
        late: induction_head(request.space, request.words),
    }
    false = _wrong_input(early, [late])
    if early[1] != late[1]:
        false |= _reversed(early, late)
    task = repeats(*request.sizes, request.rng)
    return Plan(task, "induction", heads, (edge(early, late),), false=false, pair=False)


def _dead_head(request: Request) -> Plan:
    """Beside the induction head one that attends as it does, and whose values are always zero."""
    early, late, dead = request.slots(1, 2)
    space, words = request.space, request.words
    live = induction_head(space, words)
    match = live.matches[0]
    [copy] = live.copies
    n = len(space.blank)
    nothing = Copy(
        space.blank, space.output[request.rng.sample(words, n)], copy.gain * len(words) / n
    )
    idle = Head((replace(match, strength=1.1 * match.strength), live.matches[1]), (nothing,))
    false = {"dead head": (edge(early, dead),)} | _reversed(early, late)
    return Plan(
        repeats(*request.sizes, request.rng), "induction",
        {early: previous_head(space, words), late: live}, (edge(early, late),),
        idle={dead: idle}, false=false,
    )  # fmt: skip


def _positions(request: Request) -> Plan:
    """Large learned positions, which every head before the last layer moves into the sink.

    At every position the sink is empty only if all of them do; the induction head's scores hang on
    it. So a head must keep what it writes at each position, on average, or all is lost.
    """
    space, words, rng = request.space, request.words, request.rng
    last = request.n_layers - 1
    source, target = rng.sample(range(request.n_heads), 2)
    early, late = (rng.randrange(last), source), (last, target)
    previous, induction = previous_head(space, words), induction_head(space, words)
    carried = position_copy(space, rng.randrange(N_PLACES))
    sway = Match(space.constant, space.sink, _SWAY / CONSTANT_NORM)
    heads = {
        early: replace(previous, copies=(*previous.copies, carried)),
        late: replace(induction, matches=(*induction.matches, sway)),
    }
    other = early[0], rng.choice([i for i in range(request.n_heads) if i not in (source, target)])
    false = {"position without function": (edge(other, late),)} | _reversed(early, late)
    return Plan(
        repeats(*request.sizes, rng), "induction", heads, (edge(early, late),), false=false,
        pair=False, kinds=("previous", "current", "two_back"), carriers=range(last),
    )  # fmt: skip


def _through_mlp(request: Request) -> Plan:
    """Between the two heads of induction an MLP, which passes the previous token on."""
    early, late = request.slots(1, 1)
    space, words = request.space, request.words
    layer = request.rng.randrange(early[0], late[0])
    gain = PREVIOUS / (PREVIOUS - _THRESHOLD)
    translator = Translator(space.previous[words], space.mapped[words], _THRESHOLD, gain)
    heads = {
        early: previous_head(space, words),
        late: induction_head(space, words, keys=space.mapped),
    }
    false: dict[str, tuple[Edge, ...]] = {
        "past the MLP": (edge(early, late),),
        "reversed roles": _through(layer, (early[0], late[1]), (late[0], early[1])),
    }
    others = [i for i in range(early[0], late[0]) if i != layer]
    if others:
        false["another MLP"] = _through(request.rng.choice(others), early, late)
    return Plan(
        repeats(*request.sizes, request.rng), "induction", heads, _through(layer, early, late),
        translators={layer: translator}, false=false,
    )  # fmt: skip


def _answer_only(request: Request) -> Plan:
    """Induction, or in turn a skip trigram, where only the last prediction counts."""
    if request.seed // 2 % 2:
        plan = skip_trigram(request, answered=True)
    else:
        early, late = request.slots(1, 1)
        heads = {
            early: previous_head(request.space, request.words),
            late: induction_head(request.space, request.words),
        }
        task = repeats(*request.sizes, request.rng, answered=True)
        plan = Plan(task, ALL, heads, (edge(early, late),))
    counts = np.zeros_like(plan.task.planted)
    counts[:, -1] = True
    return replace(plan, pattern=ALL, counts=counts, task=replace(plan.task, planted=counts))


HARD_PLANS: dict[str, Callable[[Request], Plan]] = {
    "crowd": _crowd,
    "few_heads": _few_heads,
    "dead_head": _dead_head,
    "positions": _positions,
    "through_mlp": _through_mlp,
    "answer_only": _answer_only,
}


def _through(layer: int, early: Slot, late: Slot) -> tuple[Edge, ...]:
    """The edges from a head through the MLP of a layer into the keys of another."""
    mlp = f"L{layer}MLP"
    return Edge(head_name(*early), mlp), Edge(mlp, head_name(*late), "K")


def _reversed(early: Slot, late: Slot) -> dict[str, tuple[Edge, ...]]:
    """The circuit at exchanged places."""
    return {"reversed roles": (edge((early[0], late[1]), (late[0], early[1])),)}


def _wrong_input(early: Slot, late: list[Slot]) -> dict[str, tuple[Edge, ...]]:
    """The circuit through values instead of keys."""
    return {"wrong input": tuple(edge(early, slot, "V") for slot in late)}
