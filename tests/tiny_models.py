"""Small random models of many architectures, built without network.

Every weight is random, biases and norm weights included, so that a mistake in any of them shows.
``TINY_MODELS`` maps a name to a function without arguments; the names that begin with ``hooked_``
need TransformerLens before 4.0.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SIZES: dict[str, Any] = dict(n_layers=2, d_model=16, n_heads=4, d_head=4, n_ctx=32, d_vocab=50)
LONG_SIZES: dict[str, Any] = {**SIZES, "d_head": 8}


def has_hooked_transformer() -> bool:
    """Whether this TransformerLens still has HookedTransformer (removed in 4.0)."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def randomise(model: nn.Module, seed: int = 0, parameters: Any = None) -> nn.Module:
    """Overwrite every parameter with random values, norm weights around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in parameters or model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "ln" in name.lower() or "norm" in name.lower()
            if norm and name.endswith(("w", "weight")):
                parameter.copy_(1.0 + 0.3 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return model


def hooked(**options: Any) -> nn.Module:
    """A HookedTransformer with random weights."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    options = {**SIZES, "attn_only": True, "normalization_type": "LN", "seed": 0, **options}
    if not options["attn_only"]:
        options.setdefault("act_fn", "gelu")
        options.setdefault("d_mlp", 24)
    with _quiet():
        return randomise(HookedTransformer(HookedTransformerConfig(device="cpu", **options)))


def native(**options: Any) -> nn.Module:
    """A native TransformerBridge with random weights."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    options = {**SIZES, "attn_only": True, "normalization_type": "LN", "seed": 0, **options}
    if not options["attn_only"]:
        options.setdefault("act_fn", "gelu")
        options.setdefault("d_mlp", 24)
    rope_scaling = options.pop("rope_scaling", None)
    config = TransformerBridgeConfig(**options)
    config.rope_scaling = rope_scaling
    with _quiet():
        bridge = TransformerBridge.boot_native(config, device="cpu")
    randomise(bridge, parameters=nn.Module.named_parameters(bridge))
    return bridge.eval()


def wrapped(model_class: str, config_class: str, **options: Any) -> nn.Module:
    """A random Hugging Face model wrapped by the bridge."""
    import transformers
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    with _quiet():
        config = getattr(transformers, config_class)(
            bos_token_id=0, eos_token_id=0, pad_token_id=49, **options
        )
        model = getattr(transformers, model_class)(config).eval()
        randomise(model)
        return build_bridge_from_module(
            model, architecture=model_class, hf_config=config, model_name=f"tiny-{model_class}"
        ).eval()


def wrapped_gpt2(**options: Any) -> nn.Module:
    """GPT-2: Conv1D, fused QKV, tied embeddings."""
    options = dict(n_embd=16, n_layer=2, n_head=4, n_positions=32, vocab_size=50) | options
    return wrapped("GPT2LMHeadModel", "GPT2Config", **options)


HF_SIZES: dict[str, Any] = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=50,
    max_position_embeddings=32,
)


def wrapped_neox(**options: Any) -> nn.Module:
    """GPT-NeoX (Pythia): parallel blocks, partial rotary, fused QKV."""
    options = {**HF_SIZES, "hidden_size": 32, "intermediate_size": 24, "rotary_pct": 0.5, **options}
    return wrapped("GPTNeoXForCausalLM", "GPTNeoXConfig", **options)


def wrapped_llama(**options: Any) -> nn.Module:
    """Llama with grouped-query attention and a gated MLP."""
    options = {**HF_SIZES, "intermediate_size": 24, "num_key_value_heads": 2, **options}
    return wrapped("LlamaForCausalLM", "LlamaConfig", **options)


def wrapped_qwen2(**options: Any) -> nn.Module:
    """Qwen2: Llama with biases on queries, keys and values."""
    options = {**HF_SIZES, "intermediate_size": 24, "num_key_value_heads": 2, **options}
    return wrapped("Qwen2ForCausalLM", "Qwen2Config", **options)


def wrapped_mistral(**options: Any) -> nn.Module:
    """Mistral: Llama with a sliding window, here longer than the context."""
    options = {**HF_SIZES, "intermediate_size": 24, "num_key_value_heads": 2, **options}
    return wrapped("MistralForCausalLM", "MistralConfig", **options)


def wrapped_gptj(**options: Any) -> nn.Module:
    """GPT-J: one norm for attention and MLP, adjacent rotary pairs, a bias on the logits."""
    sizes = dict(n_embd=32, n_layer=2, n_head=4, n_positions=32, vocab_size=50, rotary_dim=4)
    return wrapped("GPTJForCausalLM", "GPTJConfig", **sizes, **options)


def wrapped_opt(**options: Any) -> nn.Module:
    """OPT: position embeddings that begin at row two."""
    sizes = {**HF_SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16}
    return wrapped("OPTForCausalLM", "OPTConfig", **sizes, **options)


def wrapped_gemma2(**options: Any) -> nn.Module:
    """Gemma 2: soft caps, local windows, norms after each part (no fast path)."""
    options = {**HF_SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4}
    return wrapped("Gemma2ForCausalLM", "Gemma2Config", **options)


class _quiet:
    """Silence construction chatter of transformers and TransformerLens."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        self._warnings.__exit__(*error)
        logging.disable(self._level)


ROTARY: dict[str, Any] = dict(LONG_SIZES, positional_embedding_type="rotary")
MLP: dict[str, Any] = dict(attn_only=False)
GATED: dict[str, Any] = dict(MLP, gated_mlp=True, act_fn="silu")

TINY_MODELS: dict[str, Callable[[], nn.Module]] = {
    "hooked_attn_only": lambda: hooked(),
    "hooked_lnpre": lambda: hooked(normalization_type="LNPre"),
    "hooked_rms": lambda: hooked(normalization_type="RMS", **MLP),
    "hooked_rmspre": lambda: hooked(normalization_type="RMSPre"),
    "hooked_final_rms": lambda: hooked(final_rms=True),
    "hooked_no_norm": lambda: hooked(normalization_type=None),
    "hooked_mlp": lambda: hooked(**MLP),
    "hooked_gated": lambda: hooked(**GATED),
    "hooked_parallel": lambda: hooked(parallel_attn_mlp=True, **MLP),
    "hooked_gqa": lambda: hooked(n_key_value_heads=2),
    "hooked_rotary": lambda: hooked(**ROTARY),
    "hooked_rotary_pairs": lambda: hooked(**ROTARY, rotary_adjacent_pairs=True),
    "hooked_rotary_partial": lambda: hooked(**ROTARY, rotary_dim=4, rotary_base=100),
    "hooked_shortformer": lambda: hooked(positional_embedding_type="shortformer"),
    "hooked_unscaled": lambda: hooked(use_attn_scale=False),
    "hooked_llama_like": lambda: hooked(
        **ROTARY, **GATED, normalization_type="RMS", n_key_value_heads=2, final_rms=True
    ),
    "native_attn_only": lambda: native(),
    "native_lnpre": lambda: native(normalization_type="LNPre"),
    "native_rms": lambda: native(normalization_type="RMS"),
    "native_no_norm": lambda: native(normalization_type=None),
    "native_mlp": lambda: native(**MLP),
    "native_gated": lambda: native(**GATED),
    "native_gqa": lambda: native(n_key_value_heads=2),
    "native_rotary": lambda: native(**ROTARY),
    "native_rotary_partial": lambda: native(**ROTARY, rotary_dim=4),
    "native_llama_like": lambda: native(
        **ROTARY, **GATED, normalization_type="RMS", n_key_value_heads=2, final_rms=True
    ),
    "wrapped_gpt2": wrapped_gpt2,
    "wrapped_neox": wrapped_neox,
    "wrapped_neox_sequential": lambda: wrapped_neox(use_parallel_residual=False),
    "wrapped_llama": wrapped_llama,
    "wrapped_llama_biases": lambda: wrapped_llama(
        mlp_bias=True, attention_bias=True, tie_word_embeddings=True
    ),
    "wrapped_qwen2": wrapped_qwen2,
    "wrapped_mistral": wrapped_mistral,
    "wrapped_gptj": wrapped_gptj,
    "wrapped_opt": wrapped_opt,
}
"""Models that the fast path expresses."""

GENERIC_MODELS: dict[str, Callable[[], nn.Module]] = {
    "hooked_soft_cap": lambda: hooked(attn_scores_soft_cap=5.0),
    "hooked_alibi": lambda: hooked(positional_embedding_type="alibi"),
    "hooked_qk_norm": lambda: hooked(use_qk_norm=True),
    "hooked_local": lambda: hooked(
        use_local_attn=True, window_size=4, attn_types=["global", "local"]
    ),
    "native_logit_cap": lambda: native(output_logits_soft_cap=5.0),
    "native_rope_scaling": lambda: native(
        **ROTARY, rope_scaling={"rope_type": "linear", "factor": 2.0}
    ),
    "wrapped_mistral_window": lambda: wrapped_mistral(sliding_window=8),
    "wrapped_gemma2": wrapped_gemma2,
}
"""Models that only their own modules can run."""
