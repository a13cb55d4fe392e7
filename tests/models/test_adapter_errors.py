"""What adapt refuses, and the words it uses; what it reports about weight processing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lens_slt.models.adapter import adapt
from lens_slt.models.processing import weight_processing
from tests.tiny_models import (
    has_hooked_transformer,
    hooked,
    native,
    wrapped,
    wrapped_gpt2,
    wrapped_llama,
)

hooked_only = pytest.mark.skipif(
    not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer"
)


def test_a_plain_hugging_face_model_is_told_how_to_be_wrapped() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10))
    with pytest.raises(
        TypeError,
        match=r"^model: GPT2LMHeadModel is a plain Hugging Face .*"
        r"TransformerBridge\.boot_transformers.*HookedTransformer",
    ):
        adapt(model)


@pytest.mark.parametrize("value", [None, "gpt2", nn.Linear(2, 2)])
def test_anything_else_is_named(value: object) -> None:
    with pytest.raises(TypeError, match=f"^model: expected .* got {type(value).__name__}"):
        adapt(value)


def test_active_dropout_asks_for_eval_and_eval_is_enough() -> None:
    model = wrapped_gpt2()
    model.train()
    model.original_model.train()
    with pytest.raises(ValueError, match=r"^model: dropout is active \(p=0\.1\); call model\.eval"):
        adapt(model)
    assert adapt(model.eval()).why_generic == ""


def test_attention_dropout_that_is_no_module_is_found() -> None:
    model = wrapped_llama(attention_dropout=0.25)
    assert adapt(model).why_generic == ""
    model.train()
    model.original_model.train()
    with pytest.raises(ValueError, match=r"dropout is active \(attention_dropout=0\.25\)"):
        adapt(model)
    assert adapt(model.eval()).why_generic == ""


def test_training_mode_without_dropout_is_fine() -> None:
    model = native().train()
    assert adapt(model).why_generic == ""
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_asks_for_float(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"^model: embed\.W_E is {dtype}; .*model\.float\(\)"):
        adapt(native().to(dtype))


@pytest.mark.parametrize(
    ("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite values")]
)
def test_weights_that_are_no_numbers_are_named(value: float, word: str) -> None:
    model = native()
    with torch.no_grad():
        model.blocks[1].attn.v.weight[3, 2] = value
    with pytest.raises(ValueError, match=rf"^model: blocks\.1\.attn\.W_V contains {word}"):
        adapt(model)


def test_integer_weights_count_as_quantised() -> None:
    model = native()
    linear = model.blocks[0].attn.q._modules["_original_component"]
    linear.weight = nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError,
        match=r"^model: blocks\.0\.attn\.q\.weight is torch\.int8; load .* without quant",
    ):
        adapt(model)


def test_quantised_configuration_is_refused() -> None:
    model = wrapped_gpt2()
    model.original_model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ValueError, match=r"^model: weights are quantised"):
        adapt(model)


def test_meta_weights_are_refused() -> None:
    model = native()
    linear = model.blocks[0].attn.q._modules["_original_component"]
    linear.weight = nn.Parameter(linear.weight.to("meta"))
    with pytest.raises(ValueError, match=r"^model: some weights are on the meta device"):
        adapt(model)


def test_bidirectional_attention_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model: attention is bidirectional; .*causal"):
        adapt(native(attention_dir="bidirectional"))


def test_mixture_of_experts_is_refused() -> None:
    model = wrapped(
        "MixtralForCausalLM",
        "MixtralConfig",
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=50,
        num_local_experts=2,
        max_position_embeddings=16,
    )
    with pytest.raises(ValueError, match=r"^model: MixtralForCausalLM is a mixture of 2 experts"):
        adapt(model)


@hooked_only
def test_encoders_are_refused() -> None:
    from transformer_lens import HookedEncoder, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=1, d_model=8, d_head=4, n_heads=2, n_ctx=8, d_vocab=10, act_fn="gelu"
    )
    with pytest.raises(TypeError, match="^model: HookedEncoder is not a causal language model"):
        adapt(HookedEncoder(config))


def test_unprocessed_models_report_no_processing() -> None:
    assert weight_processing(adapt(native(normalization_type="LNPre"))) == ""
    assert weight_processing(adapt(wrapped_gpt2())) == ""


def test_compatibility_mode_is_reported_with_what_it_did() -> None:
    model = wrapped_gpt2()
    model.enable_compatibility_mode(disable_warnings=True)
    assert weight_processing(adapt(model)) == (
        "compatibility mode: norms folded into the weights (fold_ln), writing weights centred "
        "(center_writing_weights), unembedding centred (center_unembed), value biases folded "
        "(fold_value_biases)"
    )


def test_compatibility_mode_without_processing_is_not_processing() -> None:
    model = wrapped_gpt2()
    model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert weight_processing(adapt(model)) == ""


@hooked_only
def test_hooked_transformer_processing() -> None:
    assert weight_processing(adapt(hooked(normalization_type="LNPre"))) == ""
    model = hooked(attn_only=False)
    model.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    assert weight_processing(adapt(model)).startswith(
        "writing weights centred (center_writing_weights), unembedding centred (center_unembed)"
    )
    pretrained = hooked(normalization_type="LNPre")
    pretrained.cfg.original_architecture = "GPT2LMHeadModel"
    assert weight_processing(adapt(pretrained)) == "norms folded into the weights (fold_ln)"


def test_weights_made_under_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = native()
    with pytest.raises(
        ValueError, match=r"^model: embed\.W_E was made under torch\.inference_mode"
    ):
        adapt(model)


def test_layers_that_share_their_values_are_refused() -> None:
    model = native()
    first, second = (block.attn.q._modules["_original_component"] for block in model.blocks)
    second.weight = first.weight
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.W_Q and blocks\.1\.attn\.W_Q share"):
        adapt(model)
    second.weight = nn.Parameter(first.weight.data)  # another parameter over the same memory
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.W_Q and blocks\.1\.attn\.W_Q share"):
        adapt(model)


def test_weights_that_are_computed_from_others_are_refused() -> None:
    model = native()
    linear = model.blocks[1].attn.v._modules["_original_component"]
    nn.utils.parametrizations.spectral_norm(linear)
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.v computes its weights from others"):
        adapt(model)


def test_a_layer_of_a_quantising_package_is_refused() -> None:
    model = native(attn_only=False)
    kind = type("QuantLinear", (nn.Linear,), {"__module__": "gptqmodel.nn_modules"})
    model.blocks[0].mlp._modules["in"]._modules["_original_component"] = kind(16, 24)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.fc_in is a QuantLinear of gptqmodel"):
        adapt(model)


def test_a_model_that_cannot_run_says_so() -> None:
    model = native()
    model.blocks[0].__dict__["forward"] = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ValueError, match=r"^model: it cannot be run on tokens \(ZeroDivisionError"):
        adapt(model)
