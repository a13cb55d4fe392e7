"""Variants of HookedTransformer (TransformerLens before 4.0)."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from benchmarks.families.build import plain_hooked, randomise
from benchmarks.families.plain import Plain
from benchmarks.quiet import quiet

SIZES: dict[str, Any] = dict(
    n_layers=2, d_model=16, n_heads=4, d_head=4, n_ctx=32, d_vocab=50, d_mlp=24, act_fn="gelu",
    normalization_type="LN", seed=0, device="cpu",
)  # fmt: skip
ROTARY: dict[str, Any] = dict(positional_embedding_type="rotary", d_head=8)
GATED: dict[str, Any] = dict(gated_mlp=True, act_fn="silu")

VARIANTS: dict[str, dict[str, Any]] = {
    "LN, MLP": {},
    "attn-only": dict(attn_only=True),
    "LNPre": dict(normalization_type="LNPre"),
    "RMS": dict(normalization_type="RMS"),
    "RMSPre": dict(normalization_type="RMSPre", attn_only=True),
    "no norm": dict(normalization_type=None),
    "final RMS": dict(final_rms=True),
    "gated": GATED,
    "parallel": dict(parallel_attn_mlp=True),
    "grouped K, V": dict(n_key_value_heads=2),
    "rotary": ROTARY,
    "rotary pairs": dict(ROTARY, rotary_adjacent_pairs=True),
    "rotary partial": dict(ROTARY, rotary_dim=4, rotary_base=100),
    "rotary grouped": dict(
        ROTARY, **GATED, normalization_type="RMS", n_key_value_heads=2, final_rms=True
    ),
    "shortformer": dict(positional_embedding_type="shortformer", attn_only=True),
    "alibi": dict(positional_embedding_type="alibi"),
    "unscaled": dict(use_attn_scale=False),
    "soft caps": dict(attn_scores_soft_cap=5.0, output_logits_soft_cap=3.0),
    "q, k norms": dict(use_qk_norm=True),
    "local": dict(use_local_attn=True, window_size=4, attn_types=["global", "local"]),
    "norms after": dict(normalization_type="RMS", use_normalization_before_and_after=True),
    "relu, 3 layers": dict(act_fn="relu", n_layers=3),
    "solu": dict(act_fn="solu_ln"),
}


def has_hooked_transformer() -> bool:
    """TransformerLens 4.0 removed it."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def variant(name: str) -> tuple[nn.Module, Plain]:
    """A HookedTransformer, and its plain copy."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with quiet():
        model = HookedTransformer(HookedTransformerConfig(**{**SIZES, **VARIANTS[name]})).eval()
    randomise(model)
    return model, plain_hooked(copy.deepcopy(model))
