"""Attention patterns as shown, against the model's own."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.report.attention import show_attention
from tests.tiny_models import GENERIC_MODELS, TINY_MODELS, has_hooked_transformer, native

BACKENDS = ["hooked", "bridge"] if has_hooked_transformer() else ["bridge"]
MODELS = [
    "hooked_gqa", "native_gqa", "native_rotary", "wrapped_gpt2", "wrapped_neox", "wrapped_llama",
    "wrapped_opt", "hooked_soft_cap", "hooked_local", "wrapped_gemma2",
]  # fmt: skip


def usable(names):
    return [n for n in names if has_hooked_transformer() or not n.startswith("hooked_")]


def some_tokens(n: int = 2, length: int = 10) -> torch.Tensor:
    return torch.randint(1, 49, (n, length), generator=torch.Generator().manual_seed(0))


def shown(html) -> dict:
    """What CircuitsVis is given: names of heads, tokens, patterns [head, query, key]."""
    found = json.loads(
        re.search(r"AttentionHeads,\s*(\{.*\})\s*\)\s*</script>", str(html), re.S)[1]
    )
    return found | {"attention": np.array(found["attention"])}


def seen_by_hooks(model, tokens, layer: int) -> np.ndarray:
    """The model's own pattern [head, query, key]."""
    kept = []
    hook = (f"blocks.{layer}.attn.hook_pattern", lambda pattern, hook: kept.append(pattern))
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[hook], return_type="logits")
    return kept[0][0].numpy()


@pytest.mark.parametrize("name", usable(MODELS))
def test_what_is_shown_is_the_models_own_pattern(name):
    model = {**TINY_MODELS, **GENERIC_MODELS}[name]()
    tokens = some_tokens()
    found = shown(show_attention(model, tokens, ["L1H3", "L0H0"], sequence=1))
    assert found["attentionHeadNames"] == ["L1H3", "L0H0"]
    assert found["tokens"] == [str(token) for token in tokens[1].tolist()]  # no tokenizer
    assert (found["minValue"], found["maxValue"]) == (0, 1)
    attention = found["attention"]
    assert attention.shape == (2, 10, 10)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-4)
    assert (attention[:, *np.triu_indices(10, 1)] == 0).all()
    if name != "wrapped_opt":  # shows no pattern
        for place, (layer, head) in enumerate([(1, 3), (0, 0)]):
            own = seen_by_hooks(model, tokens[1:], layer)[head]
            np.testing.assert_allclose(attention[place], own, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shipped_model_shows_its_words(backend):
    model = ls.load_model("attn-2l", backend=backend)
    tokens = model.to_tokens("def f(x):\n    return f(")
    found = shown(show_attention(model, tokens, "L0H2, L1H*"))
    assert found["attentionHeadNames"] == ["L0H2", *(f"L1H{i}" for i in range(8))]
    assert found["tokens"][:3] == ["<|bos|>", "def", " f"]
    assert "".join(found["tokens"][1:]) == "def f(x):⏎    return f("
    previous = np.diagonal(found["attention"][0], -1)
    assert previous.min() > 0.9  # L0H2 looks one token back


def test_all_heads_by_default_and_no_padding():
    model, tokens = native(), some_tokens()
    tokens[0, 6:] = 49
    found = shown(show_attention(model, tokens, pad_id=49))
    assert found["attentionHeadNames"] == [f"L{i}H{j}" for i in range(2) for j in range(4)]
    assert found["attention"].shape == (8, 6, 6)
    whole = shown(show_attention(model, tokens, pad_id=-1))
    np.testing.assert_array_equal(whole["attention"][:, :6, :6], found["attention"])


def test_a_notebook_can_show_it():
    html = show_attention(native(), some_tokens(), "L0H0")
    assert "L0H0" in html.local_src and "CircuitsVis.render" in html.local_src


def test_the_tokenizer_can_be_given():
    class Upper:
        def decode(self, ids):
            return f"<{ids[0]}>\n"

    found = shown(show_attention(native(), [[3, 4]], "L0H0", tokenizer=Upper()))
    assert found["tokens"] == ["<3>⏎", "<4>⏎"]
    with pytest.raises(TypeError, match="tokenizer must have a decode method; got str"):
        show_attention(native(), [[3, 4]], "L0H0", tokenizer="gpt2")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_model_comes_back_as_it_was(backend):
    model = ls.load_model("attn-1l", backend=backend).train()
    calls = []
    model.blocks[0].attn.hook_z.add_hook(lambda z, hook: calls.append(1) or z, is_permanent=True)
    before = weights_hash(adapt(model))
    states = torch.get_rng_state(), random.getstate()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    show_attention(model, [[1, 2, 3]], "L0H0")
    assert weights_hash(adapt(model)) == before
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert model.training and torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())
    calls.clear()
    model(torch.tensor([[1, 2, 3]]), return_type="logits")
    assert calls == [1]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ("L1H9", "heads: 'L1H9' does not exist: .* 4 heads each; did you mean 'L1H3'"),
        ("l1h2", "heads: 'l1h2' is not a component.*did you mean 'L1H2'"),
        ("L1", "heads: 'L1' is not one head.*did you mean 'L1H\\*'"),
        ("L0H0+L0H1", "heads: 'L0H0\\+L0H1' is not one head.*'L0H\\*'"),
        ("unembed", "heads: 'unembed' is not one head.*'L1H\\*'"),
        ([], "heads: \\[\\] names no component"),
        ("L0H0, L0H*", "heads: 'L0H0' is named twice"),
    ],
)
def test_wrong_heads(heads, message):
    with pytest.raises(ValueError, match=message):
        show_attention(native(), some_tokens(), heads)


def test_wrong_tokens():
    model = native()
    with pytest.raises(ValueError, match="sequence must be an integer from 0 to 1 .*; got 2"):
        show_attention(model, some_tokens(), sequence=2)
    with pytest.raises(ValueError, match="sequence must be an integer from 0 to 1 .*; got True"):
        show_attention(model, some_tokens(), sequence=True)
    with pytest.raises(ValueError, match="two dimensions"):
        show_attention(model, [1, 2, 3])
    with pytest.raises(ValueError, match=r"token ids must lie between 0 and 49"):
        show_attention(model, [[1, 50]])
    with pytest.raises(TypeError, match="heads must be a string or a list of strings; got 3"):
        show_attention(model, some_tokens(), 3)
    with pytest.raises(TypeError, match="HookedTransformer or TransformerBridge|model"):
        show_attention(object(), some_tokens())


def test_patterns_as_numbers_are_the_models_own():
    model, tokens = native(), some_tokens(3)
    tokens[1, 7:] = 49
    found = ls.attention_patterns(model, tokens, "L1H*, L0H2", pad_id=49)
    assert found["component"].values.tolist() == ["L1H0", "L1H1", "L1H2", "L1H3", "L0H2"]
    own = seen_by_hooks(model, tokens[:1], 1)
    np.testing.assert_allclose(found["attention"].values[:4, 0], own, atol=1e-6)
    assert found["attention"].isel(sequence=1, query=slice(7, None)).isnull().all()
    assert (
        not found["attention"].isel(sequence=1, query=slice(0, 7), key=slice(0, 7)).isnull().any()
    )
    back = ls.plot(found).data[0]
    assert len(back.y) == 5 and 0 <= min(back.z[0]) <= max(back.z[0]) <= 1


def test_rows_padded_on_the_left_keep_their_columns():
    model, tokens = native(), some_tokens(3)
    tokens[1, :3] = 49
    found = ls.attention_patterns(model, tokens, "L1H2", pad_id=49)
    own = seen_by_hooks(model, tokens[1:2, 3:], 1)[2]
    attention = found["attention"].values[0, 1]
    np.testing.assert_allclose(attention[3:, 3:], own, atol=1e-6)
    assert np.isnan(attention[:3]).all() and np.isnan(attention[3:, :3]).all()
    assert found["token_id"].values[1, 3:].tolist() == tokens[1, 3:].tolist()
