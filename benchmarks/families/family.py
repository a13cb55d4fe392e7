"""Tiny configurations of Hugging Face families, and where each family computes what.

A :class:`Family` says, read from the modules of transformers and from nothing else, where the parts
stand that the truths need: the map that turns head outputs into what attention adds (``o``), the
maps that make queries, keys and values, the last module of the MLP, the norm before
attention. What stands between ``o`` and the residual stream (norms, multipliers) need not be
said: :mod:`benchmarks.families.plain` measures the change of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SEPARATE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class Family:
    """One configuration of one family.

    ``qkv`` names the modules of queries, keys and values, or the one that makes all three;
    ``fused`` says in which order that one puts them out: ``concat`` (all queries, all keys, all
    values), ``groups`` (per key/value head: its queries, its key, its value), ``codegen`` (four
    parts: queries, values, keys).
    """

    name: str
    model: str
    config: str
    options: dict[str, Any]
    blocks: str = "model.layers"
    o: str = "self_attn.o_proj"
    qkv: tuple[str, ...] = SEPARATE
    fused: str = ""
    mlp: str | None = "mlp.down_proj"
    heads: int = 4
    key_values: int = 2
    d_head: int = 4
    mlp_norm: str = ""  # between the MLP and the residual stream
    norm: str = "input_layernorm"  # before attention
    centred: bool = False  # it takes the mean out
    plus_one: bool = False  # it multiplies by its weight plus one
    unsupported: bool = False  # has to be refused in words


TOKENS: dict[str, Any] = dict(bos_token_id=0, eos_token_id=0, pad_token_id=49)
OLD: dict[str, Any] = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=4, vocab_size=50,
    max_position_embeddings=32,
)  # fmt: skip
LIKE: dict[str, Any] = dict(OLD, intermediate_size=24, num_key_value_heads=2)
