"""Families whose modules have the names of Llama's."""

from __future__ import annotations

from typing import Any

from benchmarks.families.family import LIKE, Family


def llama_like(name: str, **options: Any) -> Family:
    """A family whose modules have the names of Llama's."""
    parts = {key: options.pop(key) for key in list(options) if key in Family.__dataclass_fields__}
    model = options.pop("model_class", f"{name}ForCausalLM")
    config = options.pop("config_class", f"{name}Config")
    return Family(options.pop("as_", name.lower()), model, config, {**LIKE, **options}, **parts)


MOE: dict[str, Any] = dict(num_local_experts=2, num_experts_per_tok=1)
SLIDING = ["sliding_attention", "full_attention"]

LLAMA_LIKE: tuple[Family, ...] = (
    llama_like("Llama"),
    llama_like(
        "Llama", as_="llama biases", mlp_bias=True, attention_bias=True, tie_word_embeddings=True
    ),
    llama_like("Mistral"),
    llama_like("Mistral", as_="mistral window", sliding_window=5),
    llama_like("Qwen2"),
    llama_like("Qwen3", head_dim=4),
    llama_like("Gemma", plus_one=True, head_dim=4),
    llama_like(
        "Gemma2",
        mlp_norm="post_feedforward_layernorm",
        plus_one=True,
        head_dim=4,
        sliding_window=5,
        query_pre_attn_scalar=4,
    ),
    llama_like(
        "Gemma3",
        mlp_norm="post_feedforward_layernorm",
        plus_one=True,
        config_class="Gemma3TextConfig",
        head_dim=4,
        sliding_window=5,
        layer_types=SLIDING,
    ),
    llama_like(
        "Gemma4",
        mlp_norm="post_feedforward_layernorm",
        config_class="Gemma4TextConfig",
        head_dim=4,
        global_head_dim=4,
        vocab_size_per_layer_input=50,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        layer_types=SLIDING,
    ),
    llama_like(
        "Gemma4",
        mlp_norm="post_feedforward_layernorm",
        as_="gemma4 inputs",
        config_class="Gemma4TextConfig",
        head_dim=4,
        global_head_dim=4,
        vocab_size_per_layer_input=50,
        hidden_size_per_layer_input=4,
        num_kv_shared_layers=0,
        layer_types=SLIDING,
    ),
    llama_like(
        "VaultGemma",
        plus_one=True,
        head_dim=4,
        sliding_window=5,
        layer_types=SLIDING,
    ),
    llama_like("Olmo", centred=True),
    llama_like("Olmo", centred=True, as_="olmo clipped", clip_qkv=0.5),
    llama_like("Olmo2", mlp_norm="post_feedforward_layernorm", norm=""),
    llama_like(
        "Olmo3",
        mlp_norm="post_feedforward_layernorm",
        norm="",
        sliding_window=5,
        layer_types=SLIDING,
    ),
    llama_like(
        "Granite",
        residual_multiplier=0.22,
        attention_multiplier=0.3,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
    ),
    llama_like("Cohere", centred=True, logit_scale=0.5),
    llama_like("Cohere", centred=True, as_="cohere qk-norm", use_qk_norm=True),
    llama_like(
        "Cohere2",
        centred=True,
        sliding_window=5,
        layer_types=SLIDING,
    ),
    llama_like("StableLm", centred=True, hidden_size=32, d_head=8, partial_rotary_factor=0.5),
    llama_like(
        "StableLm",
        centred=True,
        as_="stablelm parallel",
        hidden_size=32,
        d_head=8,
        use_parallel_residual=True,
        qk_layernorm=True,
        use_qkv_bias=True,
    ),
    llama_like("Starcoder2", centred=True, mlp="mlp.c_proj"),
    llama_like("SmolLM3", no_rope_layers=[1, 0]),
    llama_like("Glm", head_dim=8, d_head=8, partial_rotary_factor=0.5),
    llama_like(
        "Glm4", mlp_norm="post_mlp_layernorm", head_dim=8, d_head=8, partial_rotary_factor=0.5
    ),
    llama_like(
        "Nemotron",
        centred=True,
        plus_one=True,
        hidden_size=32,
        head_dim=8,
        d_head=8,
        partial_rotary_factor=0.5,
    ),
    llama_like("HunYuanDenseV1", head_dim=4),
    llama_like(
        "Exaone4",
        mlp_norm="post_feedforward_layernorm",
        norm="",
        sliding_window=5,
        layer_types=SLIDING,
    ),
    llama_like("Ernie4_5", head_dim=4),
    llama_like("Apertus", norm="attention_layernorm"),
    llama_like("Arcee"),
    llama_like("SeedOss", head_dim=4),
    llama_like("Ministral3", head_dim=4),
    llama_like("Helium", head_dim=4),
    llama_like("NanoChat", mlp="mlp.fc2"),
    llama_like("Jais2", centred=True),
    llama_like(
        "Llama", as_="llama linear rope", rope_scaling={"rope_type": "linear", "factor": 2.0}
    ),
    llama_like("Llama", as_="llama wide heads", head_dim=8, d_head=8),
    llama_like(
        "Qwen2", as_="qwen2 window", use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    llama_like("Qwen3", as_="qwen3 wide heads", head_dim=8, d_head=8),
    llama_like(
        "Gemma",
        as_="gemma multi-query",
        plus_one=True,
        head_dim=4,
        num_key_value_heads=1,
        key_values=1,
    ),
    llama_like(
        "Granite",
        as_="granite biases",
        attention_bias=True,
        mlp_bias=True,
        residual_multiplier=0.22,
    ),
    llama_like("Mixtral", unsupported=True, **MOE),
    llama_like(
        "Qwen2Moe",
        unsupported=True,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    ),
    llama_like("Olmoe", unsupported=True, num_experts=2, num_experts_per_tok=1),
    llama_like("GptOss", unsupported=True, head_dim=4, **MOE),
)
