"""Weights of planted circuits: heads written down as what they match and what they copy.

The residual stream is cut into orthogonal subspaces (token, position, …), which a random rotation
hides from the axes. A head is a list of :class:`Match` (its attention scores) and :class:`Copy`
(what it moves from where to where); everything else about its four matrices follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from lens_slt.circuits.planted.tokens import BOS, N_BRACKETS, Task
from lens_slt.models import forward
from lens_slt.models.forward import Architecture, Weights
from lens_slt.models.shipped import build_bridge, build_hooked, has_hooked_transformer

D_HEAD = 24
TOKEN_NORM, POSITION_NORM, CONSTANT_NORM = 5.0, 5.5, 7.0  # parts of the embedding
RECENCY_NORM = 2.5  # at both ends of the sequence, with opposite signs
N_JUNK = 12  # directions that only distractors write and read
N_LINK = 10  # directions that join the two heads of a composition decoy
N_BLANK = 12  # directions that nothing writes, so that W_V may be large to no effect
WEIGHT_NOISE = 0.005  # of every weight
DISTRACTOR_OUTPUT = 0.008  # what distractors write where W_U reads, per weight of W_O
_FULLNESS = 0.35  # weight of what is written somewhere in what distractors read
KINDS = ("previous", "current", "two_back", "first", "duplicate", "random")  # of distractors

Slot = tuple[int, int]  # layer and index of a head
HeadWeights = dict[str, Tensor]  # W_Q, W_K, W_V [d_model, d_head], W_O [d_head, d_model]


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


def make_space(vocab: int, length: int, generator: Generator) -> Space:
    """Subspaces in random directions; d_model is one more than their dimensions together."""
    n_frequencies = max(8, math.ceil((length - 1) / 4))
    sizes = {
        "token": vocab, "position": 2 * n_frequencies, "constant": 1, "recency": 1,
        "previous": vocab, "count": N_BRACKETS, "output": vocab, "junk": N_JUNK,
        "link": N_LINK, "blank": N_BLANK,
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
    angle = _frequencies(space)[:, None] * steps
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


def make_architecture(
    space: Space, n_layers: int, n_heads: int, vocab: int, norm: str | None
) -> Architecture:
    """Attention only, learned positions."""
    return Architecture(
        n_layers=n_layers, d_model=space.d_model, n_heads=n_heads, n_key_value_heads=n_heads,
        d_head=D_HEAD, d_vocab=vocab, n_ctx=space.length, attn_scale=math.sqrt(D_HEAD), norm=norm,
        final_norm=norm,
    )  # fmt: skip


def assemble(
    arch: Architecture,
    space: Space,
    heads: Mapping[Slot, HeadWeights],
    task: Task,
    generator: Generator,
) -> Weights:
    """All weights of a model with these heads.

    A norm divides by a nearly constant scale, which is multiplied back into the matrices that read
    its output. W_U's gains, on what heads write and on bigrams, are those of the least loss on the
    task, so that the model is as confident as it may be.
    """
    weights = {
        "embed.W_E": TOKEN_NORM * space.token,
        "pos_embed.W_pos": _positions(space),
    }
    for layer in range(arch.n_layers):
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            weights[f"blocks.{layer}.attn.{name}"] = torch.stack(
                [heads[layer, index][name] for index in range(arch.n_heads)]
            )
    for name, weight in weights.items():
        weights[name] = weight + WEIGHT_NOISE * torch.randn(weight.shape, generator=generator)
    resid = forward.embed(arch, weights, task.tokens)
    for layer in range(arch.n_layers):
        for name in ("W_Q", "W_K", "W_V"):
            weights[f"blocks.{layer}.attn.{name}"] *= _scale(arch, resid)
        resid = forward.block(arch, weights, layer, resid)
    state = forward.final_state(arch, weights, resid) * _scale(arch, resid)
    follows = torch.zeros(arch.d_vocab, arch.d_vocab)
    for token, following in enumerate(task.successor):
        if following >= 0:
            follows[token, following] = 1.0
    parts = [space.output.T, space.token.T @ follows / TOKEN_NORM]
    gains = _best_gains([state @ part for part in parts], task.tokens)
    unembed = sum(gain * part for gain, part in zip(gains, parts, strict=True))
    noise = WEIGHT_NOISE * torch.randn(parts[0].shape, generator=generator)
    weights["unembed.W_U"] = (unembed + noise) * _scale(arch, resid)
    return weights


def build(arch: Architecture, weights: Weights, name: str, backend: str) -> Any:
    """A HookedTransformer or native TransformerBridge on the CPU, in eval mode."""
    config: dict[str, Any] = dict(
        model_name=name, n_layers=arch.n_layers, d_model=arch.d_model, n_heads=arch.n_heads,
        d_head=arch.d_head, d_vocab=arch.d_vocab, n_ctx=arch.n_ctx, attn_only=True,
        normalization_type=arch.norm, eps=arch.norm_eps, positional_embedding_type="standard",
        init_weights=False, device="cpu",
    )  # fmt: skip
    hooked = backend != "bridge" and has_hooked_transformer()
    with torch.random.fork_rng(devices=[]):
        return (build_hooked if hooked else build_bridge)(config, weights).eval()


def norm_range(heads: Sequence[HeadWeights]) -> dict[str, tuple[float, float]]:
    """Smallest and largest Frobenius norm of every matrix among these heads."""
    names = ("W_Q", "W_K", "W_V", "W_O")
    norms = {name: [float(head[name].norm()) for head in heads] for name in names}
    return {name: (min(values), max(values)) for name, values in norms.items()}


def _positions(space: Space) -> Tensor:
    """Position embeddings ``[position, d_model]``."""
    place = torch.arange(space.length, dtype=torch.float32)
    frequencies = _frequencies(space)
    angles = place[:, None] * frequencies
    code = torch.cat((angles.cos(), angles.sin()), dim=1) / math.sqrt(len(frequencies))
    recency = RECENCY_NORM * (2 * place / (space.length - 1) - 1)
    return (
        POSITION_NORM * code @ space.position
        + recency[:, None] * space.recency
        + CONSTANT_NORM * space.constant
    )


def _frequencies(space: Space) -> Tensor:
    n = len(space.position) // 2
    return math.pi * (2 * torch.arange(n) + 1) / (2 * n)


def _best_gains(parts: Sequence[Tensor], tokens: Tensor) -> tuple[float, float]:
    """Gains of two parts of the logits with the least mean loss, by search in one then the other.

    The loss is convex in the gains.
    """
    grid = [0.05 * i for i in range(61)]
    gains = [0.0, 0.0]
    for which in (0, 1, 0, 1):
        rest = gains[1 - which] * parts[1 - which]
        losses = [_loss(rest + gain * parts[which], tokens) for gain in grid]
        gains[which] = grid[losses.index(min(losses))]
    return gains[0], gains[1]


def _loss(logits: Tensor, tokens: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1),
                                                   tokens[:, 1:].flatten()))  # fmt: skip


def _scale(arch: Architecture, resid: Tensor) -> float:
    """What the norm of this architecture divides by, on average."""
    return 1.0 if arch.norm is None else float(resid.std(-1, correction=0).mean())


def _fullness(norms: Mapping[str, float]) -> float:
    """Weight of what is not blank in a distractor's W_V, so that none writes too much."""
    return _FULLNESS * min(1.0, 5.0 / norms["W_V"])


def _rotation(size: int, generator: Generator) -> Tensor:
    return _frame(torch.eye(size), size, generator)


def _frame(rows: Tensor, n: int, generator: Generator) -> Tensor:
    """Random orthonormal combinations ``[n, dimension]`` of orthonormal rows."""
    matrix = torch.randn(len(rows), n, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(matrix).Q.float().T @ rows


def _with_norm(matrix: Tensor, norm: float) -> Tensor:
    return matrix * (norm / matrix.norm())


def _filled(matrix: Tensor, norm: float, generator: Generator) -> Tensor:
    """The matrix plus Gaussian noise that brings it to this Frobenius norm."""
    missing = norm**2 - float(matrix.norm()) ** 2
    if missing <= 0:
        return _with_norm(matrix, norm)
    return matrix + _with_norm(torch.randn(matrix.shape, generator=generator), math.sqrt(missing))
