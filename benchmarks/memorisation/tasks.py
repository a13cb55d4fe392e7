"""Three families of tasks whose amount to be memorised is known, each in growing sizes.

A task is a list of contexts with one answer each. One time in ten the answer is a blank instead,
the same for all contexts: the loss then has a floor and a curvature at the best weights, which a
loss that is driven to zero has not, and no noise is there to be memorised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Generator, Tensor

from benchmarks.zoo.models import Shape
from benchmarks.zoo.tasks import BOS

BLANK_SHARE = 0.1
N_SYMBOLS = 16  # of a table: at either place of a context, and as answers
MOST_ADDENDS = 13
N_BITS, PARITY_OF = 5, 2  # input bits, and how many of them a parity is of
MOST_PARITIES = 8


@dataclass(frozen=True)
class Facts:
    """Contexts ``[context, position]``, their answers, and how many answers a guess chooses from.

    The blank is the last token of the vocabulary.
    """

    contexts: Tensor
    answers: Tensor
    n_answers: int
    d_vocab: int

    @property
    def blank(self) -> int:
        return self.d_vocab - 1

    @property
    def floor(self) -> float:
        """The least mean loss, in nats: that of not knowing when the blank comes."""
        q = BLANK_SHARE
        return -q * math.log(q) - (1 - q) * math.log(1 - q)

    @property
    def to_learn(self) -> float:
        """Mean loss, above the floor, of a guess that knows only which answers there are."""
        return (1 - BLANK_SHARE) * math.log(self.n_answers)

    @property
    def rows(self) -> Tensor:
        """Every context with its answer, then every context with the blank."""
        right = torch.cat([self.contexts, self.answers[:, None]], 1)
        blank = torch.full_like(self.answers, self.blank)
        return torch.cat([right, torch.cat([self.contexts, blank[:, None]], 1)])

    @property
    def weights(self) -> Tensor:
        """Of every prediction of ``rows``: at the answers alone."""
        n, length = self.contexts.shape
        made = torch.zeros(2 * n, length)
        made[:n, -1], made[n:, -1] = 1 - BLANK_SHARE, BLANK_SHARE
        return made


@dataclass(frozen=True)
class Family:
    """Tasks of growing size for models of one shape."""

    name: str
    sizes: tuple[int, ...]
    make: Callable[[int, Generator], Facts]
    shape: Shape


def table(size: int, generator: Generator) -> Facts:
    """So many trigrams: random pairs of symbols, each with a random third."""
    pairs = torch.randperm(N_SYMBOLS**2, generator=generator)[:size]
    first, second = 1 + pairs // N_SYMBOLS, 1 + N_SYMBOLS + pairs % N_SYMBOLS
    answers = 1 + 2 * N_SYMBOLS + torch.randint(N_SYMBOLS, (size,), generator=generator)
    return Facts(_contexts(first, second), answers, N_SYMBOLS, 3 * N_SYMBOLS + 2)


def addition(size: int, generator: Generator) -> Facts:
    """a, b and (a + b) mod size, for all pairs."""
    pairs = torch.arange(size**2)
    a, b = pairs // size, pairs % size
    return Facts(_contexts(a + 1, b + 1), (a + b) % size + 1, size, MOST_ADDENDS + 2)


def parities(size: int, generator: Generator) -> Facts:
    """So many parities of two of five bits, all inputs; the last token says which parity."""
    subsets = list(combinations(range(N_BITS), PARITY_OF))
    chosen = torch.randperm(len(subsets), generator=generator)[:size]
    inputs = torch.arange(2**N_BITS)[:, None] >> torch.arange(N_BITS) & 1
    contexts, answers = [], []
    for task, subset in enumerate(chosen):
        which = torch.full((len(inputs),), 5 + task)
        contexts.append(_contexts(*(inputs + 1).unbind(1), which))
        answers.append(3 + inputs[:, list(subsets[int(subset)])].sum(1) % 2)
    return Facts(torch.cat(contexts), torch.cat(answers), 2, 5 + MOST_PARITIES + 1)


def _contexts(*columns: Tensor) -> Tensor:
    return torch.stack([torch.full_like(columns[0], BOS), *columns], 1)


def _shape(n_layers: int, d_mlp: int, facts: Facts) -> Shape:
    return Shape(
        n_layers=n_layers, n_heads=2, d_model=32, d_head=16, d_mlp=d_mlp, norm=None,
        positions="standard", d_vocab=facts.d_vocab, n_ctx=facts.contexts.shape[1],
    )  # fmt: skip


def families() -> tuple[Family, ...]:
    """Trigram tables, modular addition, sparse parities."""
    any_seed = Generator()
    return (
        Family("tables", (4, 8, 16, 32, 64, 128), table, _shape(2, 0, table(1, any_seed))),
        Family(
            "addition", (3, 5, 7, 9, 11, 13), addition, _shape(1, 64, addition(3, any_seed))
        ),
        Family("parities", (1, 2, 3, 4, 6, 8), parities, _shape(1, 64, parities(1, any_seed))),
    )  # fmt: skip
