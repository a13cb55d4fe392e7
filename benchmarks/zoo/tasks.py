"""Algorithmic tasks and text: token sequences that a small transformer learns in seconds.

Every task draws any number of sequences from a generator; token 0 begins each of them. ``answer``
marks the predicted tokens that the task is about, which become the position weights of a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Generator, Tensor

import lens_slt as ls

BOS = 0
TEXT_SEQUENCES = 1024  # that a text model trains on


@dataclass(frozen=True)
class Task:
    """Sequences of one length; ``draw(n, generator)`` gives tokens ``[n, length]``."""

    name: str
    d_vocab: int
    length: int
    draw: Callable[[int, Generator], Tensor]
    answer: tuple[float, ...]  # weight of every predicted token, ``length - 1`` numbers


def make_task(name: str, rng: np.random.Generator) -> Task:
    """A task of this name, with sizes drawn from ``rng``."""
    return TASKS[name](rng)


def induction(rng: np.random.Generator) -> Task:
    """A random segment, said twice."""
    d_vocab, half = int(rng.choice([16, 48, 128, 512])), int(rng.integers(5, 11))

    def draw(n: int, generator: Generator) -> Tensor:
        segment = _symbols(1, d_vocab, (n, half), generator)
        return _with_bos(torch.cat([segment, segment], dim=1))

    return Task("induction", d_vocab, 2 * half + 1, draw, (0.0,) * (half + 1) + (1.0,) * (half - 1))


def skip_trigram(rng: np.random.Generator) -> Task:
    """One source among noise, a query at the end; source and query together decide the answer."""
    n_sources, n_queries, n_noise = int(rng.integers(3, 7)), 3, int(rng.choice([8, 40]))
    noise, filler = 1 + n_sources + n_queries, int(rng.integers(6, 13))

    def draw(n: int, generator: Generator) -> Tensor:
        row = _symbols(noise, noise + n_noise, (n, filler), generator)
        source = torch.randint(n_sources, (n,), generator=generator)
        query = torch.randint(n_queries, (n,), generator=generator)
        place = torch.randint(filler, (n,), generator=generator)
        row[torch.arange(n), place] = 1 + source
        answer = noise + (3 * source + 2 * query) % n_noise
        return _with_bos(torch.cat([row, (1 + n_sources + query)[:, None], answer[:, None]], 1))

    return Task("skip_trigram", noise + n_noise, filler + 3, draw, (0.0,) * (filler + 1) + (1.0,))


def brackets(rng: np.random.Generator) -> Task:
    """Balanced brackets of two kinds, then token 5 for the rest of the sequence."""
    length = int(rng.choice([13, 17, 25]))

    def one(generator: Generator) -> list[int]:
        row: list[int] = []
        stack: list[int] = []
        coins = torch.rand(2, length, generator=generator)
        while len(row) + len(stack) < length - 1:
            if stack and coins[0, len(row)] < 0.45:
                row.append(stack.pop() + 2)
                continue
            if length - 1 - len(row) - len(stack) < 2:
                break
            stack.append(1 + int(coins[1, len(row)] < 0.5))
            row.append(stack[-1])
        row += [kind + 2 for kind in reversed(stack)]
        return row + [5] * (length - 1 - len(row))

    def draw(n: int, generator: Generator) -> Tensor:
        return _with_bos(torch.tensor([one(generator) for _ in range(n)]))

    return Task("brackets", 8, length, draw, (1.0,) * (length - 1))


def modular(rng: np.random.Generator) -> Task:
    """a, b, = and (a + b) mod p: distinct pairs where there are enough."""
    p = int(rng.choice([7, 11, 13, 17]))

    def draw(n: int, generator: Generator) -> Tensor:
        times = -(-n // p**2)
        pair = torch.cat([torch.randperm(p * p, generator=generator) for _ in range(times)])[:n]
        a, b = pair // p, pair % p
        columns = [a + 1, b + 1, torch.full_like(a, p + 1), (a + b) % p + 1]
        return _with_bos(torch.stack(columns, dim=1))

    return Task("modular", p + 2, 5, draw, (0.0, 0.0, 0.0, 1.0))


def sorting(rng: np.random.Generator) -> Task:
    """Numbers, a separator, the same numbers in ascending order."""
    return _rewriting("sorting", rng, lambda x: x.sort(dim=1).values, [10, 24, 64])


def copying(rng: np.random.Generator) -> Task:
    """Symbols, a separator, the same symbols."""
    return _rewriting("copying", rng, lambda x: x, [10, 32, 200])


def majority(rng: np.random.Generator) -> Task:
    """Bits; the last token says which there are more of."""
    return _of_bits("majority", rng, lambda bits: 2 * bits.sum(1) > bits.shape[1])


def parity(rng: np.random.Generator) -> Task:
    """Bits; the last token says whether an odd number of them are one."""
    return _of_bits("parity", rng, lambda bits: bits.sum(1) % 2)


def text(rng: np.random.Generator) -> Task:
    """Built-in text, in the vocabulary of the shipped models."""
    source, length = str(rng.choice(["code", "prose", "mix"])), int(rng.choice([12, 16, 24]))

    def draw(n: int, generator: Generator) -> Tensor:
        rows = _text_rows(source, length)
        return rows[torch.randint(len(rows), (n,), generator=generator)]

    return Task("text", 512, length, draw, (1.0,) * (length - 1))


TASKS: dict[str, Callable[[np.random.Generator], Task]] = {
    task.__name__: task
    for task in (
        induction, skip_trigram, brackets, modular, sorting, copying, majority, parity, text,
    )
}  # fmt: skip


@lru_cache
def _text_rows(source: str, length: int) -> Tensor:
    return ls.load_tokens(source, n_sequences=TEXT_SEQUENCES, length=length)


def _rewriting(
    name: str, rng: np.random.Generator, change: Callable[[Tensor], Tensor], sizes: list[int]
) -> Task:
    n_symbols, k = int(rng.choice(sizes)), int(rng.integers(4, 9))

    def draw(n: int, generator: Generator) -> Tensor:
        x = _symbols(2, n_symbols + 2, (n, k), generator)
        return _with_bos(torch.cat([x, torch.ones(n, 1, dtype=x.dtype), change(x)], dim=1))

    return Task(name, n_symbols + 2, 2 * k + 2, draw, (0.0,) * (k + 1) + (1.0,) * k)


def _of_bits(name: str, rng: np.random.Generator, decide: Callable[[Tensor], Tensor]) -> Task:
    k = int(rng.choice([5, 7, 9])) if name == "parity" else int(rng.choice([7, 11, 15]))

    def draw(n: int, generator: Generator) -> Tensor:
        bits = _symbols(0, 2, (n, k), generator)
        ask = torch.full((n, 1), 3)
        return _with_bos(torch.cat([bits + 1, ask, decide(bits).long()[:, None] + 4], dim=1))

    return Task(name, 8, k + 3, draw, (0.0,) * (k + 1) + (1.0,))


def _symbols(low: int, high: int, shape: tuple[int, int], generator: Generator) -> Tensor:
    return torch.randint(low, high, shape, generator=generator)


def _with_bos(rows: Tensor) -> Tensor:
    return torch.cat([torch.full((len(rows), 1), BOS), rows], dim=1)
