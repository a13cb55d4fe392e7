"""A transformer as pure functions of a dictionary of weights.

The samplers need the loss for many settings of a few weights. Calling the model's own modules for
that would recompute everything that is frozen and would have to write into the caller's model.
These functions compute the same numbers from copies of its weights, start at any layer, and let
gradients flow to any subset. Weight names and layouts are TransformerLens's:
``blocks.{l}.attn.W_Q`` is ``[head, d_model, d_head]``, ``unembed.W_U`` is ``[d_model, d_vocab]``.

Whether they really compute the same numbers is checked against the model's own logits before use
(:mod:`lens_slt.models.adapter`); a model they cannot express runs through its own modules instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]

NORMS = ("LN", "LNPre", "RMS", "RMSPre", None)
POSITIONS = ("standard", "rotary", "shortformer", "none")
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


@dataclass(frozen=True)
class Architecture:
    """The part of a model's configuration that these functions need."""

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_vocab: int
    n_ctx: int
    attn_scale: float
    norm: str | None = "LN"
    final_norm: str | None = "LN"
    norm_eps: float = 1e-5
    positions: str = "standard"
    rotary_dim: int = 0
    rotary_base: float = 10000.0
    rotary_adjacent_pairs: bool = False
    attn_only: bool = True
    parallel_attn_mlp: bool = False
    shared_norm: bool = False  # the MLP reads ln1 too (GPT-J)
    activation: str = "gelu"
    gated_mlp: bool = False
    gated_bias_after_product: bool = False  # HookedTransformer: act(gate) * in + b_in
    tied_embeddings: bool = False

    @property
    def heads_per_key_value(self) -> int:
        return self.n_heads // self.n_key_value_heads


def normalize(kind: str | None, x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    """Apply the normalisation ``name`` (for example ``blocks.0.ln1``) to ``x``."""
    if kind is None:
        return x
    weight, bias = weights.get(f"{name}.w"), weights.get(f"{name}.b")
    if kind.startswith("LN"):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def rotate(arch: Architecture, x: Tensor) -> Tensor:
    """Rotate queries or keys ``[..., position, d_head]`` by their position, if rotary."""
    if arch.positions != "rotary":
        return x
    turns = _turns(arch, x.shape[-2], x.device, x.dtype)
    turned, rest = x[..., : arch.rotary_dim], x[..., arch.rotary_dim :]
    if arch.rotary_adjacent_pairs:
        full = turned.float() if x.dtype.itemsize < 4 else turned  # no half-precision complex
        pairs = torch.view_as_complex(full.unflatten(-1, (-1, 2)).contiguous())
        turned = torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
    else:
        first, second = turned.chunk(2, dim=-1)
        cos, sin = turns.real.to(x.dtype), turns.imag.to(x.dtype)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


@lru_cache(maxsize=16)
def _turns(arch: Architecture, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Unit complex numbers ``[position, rotary_dim / 2]`` that rotate each pair of dimensions."""
    pair = torch.arange(0, arch.rotary_dim, 2, dtype=torch.float64, device=device)
    frequency = arch.rotary_base ** (-pair / arch.rotary_dim)
    angle = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequency
    turns = torch.polar(torch.ones_like(angle), angle)
    return turns.to(torch.complex128 if dtype == torch.float64 else torch.complex64)


def causal_attention(arch: Architecture, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over ``[row, head, position, d_head]``; queries and keys before rotation."""
    return F.scaled_dot_product_attention(
        rotate(arch, q), rotate(arch, k), v, is_causal=True, scale=1.0 / arch.attn_scale
    )


def embed(arch: Architecture, weights: Weights, tokens: Tensor) -> Tensor:
    """Residual stream before the first block, ``[sequence, position, d_model]``."""
    resid = F.embedding(tokens, weights["embed.W_E"])
    if arch.positions == "standard":
        resid = resid + weights["pos_embed.W_pos"][: tokens.shape[-1]]
    return resid


def attention_inputs(
    arch: Architecture, weights: Weights, layer: int, resid: Tensor
) -> tuple[Tensor, Tensor]:
    """Input of the queries and keys, and input of the values, of one layer."""
    x = normalize(arch.norm, resid, weights, f"blocks.{layer}.ln1", arch.norm_eps)
    if arch.positions == "shortformer":
        return x + weights["pos_embed.W_pos"][: x.shape[-2]], x
    return x, x


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[row, position, d_model] × [head, d_model, d_head] → [row, head, position, d_head]``."""
    n_heads, d_model, d_head = weight.shape
    out = (x @ weight.transpose(0, 1).reshape(d_model, n_heads * d_head)).unflatten(
        -1, (n_heads, d_head)
    )
    if bias is not None:
        out = out + bias
    return out.transpose(-3, -2)


def head_outputs(arch: Architecture, weights: Weights, layer: int, resid: Tensor) -> Tensor:
    """What every head of a layer writes before W_O: z ``[row, head, position, d_head]``."""
    name = f"blocks.{layer}.attn"
    x_qk, x_v = attention_inputs(arch, weights, layer, resid)
    q = project(x_qk, weights[f"{name}.W_Q"], weights.get(f"{name}.b_Q"))
    k = project(x_qk, weights[f"{name}.W_K"], weights.get(f"{name}.b_K"))
    v = project(x_v, weights[f"{name}.W_V"], weights.get(f"{name}.b_V"))
    if arch.heads_per_key_value > 1:
        k = k.repeat_interleave(arch.heads_per_key_value, dim=-3)
        v = v.repeat_interleave(arch.heads_per_key_value, dim=-3)
    return causal_attention(arch, q, k, v)


def attention_output(weights: Weights, layer: int, z: Tensor) -> Tensor:
    """Project z ``[row, head, position, d_head]`` into the residual stream."""
    name = f"blocks.{layer}.attn"
    out = z.transpose(-3, -2).flatten(-2) @ weights[f"{name}.W_O"].flatten(0, 1)
    bias = weights.get(f"{name}.b_O")
    return out if bias is None else out + bias


def mlp_output(arch: Architecture, weights: Weights, layer: int, resid: Tensor) -> Tensor:
    """What the MLP of a layer writes into the residual stream, given its input stream."""
    name = f"blocks.{layer}.mlp"
    norm = f"blocks.{layer}.{'ln1' if arch.shared_norm else 'ln2'}"
    x = normalize(arch.norm, resid, weights, norm, arch.norm_eps)
    activation = ACTIVATIONS[arch.activation]
    w_in, b_in = weights[f"{name}.W_in"], weights.get(f"{name}.b_in")
    if arch.gated_mlp:
        gate = activation(_affine(x, weights[f"{name}.W_gate"], weights.get(f"{name}.b_gate")))
        late = arch.gated_bias_after_product
        hidden = gate * _affine(x, w_in, None if late else b_in)
        if late and b_in is not None:
            hidden = hidden + b_in
    else:
        hidden = activation(_affine(x, w_in, b_in))
    return _affine(hidden, weights[f"{name}.W_out"], weights.get(f"{name}.b_out"))


def finish_block(
    arch: Architecture, weights: Weights, layer: int, resid: Tensor, attn_out: Tensor
) -> Tensor:
    """Residual stream after a block, given the stream before it and its attention output."""
    after = resid + attn_out
    if arch.attn_only:
        return after
    return after + mlp_output(arch, weights, layer, resid if arch.parallel_attn_mlp else after)


def block(arch: Architecture, weights: Weights, layer: int, resid: Tensor) -> Tensor:
    """One whole transformer block."""
    z = head_outputs(arch, weights, layer, resid)
    return finish_block(arch, weights, layer, resid, attention_output(weights, layer, z))


def final_state(arch: Architecture, weights: Weights, resid: Tensor) -> Tensor:
    """What the unembedding reads: the last residual stream after the final normalisation."""
    return normalize(arch.final_norm, resid, weights, "ln_final", arch.norm_eps)


def run_from(arch: Architecture, weights: Weights, layer: int, resid: Tensor) -> Tensor:
    """Final state from the residual stream before block ``layer``."""
    for later in range(layer, arch.n_layers):
        resid = block(arch, weights, later, resid)
    return final_state(arch, weights, resid)


def unembedding(arch: Architecture, weights: Weights) -> tuple[Tensor, Tensor | None]:
    """W_U ``[d_model, d_vocab]`` (the transposed embedding where they are tied) and b_U."""
    w_u = weights["embed.W_E"].T if arch.tied_embeddings else weights["unembed.W_U"]
    return w_u, weights.get("unembed.b_U")


def unembed(arch: Architecture, weights: Weights, x: Tensor) -> Tensor:
    """Logits of final states."""
    return _affine(x, *unembedding(arch, weights))


def logits(arch: Architecture, weights: Weights, tokens: Tensor) -> Tensor:
    """Logits of the whole model, ``[sequence, position, d_vocab]``."""
    return unembed(arch, weights, run_from(arch, weights, 0, embed(arch, weights, tokens)))


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x @ weight
    return out if bias is None else out + bias
