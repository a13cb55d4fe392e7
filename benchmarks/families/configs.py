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
GPT: dict[str, Any] = dict(n_embd=16, n_layer=2, n_head=4, n_positions=32, vocab_size=50)
GPT_PARTS: dict[str, Any] = dict(
    blocks="transformer.h", o="attn.c_proj", qkv=("attn.c_attn",), fused="concat",
    mlp="mlp.c_proj", key_values=4, norm="ln_1", centred=True,
)  # fmt: skip
QKV_DENSE: dict[str, Any] = dict(
    blocks="transformer.h", o="self_attention.dense", qkv=("self_attention.query_key_value",),
    mlp="mlp.dense_4h_to_h", centred=True,
)  # fmt: skip
FC: dict[str, Any] = dict(
    o="self_attn.out_proj", mlp="fc2", key_values=4, norm="self_attn_layer_norm", centred=True
)


def llama_like(name: str, **options: Any) -> Family:
    """A family whose modules have the names of Llama's."""
    parts = {key: options.pop(key) for key in list(options) if key in Family.__dataclass_fields__}
    model = options.pop("model_class", f"{name}ForCausalLM")
    config = options.pop("config_class", f"{name}Config")
    return Family(options.pop("as_", name.lower()), model, config, {**LIKE, **options}, **parts)


MOE: dict[str, Any] = dict(num_local_experts=2, num_experts_per_tok=1)
WIDE: dict[str, Any] = dict(hidden_size=32, d_head=8)  # rotary halves of part of a head

FAMILIES: tuple[Family, ...] = (
    Family("gpt2", "GPT2LMHeadModel", "GPT2Config", GPT, **GPT_PARTS),
    Family(
        "gpt2 inverse",
        "GPT2LMHeadModel",
        "GPT2Config",
        dict(GPT, scale_attn_by_inverse_layer_idx=True),
        **GPT_PARTS,
    ),
    Family(
        "openai-gpt", "OpenAIGPTLMHeadModel", "OpenAIGPTConfig", GPT, **{**GPT_PARTS, "norm": ""}
    ),
    Family(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        "GPTBigCodeConfig",
        dict(GPT, multi_query=True),
        **{**GPT_PARTS, "key_values": 1},
    ),
    Family(
        "gpt_neo",
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        dict(
            hidden_size=16,
            num_layers=2,
            num_heads=4,
            vocab_size=50,
            max_position_embeddings=32,
            window_size=5,
            attention_types=[[["global", "local"], 1]],
        ),
        blocks="transformer.h",
        o="attn.attention.out_proj",
        qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        mlp="mlp.c_proj",
        key_values=4,
        norm="ln_1",
        centred=True,
    ),
    Family(
        "gptj",
        "GPTJForCausalLM",
        "GPTJConfig",
        dict(GPT, n_embd=32, rotary_dim=4),
        blocks="transformer.h",
        o="attn.out_proj",
        qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        mlp="mlp.fc_out",
        key_values=4,
        d_head=8,
        norm="ln_1",
        centred=True,
    ),
    Family(
        "codegen",
        "CodeGenForCausalLM",
        "CodeGenConfig",
        dict(GPT, n_embd=32, rotary_dim=4),
        blocks="transformer.h",
        o="attn.out_proj",
        qkv=("attn.qkv_proj",),
        fused="codegen",
        mlp="mlp.fc_out",
        key_values=4,
        d_head=8,
        norm="ln_1",
        centred=True,
    ),
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        dict(OLD, hidden_size=32, intermediate_size=24, rotary_pct=0.5),
        blocks="gpt_neox.layers",
        o="attention.dense",
        qkv=("attention.query_key_value",),
        fused="groups",
        mlp="mlp.dense_4h_to_h",
        key_values=4,
        d_head=8,
        centred=True,
    ),
    Family(
        "neox sequential",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        dict(
            OLD, hidden_size=32, intermediate_size=24, rotary_pct=0.5, use_parallel_residual=False
        ),
        blocks="gpt_neox.layers",
        o="attention.dense",
        qkv=("attention.query_key_value",),
        fused="groups",
        mlp="mlp.dense_4h_to_h",
        key_values=4,
        d_head=8,
        centred=True,
    ),
    Family(
        "bloom",
        "BloomForCausalLM",
        "BloomConfig",
        dict(hidden_size=16, n_layer=2, n_head=4, vocab_size=50),
        fused="groups",
        key_values=4,
        **QKV_DENSE,
    ),
    Family(
        "falcon",
        "FalconForCausalLM",
        "FalconConfig",
        dict(OLD, multi_query=True),
        fused="groups",
        key_values=1,
        **QKV_DENSE,
    ),
    Family(
        "falcon new",
        "FalconForCausalLM",
        "FalconConfig",
        dict(OLD, new_decoder_architecture=True, num_kv_heads=2),
        fused="groups",
        **{**QKV_DENSE, "norm": "ln_attn"},
    ),
    Family(
        "falcon alibi",
        "FalconForCausalLM",
        "FalconConfig",
        dict(OLD, multi_query=False, alibi=True, bias=True, parallel_attn=False),
        fused="groups",
        key_values=4,
        **QKV_DENSE,
    ),
    Family(
        "mpt",
        "MptForCausalLM",
        "MptConfig",
        dict(d_model=16, n_layers=2, n_heads=4, vocab_size=50, max_seq_len=32, expansion_ratio=2),
        blocks="transformer.blocks",
        o="attn.out_proj",
        qkv=("attn.Wqkv",),
        fused="concat",
        mlp="ffn.down_proj",
        key_values=4,
        norm="norm_1",
        centred=True,
    ),
    Family(
        "opt",
        "OPTForCausalLM",
        "OPTConfig",
        dict(OLD, ffn_dim=24, word_embed_proj_dim=16),
        blocks="model.decoder.layers",
        **FC,
    ),
    Family(
        "opt post-norm",
        "OPTForCausalLM",
        "OPTConfig",
        dict(OLD, ffn_dim=24, word_embed_proj_dim=16, do_layer_norm_before=False),
        blocks="model.decoder.layers",
        **FC,
    ),
    Family(
        "xglm",
        "XGLMForCausalLM",
        "XGLMConfig",
        dict(
            d_model=16,
            num_layers=2,
            attention_heads=4,
            vocab_size=50,
            ffn_dim=24,
            max_position_embeddings=32,
            pad_token_id=1,
        ),
        **FC,
    ),
    Family(
        "phi",
        "PhiForCausalLM",
        "PhiConfig",
        dict(LIKE, hidden_size=32, num_key_value_heads=4),
        o="self_attn.dense",
        mlp="mlp.fc2",
        key_values=4,
        d_head=8,
        centred=True,
    ),
    Family(
        "phi3",
        "Phi3ForCausalLM",
        "Phi3Config",
        LIKE,
        qkv=("self_attn.qkv_proj",),
        fused="concat",
    ),
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
        layer_types=["sliding_attention", "full_attention"],
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
        layer_types=["sliding_attention", "full_attention"],
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
        layer_types=["sliding_attention", "full_attention"],
    ),
    llama_like(
        "VaultGemma",
        plus_one=True,
        head_dim=4,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
    ),
    llama_like("Olmo", centred=True),
    llama_like("Olmo", centred=True, as_="olmo clipped", clip_qkv=0.5),
    llama_like("Olmo2", mlp_norm="post_feedforward_layernorm", norm=""),
    llama_like(
        "Olmo3",
        mlp_norm="post_feedforward_layernorm",
        norm="",
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
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
        layer_types=["sliding_attention", "full_attention"],
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
        layer_types=["sliding_attention", "full_attention"],
    ),
    llama_like("Ernie4_5", head_dim=4),
    llama_like("Apertus", norm="attention_layernorm"),
    llama_like("Arcee"),
    llama_like("SeedOss", head_dim=4),
    llama_like("Ministral3", head_dim=4),
    llama_like("Helium", head_dim=4),
    llama_like("NanoChat", mlp="mlp.fc2"),
    llama_like("Jais2", centred=True),
    # Options that change what a family computes.
    Family(
        "gpt2 unscaled",
        "GPT2LMHeadModel",
        "GPT2Config",
        dict(GPT, scale_attn_weights=False),
        **GPT_PARTS,
    ),
    Family(
        "gpt2 untied",
        "GPT2LMHeadModel",
        "GPT2Config",
        dict(GPT, tie_word_embeddings=False),
        **GPT_PARTS,
    ),
    Family(
        "bloom post-norm",
        "BloomForCausalLM",
        "BloomConfig",
        dict(
            hidden_size=16,
            n_layer=2,
            n_head=4,
            vocab_size=50,
            apply_residual_connection_post_layernorm=True,
        ),
        fused="groups",
        key_values=4,
        **QKV_DENSE,
    ),
    Family(
        "falcon two norms",
        "FalconForCausalLM",
        "FalconConfig",
        dict(OLD, multi_query=False, parallel_attn=False),
        fused="groups",
        key_values=4,
        **QKV_DENSE,
    ),
    Family(
        "opt projected",
        "OPTForCausalLM",
        "OPTConfig",
        dict(OLD, ffn_dim=24, word_embed_proj_dim=8),
        blocks="model.decoder.layers",
        **FC,
    ),
    Family(
        "phi qk-norm",
        "PhiForCausalLM",
        "PhiConfig",
        dict(LIKE, hidden_size=32, num_key_value_heads=4, qk_layernorm=True),
        o="self_attn.dense",
        mlp="mlp.fc2",
        key_values=4,
        d_head=8,
        centred=True,
    ),
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
    Family(
        "mamba",
        "MambaForCausalLM",
        "MambaConfig",
        dict(hidden_size=16, num_hidden_layers=2, vocab_size=50, state_size=4),
        unsupported=True,
    ),
    Family(
        "rwkv",
        "RwkvForCausalLM",
        "RwkvConfig",
        dict(hidden_size=16, num_hidden_layers=2, vocab_size=50, attention_hidden_size=16),
        unsupported=True,
    ),
)
