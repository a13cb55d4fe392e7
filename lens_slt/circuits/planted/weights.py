"""Weights of planted circuits: heads written down as what they match and what they copy.

The residual stream is cut into orthogonal subspaces (token, position, …), which a random rotation
hides from the axes. A head is a list of :class:`Match` (its attention scores) and :class:`Copy`
(what it moves from where to where); everything else about its four matrices follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from lens_slt.circuits.planted.tokens import BOS, N_BRACKETS

D_HEAD = 24
TOKEN_NORM, POSITION_NORM, CONSTANT_NORM = 5.0, 5.5, 7.0  # parts of the embedding
RECENCY_NORM = 2.5  # at both ends of the sequence, with opposite signs
N_JUNK = 12  # directions that only distractors write and read
N_LINK = 10  # directions that join the two heads of a composition decoy
CARRIED = 0.5  # of a feature of the position, where heads carry positions
N_PLACES = 4  # large features of the position
N_BLANK = 12  # directions that nothing writes, so that W_V may be large to no effect
DISTRACTOR_OUTPUT = 0.008  # what distractors write where W_U reads, per weight of W_O
_FULLNESS = 0.35  # weight of what is written somewhere in what distractors read
_NEURON_FULLNESS = 0.6  # likewise of idle neurons
KINDS = ("previous", "current", "two_back", "first", "duplicate", "random")  # of distractors

Slot = tuple[int, int]  # layer and index of a head
HeadWeights = dict[str, Tensor]  # W_Q, W_K, W_V [d_model, d_head], W_O [d_head, d_model]
MlpWeights = dict[str, Tensor]  # W_in [d_model, d_mlp], b_in [d_mlp], W_out [d_mlp, d_model]


@dataclass(frozen=True)
class Space:
    """Orthonormal rows of every subspace, ``[dimension, d_model]``, all orthogonal to ones."""

    token: Tensor
    position: Tensor  # cosines, then sines, one of each per frequency
    constant: Tensor
    recency: Tensor
    previous: Tensor  # the token before, written by previous-token heads
    count: Tensor  # brackets that are open, by type
    output: Tensor  # what W_U reads, one direction per token
    junk: Tensor
    link: Tensor
    blank: Tensor
    mapped: Tensor  # the token before, as an MLP passes it on; as all below, only where asked for
    place: Tensor  # large features of the position
    sink: Tensor  # where heads move them to
    length: int

    @property
    def d_model(self) -> int:
        return self.token.shape[1]


@dataclass(frozen=True)
class Match:
    """Adds strength · Σ_n (query_n · x_i)(key_n · x_j) to the score of position i for j."""

    query: Tensor  # [n, d_model]
    key: Tensor  # [n, d_model]
    strength: float


@dataclass(frozen=True)
class Copy:
    """Writes gain · Σ_n (read_n · x_j) write_n from every attended position j."""

    read: Tensor  # [n, d_model]
    write: Tensor  # [n, d_model]
    gain: float
    tilt: float = 1.0  # W_V is tilt² as large as W_O


@dataclass(frozen=True)
class Head:
    """A head with a function."""

    matches: tuple[Match, ...]
    copies: tuple[Copy, ...]


@dataclass(frozen=True)
class Translator:
    """An MLP that writes gain · (read_n · x − threshold) write_n where that is above zero."""

    read: Tensor  # [n, d_model]
    write: Tensor  # [n, d_model]
    threshold: float
    gain: float


def make_space(
    vocab: int, length: int, generator: Generator, *, mapped: int = 0, place: int = 0, sink: int = 0
) -> Space:
    """Subspaces in random directions; d_model is one more than their dimensions together."""
    n_frequencies = max(8, math.ceil((length - 1) / 4))
    sizes = {
        "token": vocab, "position": 2 * n_frequencies, "constant": 1, "recency": 1,
        "previous": vocab, "count": N_BRACKETS, "output": vocab, "junk": N_JUNK,
        "link": N_LINK, "blank": N_BLANK, "mapped": mapped, "place": place, "sink": sink,
    }  # fmt: skip
    d_model = 1 + sum(sizes.values())
    matrix = torch.randn(d_model, d_model, generator=generator, dtype=torch.float64)
    matrix[:, 0] = 1.0  # LayerNorm takes this direction away
    rows = torch.linalg.qr(matrix).Q.T[1:].float()
    return Space(**dict(zip(sizes, rows.split(list(sizes.values())), strict=True)), length=length)


def attend_back(space: Space, steps: int, score: float) -> Match:
    """Attention to the position ``steps`` before, which gets this score and the others about 0.

    With frequencies (2k + 1)·π/2K the sum of cos(frequency · distance) over k vanishes at every
    distance up to 4K, except 0 (and 2K, where it is negative).
    """
    cosines, sines = space.position.chunk(2)
    angle = frequencies(space)[:, None] * steps
    back = torch.cat(
        (angle.cos() * cosines + angle.sin() * sines, angle.cos() * sines - angle.sin() * cosines)
    )
    return Match(back, space.position, score / POSITION_NORM**2)


def rest_on_first(space: Space, score: float) -> Match:
    """Attention to BOS for want of anything better: this score, at every position."""
    return Match(space.constant, space.token[[BOS]], score / (CONSTANT_NORM * TOKEN_NORM))


def head_weights(head: Head, generator: Generator) -> HeadWeights:
    """The four matrices of a head, its own coordinates rotated at random."""
    queries, keys, reads, writes = [], [], [], []
    for match in head.matches:
        size = math.sqrt(match.strength * math.sqrt(D_HEAD))  # scores are divided by √d_head
        balance = math.sqrt(float(match.key.norm() / match.query.norm()))
        queries.append(size * balance * match.query)
        keys.append(size / balance * match.key)
    for copy in head.copies:
        balance = copy.tilt * math.sqrt(float(copy.write.norm() / copy.read.norm()))
        reads.append(math.sqrt(copy.gain) * balance * copy.read)
        writes.append(math.sqrt(copy.gain) / balance * copy.write)
    turn_qk, turn_vo = _rotation(D_HEAD, generator), _rotation(D_HEAD, generator)
    return {
        "W_Q": torch.cat(queries).T @ turn_qk[: sum(map(len, queries))],
        "W_K": torch.cat(keys).T @ turn_qk[: sum(map(len, keys))],
        "W_V": torch.cat(reads).T @ turn_vo[: sum(map(len, reads))],
        "W_O": turn_vo[: sum(map(len, writes))].T @ torch.cat(writes),
    }


def distractor(
    space: Space, kind: str, norms: Mapping[str, float], generator: Generator
) -> HeadWeights:
    """A head with an ordinary attention pattern that moves random features into the junk.

    Its matrices have these Frobenius norms: the size of a head's weights says nothing.
    """
    words = space.token[BOS + 1 :]
    match = {
        "previous": attend_back(space, 1, 6.0),
        "current": attend_back(space, 0, 6.0),
        "two_back": attend_back(space, 2, 6.0),
        "first": rest_on_first(space, 6.0),
        "duplicate": Match(words, words, 5.0 / TOKEN_NORM**2),
        "random": Match(words[:0], words[:0], 0.0),
    }[kind]
    if kind == "random":
        head = {name: torch.zeros(space.d_model, D_HEAD) for name in ("W_Q", "W_K")}
    else:
        made = head_weights(Head((match,), (Copy(words, words, 1.0),)), generator)
        head = {name: made[name] for name in ("W_Q", "W_K")}
    # Much of W_V reads nothing: a residual stream full of junk would move the scale of a norm.
    full = torch.cat((space.token, space.position, space.previous, space.output, space.junk))
    rows = torch.cat((_fullness(norms) * full, space.blank))
    read = torch.randn(D_HEAD, len(rows), generator=generator) @ rows
    write = torch.randn(D_HEAD, len(space.junk), generator=generator) @ space.junk
    slight = torch.randn(D_HEAD, len(space.output), generator=generator) @ space.output
    head["W_V"] = _with_norm(read.T, norms["W_V"])
    head["W_O"] = _with_norm(write, norms["W_O"]) + DISTRACTOR_OUTPUT * slight
    for name in ("W_Q", "W_K"):
        head[name] = _filled(head[name], norms[name], generator)
    return head


def composition_decoy(
    space: Space,
    through: str,
    norms: Mapping[str, float],
    generator: Generator,
) -> tuple[HeadWeights, HeadWeights]:
    """Two heads of which the second reads exactly what the first writes, and to no effect.

    The first moves features of the previous token into directions that only the second reads,
    through Q, K or V; what the second writes is junk. Through K it leans to where an induction
    head attends.
    """
    words = space.token[BOS + 1 :]
    features = _frame(words, N_LINK, generator)
    full = _fullness(norms)
    faint = full * features + math.sqrt(1 - full**2) * _frame(space.blank, N_LINK, generator)
    turn = _rotation(D_HEAD, generator)[:N_LINK]
    first = distractor(space, "previous", norms, generator)
    first["W_V"] = _with_norm(faint.T @ turn, norms["W_V"])
    first["W_O"] = _with_norm(turn.T @ space.link, norms["W_O"])
    second = distractor(space, "previous" if through == "V" else "random", norms, generator)
    second[f"W_{through}"] = _with_norm(space.link.T @ turn, norms[f"W_{through}"])
    if through != "V":
        other = {"K": "W_Q", "Q": "W_K"}[through]
        second[other] = _with_norm(features.T @ turn, norms[other])
    return first, second


def carry_position(
    space: Space, head: HeadWeights, place: int, generator: Generator
) -> HeadWeights:
    """The head, moving a feature of the position in one of its dimensions, which does no more."""
    axis = _frame(torch.eye(D_HEAD), 1, generator)
    others = torch.eye(D_HEAD) - axis.T @ axis
    copy = position_copy(space, place)
    size = math.sqrt(copy.gain)
    return {
        "W_Q": _outside(head["W_Q"], space),
        "W_K": _outside(head["W_K"], space),
        "W_V": _outside(head["W_V"], space) @ others + size * copy.read.T @ axis,
        "W_O": others @ head["W_O"] + size * axis.T @ copy.write,
    }


def position_copy(space: Space, place: int) -> Copy:
    """Moves one of the large features of the position into the sink."""
    return Copy(space.place[[place]], space.sink, CARRIED)


def junk_translator(space: Space, n: int, like: Translator, generator: Generator) -> Translator:
    """``n`` neurons of this threshold and gain that move random features into the junk.

    As in distractors' W_V, much of what they read is nothing.
    """

    def directions(rows: Tensor) -> Tensor:
        drawn = torch.randn(n, len(rows), generator=generator) @ rows
        return torch.nn.functional.normalize(drawn)

    full = torch.cat((space.token, space.position, space.previous, space.output, space.junk))
    read = _NEURON_FULLNESS * directions(full)
    read += math.sqrt(1 - _NEURON_FULLNESS**2) * directions(space.blank)
    return replace(like, read=read, write=directions(space.junk))


def mlp_weights(*translators: Translator) -> MlpWeights:
    """The matrices of an MLP with the neurons of all of these."""
    sizes = [math.sqrt(one.gain) for one in translators]
    parts = list(zip(sizes, translators, strict=True))
    return {
        "W_in": torch.cat([size * one.read for size, one in parts]).T,
        "b_in": torch.cat([torch.full((len(one.read),), -size * one.threshold)
                           for size, one in parts]),
        "W_out": torch.cat([size * one.write for size, one in parts]),
    }  # fmt: skip


def norm_range(heads: Sequence[HeadWeights]) -> dict[str, tuple[float, float]]:
    """Smallest and largest Frobenius norm of every matrix among these heads."""
    names = ("W_Q", "W_K", "W_V", "W_O")
    norms = {name: [float(head[name].norm()) for head in heads] for name in names}
    return {name: (min(values), max(values)) for name, values in norms.items()}


def frequencies(space: Space) -> Tensor:
    """Those of the position features, in radians per position."""
    n = len(space.position) // 2
    return math.pi * (2 * torch.arange(n) + 1) / (2 * n)


def _fullness(norms: Mapping[str, float]) -> float:
    """Weight of what is not blank in a distractor's W_V, so that none writes too much."""
    return _FULLNESS * min(1.0, 5.0 / norms["W_V"])


def _rotation(size: int, generator: Generator) -> Tensor:
    return _frame(torch.eye(size), size, generator)


def _frame(rows: Tensor, n: int, generator: Generator) -> Tensor:
    """Random orthonormal combinations ``[n, dimension]`` of orthonormal rows."""
    matrix = torch.randn(len(rows), n, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(matrix).Q.float().T @ rows


def _outside(matrix: Tensor, space: Space) -> Tensor:
    """The matrix ``[d_model, n]``, blind for large positions and for the sink."""
    rows = torch.cat((space.place, space.sink))
    return matrix - rows.T @ (rows @ matrix)


def _with_norm(matrix: Tensor, norm: float) -> Tensor:
    return matrix * (norm / matrix.norm())


def _filled(matrix: Tensor, norm: float, generator: Generator) -> Tensor:
    """The matrix plus Gaussian noise that brings it to this Frobenius norm."""
    missing = norm**2 - float(matrix.norm()) ** 2
    if missing <= 0:
        return _with_norm(matrix, norm)
    return matrix + _with_norm(torch.randn(matrix.shape, generator=generator), math.sqrt(missing))
