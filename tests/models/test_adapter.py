"""The adapter against the model's own modules, for every architecture in tests/tiny_models.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from lens_slt.models import adapter, forward
from lens_slt.models.adapter import (
    AdaptedModel,
    adapt,
    copy_weights,
    forward_difference,
    model_logits,
    model_logits_from,
    model_resid_pre,
    trainable,
    weights_hash,
)
from tests.tiny_models import (
    GENERIC_MODELS,
    TINY_MODELS,
    has_hooked_transformer,
    hooked,
    native,
    wrapped_gpt2,
    wrapped_llama,
    wrapped_neox,
)

ALL_MODELS = {**TINY_MODELS, **GENERIC_MODELS}
WHY_GENERIC = {
    "hooked_soft_cap": "soft cap on attention scores",
    "hooked_alibi": "positional embedding 'alibi'",
    "hooked_qk_norm": "query and key norms",
    "hooked_local": "local attention windows",
    "native_logit_cap": "soft cap on logits",
    "native_rope_scaling": "rescaled rotary angles (linear)",
    "wrapped_mistral_window": "local attention windows",
    "wrapped_gemma2": "Gemma2ForCausalLM is not one of the architectures",
}


def needs_hooked(name: str) -> pytest.param:
    """A case that is skipped where TransformerLens has no HookedTransformer."""
    missing = name.startswith("hooked_") and not has_hooked_transformer()
    skip = pytest.mark.skipif(missing, reason="TransformerLens 4 has no HookedTransformer")
    return pytest.param(name, marks=skip)


fast = pytest.mark.parametrize("name", [needs_hooked(name) for name in TINY_MODELS])
generic = pytest.mark.parametrize("name", [needs_hooked(name) for name in GENERIC_MODELS])
every = pytest.mark.parametrize("name", [needs_hooked(name) for name in ALL_MODELS])
hooked_only = pytest.mark.skipif(
    not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer"
)


@cache
def adapted(name: str) -> AdaptedModel:
    return adapt(ALL_MODELS[name]())


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(49, (3, 20), generator=torch.Generator().manual_seed(5))


def logits_of(model: AdaptedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model_logits(model, tokens)


@fast
def test_forward_computes_the_models_logits(name: str, tokens: torch.Tensor) -> None:
    model = adapted(name)
    assert model.why_generic == ""
    weights = copy_weights(model)
    ours = forward.logits(model.architecture, weights, tokens)
    assert (ours - logits_of(model, tokens)).abs().max() < 1e-4
    assert forward_difference(model, weights, tokens) < 1e-4
    assert ("unembed.W_U" not in weights) == model.tied_embeddings


@fast
def test_writing_a_leaf_changes_the_model_as_it_changes_the_copy(
    name: str, tokens: torch.Tensor
) -> None:
    model = adapted(name)
    weights, before = copy_weights(model), logits_of(model, tokens)
    hash_before = weights_hash(model)
    generator = torch.Generator().manual_seed(7)
    for leaf_name, leaf in model.leaves.items():
        value = 0.3 * torch.randn(weights[leaf_name].shape, generator=generator)
        kept = leaf.parameter.data.clone()
        leaf.view(leaf.parameter.data).copy_(value)
        theirs = logits_of(model, tokens)
        leaf.parameter.data.copy_(kept)
        ours = forward.logits(model.architecture, {**weights, leaf_name: value}, tokens)
        assert (ours - theirs).abs().max() < 1e-4, leaf_name
        moved = float((theirs - before).abs().max())
        if leaf_name.endswith("attn.b_K") and model.positions in ("standard", "shortformer"):
            assert moved < 1e-4, leaf_name  # adds the same to every score of a query
        else:
            assert moved > 1e-3, leaf_name
    assert weights_hash(model) == hash_before


@fast
def test_gradients_of_the_leaves_are_those_of_forward(name: str, tokens: torch.Tensor) -> None:
    model = adapted(name)
    weight = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(3))
    with trainable(model):
        parameters = [leaf.parameter for leaf in model.leaves.values()]
        theirs = torch.autograd.grad((model_logits(model, tokens) * weight).sum(), parameters)
    copies = {key: value.requires_grad_() for key, value in copy_weights(model).items()}
    value = (forward.logits(model.architecture, copies, tokens) * weight).sum()
    ours = torch.autograd.grad(value, list(copies.values()))
    largest = max(float(gradient.norm()) for gradient in ours)
    for (leaf_name, leaf), own, their in zip(model.leaves.items(), ours, theirs, strict=True):
        error = float((leaf.view(their) - own).norm())
        assert error < 1e-4 * float(own.norm()) + 1e-6 * largest, leaf_name


@every
def test_later_blocks_on_the_residual_stream_give_the_models_logits(
    name: str, tokens: torch.Tensor
) -> None:
    model = adapted(name)
    whole = logits_of(model, tokens)
    for layer in range(model.n_layers):
        with torch.no_grad():
            resid = model_resid_pre(model, tokens, layer)
            again = model_logits_from(model, tokens, resid, layer)
        assert resid.shape == (3, 20, model.d_model)
        assert (again - whole).abs().max() < 1e-5


@every
def test_later_blocks_are_differentiable_and_earlier_ones_do_not_run(
    name: str, tokens: torch.Tensor
) -> None:
    model = adapted(name)
    last = model.n_layers - 1
    names = [n for n in model.leaves if n.startswith(f"blocks.{last}.")]
    later = [model.leaves[n].parameter for n in names]
    early = model.leaves["blocks.0.attn.W_Q"].parameter
    with trainable(model):
        resid = model_resid_pre(model, tokens, last).detach().requires_grad_()
        value = model_logits_from(model, tokens, resid, last).pow(2).sum()
        *part, by_resid, by_early = torch.autograd.grad(
            value, [*later, resid, early], allow_unused=True
        )
        whole = torch.autograd.grad(model_logits(model, tokens).pow(2).sum(), later)
    assert by_early is None
    assert by_resid is not None and by_resid.abs().max() > 0
    largest = max(float(gradient.norm()) for gradient in whole)
    for leaf_name, own, their in zip(names, part, whole, strict=True):
        error = float((own - their).norm())
        assert error < 1e-4 * float(their.norm()) + 1e-6 * largest, leaf_name


@every
def test_adapting_leaves_the_model_and_the_random_state_alone(
    name: str, tokens: torch.Tensor
) -> None:
    module = ALL_MODELS[name]()
    parameters = dict(nn.Module.named_parameters(module))
    frozen = list(parameters)[::2]
    for key in frozen:
        parameters[key].requires_grad_(False)
    values = {key: value.detach().clone() for key, value in parameters.items()}
    modes = [part.training for part in module.modules()]
    with torch.no_grad():
        module(tokens)  # a bridge wires hooks of its own at its first forward pass
    hooks = [(len(p._forward_hooks), len(p._forward_pre_hooks)) for p in module.modules()]
    state = torch.get_rng_state()
    model = adapt(module)
    with torch.no_grad():
        model_logits_from(model, tokens, model_resid_pre(model, tokens, 1), 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == modes
    assert not any("forward" in block.__dict__ for block in module.blocks)
    for key, value in nn.Module.named_parameters(module):
        assert torch.equal(value, values[key]), key
        assert value.grad is None, key
        assert value.requires_grad == (key not in frozen), key
    assert [(len(p._forward_hooks), len(p._forward_pre_hooks)) for p in module.modules()] == hooks


@pytest.mark.parametrize(
    "build",
    [
        lambda: native(n_layers=4, attn_only=False),
        lambda: wrapped_gpt2(n_layer=4),
        lambda: wrapped_neox(num_hidden_layers=4),
        lambda: wrapped_llama(num_hidden_layers=4),
    ],
)
def test_many_blocks_are_skipped_and_a_failure_leaves_no_trace(
    build: Callable[[], nn.Module], tokens: torch.Tensor
) -> None:
    model = adapt(build())
    whole = logits_of(model, tokens)
    with torch.no_grad():
        for layer in range(4):
            resid = model_resid_pre(model, tokens, layer)
            assert (model_logits_from(model, tokens, resid, layer) - whole).abs().max() < 1e-5
        with pytest.raises(RuntimeError):
            model_logits_from(model, tokens, torch.zeros(3, 20, model.d_model + 1), 3)
    assert not any("forward" in block.__dict__ for block in model.module.blocks)
    assert torch.equal(logits_of(model, tokens), whole)


def test_trainable_restores_the_flags_on_any_exit() -> None:
    module = native()
    module.blocks[0].attn.q.weight.requires_grad_(False)
    model = adapt(module)
    flags = {name: leaf.parameter.requires_grad for name, leaf in model.leaves.items()}
    assert not flags["blocks.0.attn.W_Q"] and flags["blocks.1.attn.W_Q"]
    with pytest.raises(KeyError), torch.no_grad(), trainable(model):  # noqa: PT012
        assert torch.is_grad_enabled()
        assert all(leaf.parameter.requires_grad for leaf in model.leaves.values())
        raise KeyError
    assert {n: leaf.parameter.requires_grad for n, leaf in model.leaves.items()} == flags


@generic
def test_generic_models_say_why(name: str, tokens: torch.Tensor) -> None:
    model = adapted(name)
    assert model.architecture is None
    assert WHY_GENERIC[name] in model.why_generic
    with pytest.raises(ValueError, match="no fast path"):
        forward_difference(model, copy_weights(model), tokens)


@every
def test_canonical_layout_is_transformer_lens_own(name: str) -> None:
    model = adapted(name)
    weights, attn = copy_weights(model), model.module.blocks[1].attn
    assert torch.equal(weights["blocks.1.attn.W_Q"], attn.W_Q.detach())
    assert torch.equal(weights["blocks.1.attn.W_O"], attn.W_O.detach())
    per_group = model.n_heads // model.n_key_value_heads
    for part in ("W_K", "W_V"):
        theirs = getattr(attn, part).detach()
        ours = weights[f"blocks.1.attn.{part}"]
        assert ours.shape[0] == model.n_key_value_heads
        if theirs.shape[0] != ours.shape[0]:
            ours = ours.repeat_interleave(per_group, dim=0)
        assert torch.equal(ours, theirs), part
    assert all(value.is_contiguous() for value in weights.values())
    assert {key: value.shape for key, value in weights.items()} == model.shapes


def test_gpt2_keeps_one_matrix_for_embedding_and_unembedding() -> None:
    model = adapted("wrapped_gpt2")
    assert model.tied_embeddings and "unembed.W_U" not in model.leaves
    module = model.module
    assert module.embed.weight is module.unembed.weight
    assert len(model.leaves) == 2 + 2 * 16 + 2  # without the zero b_U that the bridge invents


def test_position_rows_that_opt_skips_are_not_part_of_w_pos() -> None:
    model = adapted("wrapped_opt")
    leaf = model.leaves["pos_embed.W_pos"]
    assert leaf.parameter.shape[0] == model.n_ctx + 2
    assert model.shapes["pos_embed.W_pos"] == (model.n_ctx, model.d_model)


def test_weights_hash_sees_one_changed_entry_and_nothing_else() -> None:
    model, twin = adapt(native()), adapt(native())
    assert weights_hash(model) == weights_hash(twin)
    leaf = twin.leaves["blocks.1.attn.W_V"]
    leaf.view(leaf.parameter.data)[2, 3, 1] += 1e-6
    assert weights_hash(model) != weights_hash(twin)


def test_the_row_of_the_padding_token_does_not_count_as_a_disagreement() -> None:
    # torch drops the gradient of an embedding's padding row, forward.logits does not
    model = adapted("wrapped_opt")
    assert model.why_generic == ""
    padding = model.module.embed._modules["_original_component"].padding_idx
    assert padding == 49
    assert 49 not in adapter.random_tokens(model)


@hooked_only
def test_a_formula_that_is_wrong_only_for_moved_biases_is_caught() -> None:
    module = hooked(attn_only=False, gated_mlp=True, act_fn="silu")
    with torch.no_grad():
        for block in module.blocks:
            block.mlp.b_in.zero_()
    model = adapt(module)
    wrong = replace(model.architecture, gated_bias_after_product=False)
    tokens = adapter.random_tokens(model)
    blind = replace(model, architecture=wrong)
    assert forward_difference(blind, copy_weights(model), tokens) < 1e-4
    why = adapter._disagreement(model, wrong, adapter._model_gradients(model))
    assert "gradient of blocks.0.mlp.b_in differs" in why


def test_a_wrong_rotary_base_is_caught_and_named() -> None:
    model = adapted("wrapped_llama")
    wrong = replace(model.architecture, rotary_base=100.0)
    why = adapter._disagreement(model, wrong, adapter._model_gradients(model))
    assert "log-probabilities differ by" in why


def test_a_tiny_initialisation_cannot_hide_a_wrong_attention_scale() -> None:
    module = native()
    with torch.no_grad():
        for name, parameter in nn.Module.named_parameters(module):
            if "ln" not in name:
                parameter.mul_(0.05)  # as at the start of training
    model = adapt(module)
    assert model.why_generic == ""
    wrong = replace(model.architecture, attn_scale=4.0)
    why = adapter._disagreement(model, wrong, adapter._model_gradients(model))
    assert "differ" in why


def test_double_precision_models_are_compared_in_double_precision(tokens: torch.Tensor) -> None:
    module = native(attn_only=False).double()
    model = adapt(module)
    assert model.dtype == torch.float64 and model.why_generic == ""
    assert forward_difference(model, copy_weights(model), tokens) < 1e-12
