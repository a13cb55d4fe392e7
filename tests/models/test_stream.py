"""What attention reads and writes is found by measuring, against plain hooks and closed forms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lens_slt as ls
from lens_slt.models.adapter import adapt, copy_weights
from lens_slt.models.norms import norms_of
from lens_slt.models.stream import Stream
from tests.tiny_models import HF_SIZES, native, wrapped, wrapped_gemma2, wrapped_llama

LLAMA: dict[str, Any] = {**HF_SIZES, "intermediate_size": 24, "num_key_value_heads": 2}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1, 49, (4, 14), generator=torch.Generator().manual_seed(0))


def stream_of(model: nn.Module, tokens: Tensor) -> Stream:
    return Stream(adapt(model), tokens[:, :-1])


def granite() -> nn.Module:
    return wrapped(
        "GraniteForCausalLM", "GraniteConfig", **LLAMA, residual_multiplier=0.22,
        attention_multiplier=0.3, embedding_multiplier=3.0, logits_scaling=2.0,
    )  # fmt: skip


def olmo2() -> nn.Module:
    return wrapped("Olmo2ForCausalLM", "Olmo2Config", **LLAMA)


def losses(hf: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        scores = hf(tokens[:, :-1], use_cache=False).logits.log_softmax(-1)
    return -scores.gather(-1, tokens[:, 1:, None])[..., 0]


def test_a_multiplier_behind_the_heads_is_measured(tokens: Tensor) -> None:
    stream = stream_of(granite(), tokens)
    assert stream.factor(0) == pytest.approx(0.22, rel=1e-4)
    assert stream_of(wrapped_llama(), tokens).factor(1) == 1.0
    assert stream.logit_factor == pytest.approx(0.5, rel=1e-4)


def test_a_path_into_the_logits_of_granite_is_that_of_plain_hooks(tokens: Tensor) -> None:
    model = granite()
    hf, seen = copy.deepcopy(model.original_model), {}
    block = hf.model.layers[0]
    handle = block.self_attn.o_proj.register_forward_pre_hook(
        lambda module, inputs: seen.update(z=inputs[0].clone())
    )
    before = losses(hf, tokens)
    handle.remove()
    d_head = 4  # of head 1 of layer 0
    written = seen["z"][..., d_head : 2 * d_head] @ block.self_attn.o_proj.weight[:, 4:8].T
    handle = hf.model.norm.register_forward_pre_hook(
        lambda module, inputs: (inputs[0] - 0.22 * written,)
    )
    right = losses(hf, tokens) - before
    handle.remove()
    found = ls.ablate_path(model, tokens, "L0H1 -> logits", how="zero")["effect"].values
    assert float(right.abs().max()) > 0.01
    assert float((torch.tensor(found) - right).abs().max()) < 1e-4


@pytest.mark.parametrize("make", [olmo2, wrapped_gemma2])
def test_norms_behind_the_heads_are_refused_where_a_formula_needs_none(
    make: Any, tokens: Tensor
) -> None:
    model, mask = make(), torch.ones(4, 13, dtype=torch.bool)
    for call in (
        lambda: ls.ablate_path(model, tokens, "L0H1 -> logits"),
        lambda: ls.ablate_path(model, tokens, "L0H1 -> L1H1.V"),
        lambda: ls.edge_attribution(model, tokens, mask),
        lambda: ls.composition_scores(model),
    ):
        with pytest.raises(
            ValueError, match=r"norm (after|inside its) attention|norms on queries|norm of queries"
        ):
            call()
    scores = ls.behaviour_scores(model, n_random=2, length=4)
    assert scores["copying"].isnull().all()
    assert scores["induction"].isnull().all()
    assert scores["prefix_matching"].notnull().all()
    assert scores.attrs["why_no_writes"]
    ls.ablate(model, tokens, "L0H1")  # whole components can be


def test_the_norm_is_found_by_what_it_does(tokens: Tensor) -> None:
    stream = stream_of(native(attn_only=False), tokens)
    parts = stream.adapted.module.blocks[1]._modules
    stream.factor(1)  # everything that runs the model has run
    norm, parts["ln1"] = parts["ln1"], parts["ln2"]
    parts["other"] = norm
    assert stream.norm(1) is norm


def test_attention_without_a_norm_reads_the_stream_itself(tokens: Tensor) -> None:
    stream = stream_of(native(normalization_type=None), tokens)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stream.read(0, x), x)
    assert stream.final_norm is None


@pytest.mark.parametrize("kind", ["LN", "LNPre", "RMS"])
def test_scales_of_measured_norms_are_those_of_the_formula(kind: str) -> None:
    model = native(normalization_type=kind)
    norm = norms_of(model, 16)["blocks.0.ln1"]
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scale = norm.scale(x, norm.module(x))[..., 0]
    centred = x - x.mean(-1, keepdim=True) if kind.startswith("LN") else x
    expected = centred.square().mean(-1).add(1e-5).sqrt()
    ratio = scale / expected
    assert float((ratio / ratio.mean() - 1).abs().max()) < 1e-4


def test_a_stream_read_past_its_hook_is_noticed(tokens: Tensor) -> None:
    """Logits that take the embedding past the last residual stream."""
    model = native()
    w_u = copy_weights(adapt(model))["unembed.W_U"]
    kept: dict[str, Tensor] = {}
    model.add_hook("blocks.0.hook_resid_post", lambda x, hook: kept.update(x=x))
    model.add_hook("unembed.hook_out", lambda x, hook: x + kept["x"] @ w_u)
    with pytest.raises(ValueError, match="logits of .* are not a norm of the last residual stream"):
        _ = stream_of(model, tokens).final_norm
