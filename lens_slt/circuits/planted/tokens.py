"""Token sequences for the planted circuits: what there is to predict, and which tokens need it.

Every sequence begins with BOS (id 0); id 1 marks the end of a segment, or announces a closing
bracket. Among the other tokens many have a *successor*, which often follows them: the bigrams that
a planted model's W_U knows without any head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import numpy as np
import torch
from torch import Tensor

from lens_slt.arrays import BoolArray

BOS, MARK = 0, 1
N_BRACKETS = 3  # types of brackets, each open at most once at a time
_FOLLOWS = 0.4  # how often a filler is followed by its successor, where there is a choice
_TYPO = 0.15  # how often a token of a repeated segment is replaced
_LONGEST_SPAN = 10  # tokens from an opening bracket to the MARK of its closing one
_DEEPEST = 2  # brackets open at a time

Row = tuple[list[int], list[bool]]  # tokens, and which of them the circuit is needed for


@dataclass(frozen=True)
class Task:
    """Sequences and the rules behind them.

    ``planted`` is bool ``[sequence, position - 1]``: the next token needs the circuit. ``rules``
    are (a, b, c) for "a … b → c", (a, c) for "a x → c", or (opener, closer); empty for induction.
    ``successor`` holds each token's successor, −1 where it has none.
    """

    tokens: Tensor  # int64 [sequence, position]
    planted: BoolArray
    rules: tuple[tuple[int, ...], ...]
    successor: tuple[int, ...]


def repeats(
    vocab: int, n_sequences: int, length: int, rng: Random, *, answered: bool = False
) -> Task:
    """Segments of three to five tokens, separated by MARK; most of them are repeats.

    Planted: the second token of a bigram that stood earlier in the sequence. After MARK nothing is
    planted, since any segment may follow. A typo here and there keeps a copying head uncertain.
    With ``answered`` the last token of every sequence is planted.
    """
    successor = _successors(range(2, vocab), vocab, rng)

    def row() -> Row:
        segments = _segments(vocab, successor, rng)
        tokens, used = [BOS], 0
        while len(tokens) < length:
            if used < 2 or (used < len(segments) and rng.random() < 0.3):
                used += 1
                tokens += [*segments[used - 1], MARK]
            else:
                again = segments[rng.randrange(used)]
                tokens += [_mistyped(token, vocab, rng) for token in again]
                tokens.append(MARK)
        return tokens[:length], _repeated_bigrams(tokens[:length])

    return _task(row, n_sequences, (), successor, answered)


def skip_trigrams(
    vocab: int, n_sequences: int, length: int, rng: Random, *, answered: bool = False
) -> Task:
    """Triples "a … b → c": after b comes c in most cases, if its own a stood earlier.

    With ``answered`` the last token of every sequence is such a c.
    """
    ids = _shuffled(range(2, vocab), rng)
    n = (vocab - 4) // 3
    filler = ids[2 * n :]
    rules = tuple((ids[i], ids[n + i], filler[i]) for i in range(n))
    successor = _successors(filler, vocab, rng)
    by_b = {b: (a, c) for a, b, c in rules}

    def row() -> Row:
        tokens, planted = [BOS], [False]
        while len(tokens) < length:
            a, c = by_b.get(tokens[-1], (-1, -1))
            needed = a in tokens and rng.random() < 0.9
            ready = [rule[1] for rule in rules if rule[0] in tokens]
            draw = rng.random()
            if needed:
                tokens.append(c)
            elif draw < 0.3 and ready and c < 0:
                tokens.append(rng.choice(ready))
            elif draw < 0.45:
                tokens.append(rng.choice(rules)[0])
            else:
                tokens.append(_filler(tokens[-1], filler, successor, rng))
            planted.append(needed)
        return tokens, planted

    return _task(row, n_sequences, rules, successor, answered)


def multigrams(vocab: int, n_sequences: int, length: int, rng: Random) -> Task:
    """Pairs "a x → c" with any one token x between; c follows in most cases."""
    ids = _shuffled(range(2, vocab), rng)
    n = vocab // 2
    rules = tuple(zip(ids[:n], _shuffled(ids, rng)[:n], strict=True))
    successor = _successors(ids, vocab, rng)
    after = dict(rules)

    def row() -> Row:
        tokens, planted = [BOS], [False]
        while len(tokens) < length:
            c = after.get(tokens[-2], -1) if len(tokens) > 1 else -1
            needed = c >= 0 and rng.random() < 0.65
            tokens.append(c if needed else _filler(tokens[-1], ids, successor, rng))
            planted.append(needed)
        return tokens, planted

    return _task(row, n_sequences, rules, successor)


def nested_brackets(vocab: int, n_sequences: int, length: int, rng: Random) -> Task:
    """Nested brackets among fillers; MARK announces every closing one, which is planted."""
    ids = _shuffled(range(2, vocab), rng)
    openers, closers = ids[:N_BRACKETS], ids[N_BRACKETS : 2 * N_BRACKETS]
    filler = ids[2 * N_BRACKETS :]
    successor = _successors(filler, vocab, rng)

    def row() -> Row:
        tokens, planted = [BOS], [False]
        opened: list[tuple[int, int]] = []  # (type, position), innermost last
        while len(tokens) < length:
            since = [len(tokens) - position for _, position in opened]
            # Close all that are open before the oldest has been so for too long.
            must = bool(opened) and since[0] + 2 * len(opened) > _LONGEST_SPAN
            may = bool(opened) and since[-1] > 1 and len(tokens) + 2 <= length
            kinds = [kind for kind in range(N_BRACKETS) if kind not in dict(opened)]
            room = not must and len(opened) < _DEEPEST and (not opened or since[-1] > 2)
            draw = rng.random()
            if may and (must or draw < 0.4):
                tokens += [MARK, closers[opened.pop()[0]]]
                planted += [False, True]
                continue
            if room and draw < 0.8:
                opened.append((rng.choice(kinds), len(tokens)))
                tokens.append(openers[opened[-1][0]])
            else:
                tokens.append(_filler(tokens[-1], filler, successor, rng))
            planted.append(False)
        return tokens, planted

    rules = tuple(zip(openers, closers, strict=True))
    return _task(row, n_sequences, rules, successor)


def _task(
    row: Callable[[], Row],
    n_sequences: int,
    rules: tuple[tuple[int, ...], ...],
    successor: tuple[int, ...],
    answered: bool = False,
) -> Task:
    rows = [_answered(row) if answered else row() for _ in range(n_sequences)]
    tokens = torch.tensor([tokens for tokens, _ in rows])
    planted = np.array([planted[1:] for _, planted in rows], bool)
    return Task(tokens, planted, rules, successor)


def _answered(row: Callable[[], Row]) -> Row:
    """A row whose last token is planted."""
    while True:
        tokens, planted = row()
        if planted[-1]:
            return tokens, planted


def _segments(vocab: int, successor: tuple[int, ...], rng: Random) -> list[list[int]]:
    """Disjoint runs of three to five tokens, often along successors."""
    left = _shuffled(range(2, vocab), rng)
    segments = []
    while len(left) >= 3:
        size = min(rng.randint(3, 5), len(left))
        segment = [left.pop()]
        while len(segment) < size:
            follows = successor[segment[-1]] in left and rng.random() < _FOLLOWS
            segment.append(successor[segment[-1]] if follows else rng.choice(left))
            left.remove(segment[-1])
        segments.append(segment)
    return segments


def _mistyped(token: int, vocab: int, rng: Random) -> int:
    return rng.randrange(2, vocab) if rng.random() < _TYPO else token


def _repeated_bigrams(tokens: list[int]) -> list[bool]:
    """Whether each token and the one before it stood together earlier; false after MARK."""
    seen: set[tuple[int, int]] = set()
    found = [False]
    for pair in pairwise(tokens):
        found.append(pair in seen and pair[0] != MARK)
        seen.add(pair)
    return found


def _filler(last: int, filler: list[int], successor: tuple[int, ...], rng: Random) -> int:
    follows = successor[last] >= 0 and rng.random() < _FOLLOWS
    return successor[last] if follows else rng.choice(filler)


def _successors(ids: range | list[int], vocab: int, rng: Random) -> tuple[int, ...]:
    """One cycle through the ids in random order: each one's successor is the next."""
    order = _shuffled(ids, rng)
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return tuple(following.get(token, -1) for token in range(vocab))


def _shuffled(ids: range | list[int], rng: Random) -> list[int]:
    return rng.sample(list(ids), len(ids))
