"""Which models :mod:`lens_slt.models.forward` can express, read off their configuration.

Each function returns an :class:`Architecture`, or the reason in words why there is none. What a
short batch cannot show (sliding windows, rescaled rotary angles) has to be excluded here; the rest
is checked numerically by :func:`lens_slt.models.adapter.adapt`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from lens_slt.models.forward import ACTIVATIONS, NORMS, POSITIONS, Architecture

BRIDGE_ARCHITECTURES = (
    "TransformerLensNative",
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "GPTJForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "OPTForCausalLM",
)
ADJACENT_PAIRS = ("TransformerLensNative", "GPTJForCausalLM")
POST_NORM = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")


def hooked_architecture(model: Any, names: Collection[str]) -> Architecture | str:
    """Architecture of a HookedTransformer, or why it has none."""
    cfg = model.cfg
    reason = _shared_reason(cfg) or _hooked_reason(cfg)
    if reason:
        return reason
    norm = cfg.normalization_type
    return _finish(
        cfg,
        names,
        norm=norm,
        final_norm=_final_norm(norm, cfg.final_rms),
        positions=cfg.positional_embedding_type,
        attn_scale=float(cfg.attn_scale) if cfg.use_attn_scale else 1.0,
        rotary_dim=cfg.rotary_dim or 0,
        rotary_base=float(cfg.rotary_base),
        rotary_adjacent_pairs=bool(cfg.rotary_adjacent_pairs),
        parallel_attn_mlp=bool(cfg.parallel_attn_mlp),
        gated_bias_after_product=bool(cfg.gated_mlp),
    )


def bridge_architecture(bridge: Any, names: Collection[str]) -> Architecture | str:
    """Architecture of a TransformerBridge, or why it has none."""
    cfg = bridge.cfg
    kind = str(getattr(cfg, "architecture", None))
    if kind not in BRIDGE_ARCHITECTURES:
        return f"{kind} is not one of the architectures with a fast path"
    native = kind == "TransformerLensNative"
    hf_config = None if native else getattr(bridge.original_model, "config", None)
    reason = _shared_reason(cfg) or _rope_reason(cfg, hf_config) or _window_reason(cfg, hf_config)
    reason = reason or _hugging_face_reason(hf_config)
    if reason:
        return reason
    rotary_dim, rotary_base = _rotary(cfg, hf_config)
    norm = _norm_name(cfg.normalization_type)
    return _finish(
        cfg,
        names,
        norm=norm,
        final_norm=_bridge_final_norm(norm, native and bool(getattr(cfg, "final_rms", False))),
        positions=cfg.positional_embedding_type,
        attn_scale=_bridge_scale(cfg, native),
        rotary_dim=rotary_dim,
        rotary_base=rotary_base,
        rotary_adjacent_pairs=kind in ADJACENT_PAIRS,
        parallel_attn_mlp=_bridge_parallel(kind, hf_config),
    )


def _finish(
    cfg: Any,
    names: Collection[str],
    *,
    norm: str | None,
    positions: str,
    parallel_attn_mlp: bool,
    **rest: Any,
) -> Architecture | str:
    """Fill in what every kind of model states in the same way; check names and values."""
    attn_only = "blocks.0.mlp.W_in" not in names
    activation = "gelu" if attn_only else str(cfg.act_fn)
    if norm not in NORMS:
        return f"normalization {norm!r}"
    if positions not in POSITIONS:
        return f"positional embedding {positions!r}"
    if activation not in ACTIVATIONS:
        return f"activation {activation!r}"
    arch = Architecture(
        n_layers=cfg.n_layers,
        d_model=cfg.d_model,
        n_heads=cfg.n_heads,
        n_key_value_heads=getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
        d_head=cfg.d_head,
        d_vocab=cfg.d_vocab,
        n_ctx=cfg.n_ctx,
        norm=norm,
        norm_eps=float(cfg.eps),
        positions=positions,
        attn_only=attn_only,
        parallel_attn_mlp=parallel_attn_mlp,
        shared_norm=norm in ("LN", "RMS") and not attn_only and "blocks.0.ln2.w" not in names,
        activation=activation,
        gated_mlp="blocks.0.mlp.W_gate" in names,
        tied_embeddings="unembed.W_U" not in names,
        **rest,
    )
    unknown = sorted(set(names) - _known_names(arch))
    if unknown:
        return f"parameters that the fast path does not read: {', '.join(unknown[:4])}"
    return arch


def _known_names(arch: Architecture) -> set[str]:
    """Weights that the functions of ``forward`` read for this architecture."""
    known = {"embed.W_E", "unembed.W_U", "unembed.b_U", "ln_final.w", "ln_final.b"}
    if arch.positions in ("standard", "shortformer"):
        known.add("pos_embed.W_pos")
    for layer in range(arch.n_layers):
        block = f"blocks.{layer}"
        known |= {f"{block}.attn.{kind}_{part}" for kind in "Wb" for part in "QKVO"}
        known |= {f"{block}.{norm}.{part}" for norm in ("ln1", "ln2") for part in "wb"}
        if not arch.attn_only:
            known |= {f"{block}.mlp.{kind}_{part}" for kind in "Wb" for part in ("in", "out")}
        if arch.gated_mlp:
            known |= {f"{block}.mlp.W_gate", f"{block}.mlp.b_gate"}
    return known


def _shared_reason(cfg: Any) -> str:
    """Reasons that HookedTransformer and bridge configurations state in the same words."""
    for name, words in (
        ("attn_scores_soft_cap", "a soft cap on attention scores"),
        ("output_logits_soft_cap", "a soft cap on logits"),
    ):
        if (getattr(cfg, name, None) or -1.0) > 0:
            return words
    for name, words in (
        ("use_qk_norm", "query and key norms"),
        ("use_local_attn", "local attention windows"),
        ("window_size", "local attention windows"),
        ("clip_qkv", "clamped queries, keys and values"),
        ("use_logn_attn", "log-n attention"),
        ("use_dynamic_ntk_rope", "rescaled rotary angles (dynamic NTK)"),
        ("use_NTK_by_parts_rope", "rescaled rotary angles (NTK by parts)"),
        ("use_yarn_rope", "rescaled rotary angles (YaRN)"),
        ("use_attention_sinks", "attention sinks"),
        ("use_normalization_before_and_after", "norms after attention and MLP"),
        ("post_embedding_ln", "a norm after the embedding"),
        ("scale_attn_by_inverse_layer_idx", "attention scaled by the layer"),
        ("rotary_base_local", "two rotary bases"),
    ):
        if getattr(cfg, name, None):
            return words
    return ""


def _hooked_reason(cfg: Any) -> str:
    if float(getattr(cfg, "rotary_scaling_factor", 1.0)) != 1.0:
        return "rescaled rotary angles (linear)"
    if getattr(cfg, "original_architecture", None) in POST_NORM:
        return "norms after attention and MLP"
    return ""


def _rope_reason(cfg: Any, hf_config: Any) -> str:
    for source in (cfg, hf_config):
        for name in ("rope_scaling", "rope_parameters"):
            rope = getattr(source, name, None)
            if not isinstance(rope, dict):
                continue
            kind = rope.get("rope_type") or rope.get("type") or "default"
            if kind != "default":
                return f"rescaled rotary angles ({kind})"
            if any(isinstance(value, dict) for value in rope.values()):
                return "rotary angles that differ between layers"
    return ""


def _window_reason(cfg: Any, hf_config: Any) -> str:
    """Windows shorter than the context; the check batch may be too short to notice them."""
    kinds = getattr(hf_config, "layer_types", None)
    if kinds is not None:
        return "local attention windows" if set(kinds) - {"full_attention"} else ""
    window = getattr(hf_config, "sliding_window", None)
    if window is None or window >= cfg.n_ctx or not getattr(hf_config, "use_sliding_window", True):
        return ""
    return "local attention windows"


def _hugging_face_reason(hf_config: Any) -> str:
    if getattr(hf_config, "scale_attn_weights", True) is False:
        return "attention scores that are not scaled"
    if getattr(hf_config, "do_layer_norm_before", True) is False:
        return "norms after attention and MLP"
    width = getattr(hf_config, "word_embed_proj_dim", None)
    if width is not None and width != hf_config.hidden_size:
        return "a projection between embedding and residual stream"
    return ""


def _rotary(cfg: Any, hf_config: Any) -> tuple[int, float]:
    """Rotated dimensions of a head, and the base of their frequencies."""
    if cfg.positional_embedding_type != "rotary":
        return 0, 10000.0
    rope = getattr(hf_config, "rope_parameters", None) or {}
    dim = getattr(cfg, "rotary_dim", None) or getattr(hf_config, "rotary_dim", None)
    if not dim:
        fraction = rope.get("partial_rotary_factor", getattr(hf_config, "rotary_pct", 1.0))
        dim = int(cfg.d_head * fraction)
    base = rope.get("rope_theta", getattr(cfg, "rotary_base", 10000.0))
    return int(dim), float(base)


def _bridge_scale(cfg: Any, native: bool) -> float:
    stated = float(getattr(cfg, "attn_scale", -1.0) or -1.0)
    if native and getattr(cfg, "use_attn_scale", True) and stated > 0:
        return stated
    return math.sqrt(cfg.d_head)


def _bridge_parallel(kind: str, hf_config: Any) -> bool:
    if kind == "GPTNeoXForCausalLM":
        return bool(getattr(hf_config, "use_parallel_residual", True))
    return kind == "GPTJForCausalLM"


def _norm_name(name: str | None) -> str | None:
    spelling = {"LN": "LN", "RMS": "RMS", "LNPRE": "LNPre", "RMSPRE": "RMSPre"}
    return None if name is None else spelling.get(name.upper(), name)


def _final_norm(norm: str | None, final_rms: bool) -> str | None:
    """HookedTransformer: ``final_rms`` swaps the family and keeps the parametrisation."""
    if norm is None or not final_rms:
        return norm
    return "RMSPre" if norm.endswith("Pre") else "RMS"


def _bridge_final_norm(norm: str | None, final_rms: bool) -> str | None:
    """Native bridge models apply ``final_rms`` even where the blocks have no norm."""
    if not final_rms:
        return norm
    return "RMSPre" if norm is not None and norm.endswith("Pre") else "RMS"
