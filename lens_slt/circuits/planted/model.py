"""A planted model from its heads and MLPs: embeddings, W_U, and the scales of norms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from lens_slt.circuits.planted.tokens import Task
from lens_slt.circuits.planted.weights import (
    CONSTANT_NORM,
    D_HEAD,
    POSITION_NORM,
    RECENCY_NORM,
    TOKEN_NORM,
    HeadWeights,
    MlpWeights,
    Slot,
    Space,
    frequencies,
)
from lens_slt.models import forward
from lens_slt.models.forward import Architecture, Weights
from lens_slt.models.shipped import build_bridge, build_hooked, has_hooked_transformer

PLACE_NORM = 20.0  # of large positions, where there are any
WEIGHT_NOISE = 0.005  # of every weight


def make_architecture(
    space: Space, n_layers: int, n_heads: int, vocab: int, norm: str | None, mlps: bool = False
) -> Architecture:
    """Learned positions; attention only, or with ReLU MLPs."""
    return Architecture(
        n_layers=n_layers, d_model=space.d_model, n_heads=n_heads, n_key_value_heads=n_heads,
        d_head=D_HEAD, d_vocab=vocab, n_ctx=space.length, attn_scale=math.sqrt(D_HEAD), norm=norm,
        final_norm=norm, attn_only=not mlps, activation="relu",
    )  # fmt: skip


def assemble(
    arch: Architecture,
    space: Space,
    heads: Mapping[Slot, HeadWeights],
    task: Task,
    generator: Generator,
    mlps: Sequence[MlpWeights] = (),
    carriers: int = 0,
) -> Weights:
    """All weights of a model with these heads, and one MLP per layer where it has any.

    A norm divides by a nearly constant scale, which is multiplied back into the matrices that read
    its output. W_U's gains, on what heads write and on bigrams, are those of the least loss on the
    task, so that the model is as confident as it may be. What heads of the first layers, the
    ``carriers``, write into the sink is cancelled at every position by the embedding of positions.
    """
    weights = {
        "embed.W_E": TOKEN_NORM * space.token,
        "pos_embed.W_pos": _positions(space, generator),
    }
    for layer in range(arch.n_layers):
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            weights[f"blocks.{layer}.attn.{name}"] = torch.stack(
                [heads[layer, index][name] for index in range(arch.n_heads)]
            )
        for name, matrix in mlps[layer].items() if mlps else ():
            weights[f"blocks.{layer}.mlp.{name}"] = matrix
    for name, weight in weights.items():
        weights[name] = weight + WEIGHT_NOISE * torch.randn(weight.shape, generator=generator)
    _balance(arch, weights, space, task, carriers)
    resid = forward.embed(arch, weights, task.tokens)
    for layer in range(arch.n_layers):
        for name in ("W_Q", "W_K", "W_V"):
            weights[f"blocks.{layer}.attn.{name}"] *= _scale(arch, resid)
        z = forward.head_outputs(arch, weights, layer, resid)
        attn_out = forward.attention_output(weights, layer, z)
        if mlps:
            weights[f"blocks.{layer}.mlp.W_in"] *= _scale(arch, resid + attn_out)
        resid = forward.finish_block(arch, weights, layer, resid, attn_out)
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
        d_head=arch.d_head, d_vocab=arch.d_vocab, n_ctx=arch.n_ctx, attn_only=arch.attn_only,
        normalization_type=arch.norm, eps=arch.norm_eps, positional_embedding_type="standard",
        init_weights=False, device="cpu",
    )  # fmt: skip
    if not arch.attn_only:
        d_mlp = weights["blocks.0.mlp.W_in"].shape[1]
        config |= dict(d_mlp=d_mlp, act_fn=arch.activation)
    hooked = backend != "bridge" and has_hooked_transformer()
    with torch.random.fork_rng(devices=[]):
        return (build_hooked if hooked else build_bridge)(config, weights).eval()


def _positions(space: Space, generator: Generator) -> Tensor:
    """Position embeddings ``[position, d_model]``."""
    place = torch.arange(space.length, dtype=torch.float32)
    angles = place[:, None] * frequencies(space)
    code = torch.cat((angles.cos(), angles.sin()), dim=1) / math.sqrt(angles.shape[1])
    recency = RECENCY_NORM * (2 * place / (space.length - 1) - 1)
    large = torch.randn(space.length, len(space.place), generator=generator)
    return (
        POSITION_NORM * code @ space.position
        + recency[:, None] * space.recency
        + CONSTANT_NORM * space.constant
        + PLACE_NORM * torch.nn.functional.normalize(large) @ space.place
    )


def _balance(arch: Architecture, weights: Weights, space: Space, task: Task, carriers: int) -> None:
    """Embed positions so that the sink is empty at every position after the carriers' layers."""
    for _ in range(2 if carriers else 0):  # heads hardly see the sink, but a little
        resid = forward.embed(arch, weights, task.tokens)
        for layer in range(carriers):
            resid = forward.block(arch, weights, layer, resid)
        full = (resid @ space.sink.T).mean(0)
        weights["pos_embed.W_pos"] -= full @ space.sink


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
