"""The families of planted circuits: for each a task, the heads that solve it, and their edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random

from torch import Tensor

from lens_slt.arrays import BoolArray
from lens_slt.circuits.hypothesis import Edge
from lens_slt.circuits.planted.tokens import (
    BOS,
    MARK,
    Task,
    multigrams,
    nested_brackets,
    repeats,
    skip_trigrams,
)
from lens_slt.circuits.planted.weights import (
    KINDS,
    RECENCY_NORM,
    TOKEN_NORM,
    Copy,
    Head,
    Match,
    Slot,
    Space,
    Translator,
    attend_back,
    rest_on_first,
)
from lens_slt.models.names import head_name

PREVIOUS = 6.0  # length of the copy of the previous token
OUTPUT = 10.0  # length of what a circuit writes for W_U
SCORE = 6.5  # attention score where a head is meant to look, of about 0 elsewhere
RESTS = 3.0  # that of BOS, where a head looks otherwise


@dataclass(frozen=True)
class Request:
    """What a family is planted into."""

    space: Space
    rng: Random
    n_layers: int
    n_heads: int
    vocab: int
    n_sequences: int
    length: int
    seed: int

    @property
    def words(self) -> list[int]:
        """All tokens but BOS."""
        return list(range(BOS + 1, self.vocab))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Those of the tokens: vocabulary, sequences, length."""
        return self.vocab, self.n_sequences, self.length

    def slots(self, early: int, late: int) -> list[Slot]:
        """Places of heads, all of the early ones in layers before all of the late ones.

        No two have the same index, so that their places can be exchanged to make a false circuit.
        """
        cut = self.rng.randrange(1, self.n_layers)
        layers = [self.rng.randrange(cut) for _ in range(early)]
        layers += [self.rng.randrange(cut, self.n_layers) for _ in range(late)]
        return list(zip(layers, self.rng.sample(range(self.n_heads), early + late), strict=True))


@dataclass(frozen=True)
class Plan:
    """A task and the heads that solve it, with the edges between them.

    What only hard families have: ``idle`` heads look like a part of the circuit and are none.
    ``translators`` are MLPs of the circuit by layer; with any, all layers have MLPs. ``false`` are
    edges of false hypotheses by name; without them, they are made from the edges by exchange.
    ``pair`` says whether there is room for a composition decoy, ``kinds`` what distractors do, and
    every head of the layers ``carriers`` moves position features. ``counts`` is bool
    ``[sequence, position - 1]``, the predictions that the loss is about; None for all of them.
    """

    task: Task
    pattern: str
    heads: dict[Slot, Head]
    edges: tuple[Edge, ...] = ()
    idle: dict[Slot, Head] = field(default_factory=dict)
    translators: dict[int, Translator] = field(default_factory=dict)
    false: dict[str, tuple[Edge, ...]] | None = None
    pair: bool = True
    kinds: tuple[str, ...] = KINDS
    carriers: range = range(0)
    counts: BoolArray | None = None


def _induction(request: Request) -> Plan:
    early, late = request.slots(1, 1)
    heads = {
        early: previous_head(request.space, request.words),
        late: induction_head(request.space, request.words),
    }
    return Plan(repeats(*request.sizes, request.rng), "induction", heads, (edge(early, late),))


def _spread(request: Request) -> Plan:
    first, second, late = request.slots(2, 1)
    words = request.rng.sample(request.words, request.vocab - 1)
    half = len(words) // 2
    heads = {
        first: previous_head(request.space, words[:half]),
        second: previous_head(request.space, words[half:]),
        late: induction_head(request.space, request.words),
    }
    edges = (edge(first, late), edge(second, late))
    return Plan(repeats(*request.sizes, request.rng), "induction", heads, edges)


def _backup(request: Request) -> Plan:
    early, late, backup = request.slots(1, 2)
    heads = {
        early: previous_head(request.space, request.words),
        late: induction_head(request.space, request.words),
        backup: induction_head(request.space, request.words),
    }
    edges = (edge(early, late), edge(early, backup))
    return Plan(repeats(*request.sizes, request.rng), "induction", heads, edges)


def skip_trigram(request: Request, *, answered: bool = False) -> Plan:
    """One head, which writes c where the token is b and its own a stood earlier."""
    task = skip_trigrams(*request.sizes, request.rng, answered=answered)
    first, second, third = map(list, zip(*task.rules, strict=True))
    token, output = request.space.token, request.space.output
    head = Head(
        (
            Match(token[second], token[first], 1.1 * SCORE / TOKEN_NORM**2),
            rest_on_first(request.space, RESTS),
        ),
        (Copy(token[first], output[third], 1.4 * OUTPUT / TOKEN_NORM),),
    )
    return Plan(task, "skip_trigram", {_any_slot(request): head})


def _multigram(request: Request) -> Plan:
    task = multigrams(*request.sizes, request.rng)
    first, last = map(list, zip(*task.rules, strict=True))
    copy = Copy(request.space.token[first], request.space.output[last], OUTPUT / TOKEN_NORM)
    head = Head((attend_back(request.space, 1, SCORE),), (copy,))
    return Plan(task, "multigram", {_any_slot(request): head})


def _brackets(request: Request) -> Plan:
    """The counting head spreads its attention evenly over brackets where MARK asks for a closer.

    What it writes is then (opened − closed) by type, zero for balanced types however often they
    occurred. The matching head adds up: an opener, of an open type, and recent.
    """
    task, space = nested_brackets(*request.sizes, request.rng), request.space
    openers, closers = map(list, zip(*task.rules, strict=True))
    mark, token = space.token[[MARK]], space.token
    squared = TOKEN_NORM**2
    brackets = token[openers + closers].sum(0, keepdim=True)
    count = Head(
        (
            Match(mark, brackets, 5.0 / squared),
            rest_on_first(space, 5.0 + math.log(4)),  # as much as four brackets
        ),
        # Counts are small differences: large values keep them above the noise of other inputs.
        (Copy(token[openers] - token[closers], space.count, 9.0, tilt=2.0),),
    )
    slope = 0.9 * (space.length - 1) / (2 * RECENCY_NORM)  # of the score, per position
    match = Head(
        (
            Match(space.count, token[openers], 0.7),
            Match(mark, token[openers].sum(0, keepdim=True), 4.0 / squared),
            Match(mark, space.recency, slope / TOKEN_NORM),
            rest_on_first(space, 2 * RESTS),
        ),
        (Copy(token[openers], space.output[closers], 1.4 * OUTPUT / TOKEN_NORM),),
    )
    early, late = request.slots(1, 1)
    return Plan(task, "closing", {early: count, late: match}, (edge(early, late, "Q"),))


PLANS: dict[str, Callable[[Request], Plan]] = {
    "induction": _induction,
    "skip_trigram": skip_trigram,
    "multigram": _multigram,
    "brackets": _brackets,
    "spread": _spread,
    "backup": _backup,
    "decoy": _induction,  # its tokens; its heads only lend their norms
    "empty": _induction,
}


def previous_head(space: Space, words: list[int]) -> Head:
    """Attends to the previous token and notes which of these words it was."""
    copy = Copy(space.token[words], space.previous[words], PREVIOUS / TOKEN_NORM)
    return Head((attend_back(space, 1, SCORE),), (copy,))


def induction_head(
    space: Space,
    words: list[int],
    *,
    asked: Collection[int] | None = None,
    keys: Tensor | None = None,
    share: float = 1.0,
) -> Head:
    """Attends to what followed the same word earlier, and predicts it; after MARK it rests.

    It looks for ``asked`` words only (all of them by default), finds them by ``keys`` (one row per
    token, the copies of the previous token by default), and writes this share of the output.
    """
    keys = space.previous if keys is None else keys
    asked = [word for word in words if word != MARK and (asked is None or word in asked)]
    match = Match(space.token[asked], keys[asked], SCORE / (TOKEN_NORM * PREVIOUS))
    copy = Copy(space.token[words], space.output[words], share * OUTPUT / TOKEN_NORM)
    return Head((match, rest_on_first(space, RESTS)), (copy,))


def _any_slot(request: Request) -> Slot:
    return request.rng.randrange(request.n_layers), request.rng.randrange(request.n_heads)


def edge(source: Slot, target: Slot, through: str = "K") -> Edge:
    """The edge between the heads at these places."""
    return Edge(head_name(*source), head_name(*target), through)
