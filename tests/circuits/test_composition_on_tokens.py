"""Composition on tokens against finite differences through plain hooks, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import lens_slt as ls
from lens_slt.circuits.composition_on_tokens import compositions_on_tokens
from tests.tiny_models import GENERIC_MODELS, TINY_MODELS, has_hooked_transformer, native

NAMES = ["hooked_gqa", "hooked_mlp", "native_gqa", "native_mlp", "wrapped_llama", "wrapped_neox"]
USABLE = [n for n in NAMES if has_hooked_transformer() or not n.startswith("hooked_")]
STEP = 1e-2


def some_tokens(model, n=6, length=10):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.cfg.d_vocab, (n, length), generator=generator)


def seen(model, inputs, hooks=()):
    """Values at all hooks of a plain pass with hooks."""
    kept = {}
    parts = [f"blocks.{i}.attn.hook_{part}" for i in (0, 1) for part in ("q", "k", "v", "z")]
    names = [*parts, "blocks.1.attn.hook_pattern", "blocks.0.hook_resid_pre"]
    names.append("blocks.1.hook_resid_pre")
    keep = [
        (name, lambda value, hook, name=name: kept.__setitem__(name, value.clone()))
        for name in names
    ]
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        model.run_with_hooks(inputs, fwd_hooks=keep)
    return kept


def own_norm(model, layer, x):
    """The norm before attention, whatever it is called in a model's own code."""
    with torch.no_grad():
        return model.blocks[layer].ln1(x)


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("through", ["Q", "K", "V"])
def test_shares_are_slopes_of_what_heads_do(name, through):
    """Adding a little of what a source brings moves scores and outputs in a straight line."""
    model = TINY_MODELS[name]()
    tokens = some_tokens(model)
    inputs, n = tokens[:, :-1], model.cfg.n_heads
    where = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    found = ls.composition_on_tokens(model, tokens, where.numpy())
    clean = seen(model, inputs)
    (source, target), layer = (1, 2 % n), 1
    z = clean["blocks.0.attn.hook_z"]
    w_o = model.blocks[0].attn.W_O[source].detach()
    moved = (z - z.mean(0))[:, :, source] @ w_o
    resid = clean["blocks.1.hook_resid_pre"]
    change = own_norm(model, 1, resid) - own_norm(model, 1, resid - moved)
    weight = getattr(model.blocks[1].attn, f"W_{through}").detach()
    target_weight = weight[target * len(weight) // n]
    part = change @ target_weight
    place = f"blocks.1.attn.hook_{through.lower()}"
    own = target * clean[place].shape[2] // n

    def added(size):
        def hook(value, hook):
            value = value.clone()
            value[:, :, own] += size * part
            return value

        return seen(model, inputs, [(place, hook)])

    chosen = where[:, None, :, None]
    if through == "V":
        w_out = model.blocks[layer].attn.W_O[target].detach()
        out = clean["blocks.1.attn.hook_z"][:, :, target] @ w_out
        apart = (out - out.mean(0)) * where[:, :, None]
        whole = float((apart**2).sum())
        ends = [
            float((added(x)["blocks.1.attn.hook_z"][:, :, target] @ w_out * apart).sum())
            for x in (STEP, -STEP)
        ]
    else:
        pattern = clean["blocks.1.attn.hook_pattern"]
        allowed = torch.ones_like(pattern[0, 0]).tril()
        weights = (pattern - allowed / allowed.sum(-1, keepdim=True)) * chosen
        logs = (
            (weights * added(x)["blocks.1.attn.hook_pattern"].clamp(min=1e-30).log())[:, target]
            for x in (STEP, -STEP)
        )
        ends = [float(x.sum()) for x in logs]
        whole = float((weights * pattern.clamp(min=1e-30).log())[:, target].sum())
        drive = float(found["drive"].sel(target=f"L1H{target}"))
        assert drive == pytest.approx(whole / int(where.sum()), rel=1e-3)
    share = (ends[0] - ends[1]) / (2 * STEP) / whole
    got = found["share"].sel(source=f"L0H{source}", target=f"L1H{target}", through=through)
    if through != "V" and drive < 0.3:
        assert np.isnan(float(got))
    else:
        assert float(got) == pytest.approx(share, abs=2e-3 * max(1, abs(share)))


@pytest.mark.parametrize("name", [n for n in USABLE if "mlp" in n or n == "wrapped_llama"])
def test_shares_of_what_an_mlp_writes(name):
    model = TINY_MODELS[name]()
    tokens = some_tokens(model)
    found = ls.composition_on_tokens(model, tokens)["share"]
    kept, block = {}, model.blocks[1]
    names = ["blocks.0.attn.hook_z", "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"]
    keep = [(n, lambda value, hook, n=n: kept.__setitem__(n, value.clone())) for n in names]
    with torch.no_grad():
        model.run_with_hooks(tokens[:, :-1], fwd_hooks=keep)
        z, resid, out = (kept[n] for n in names)
        moved = (z - z.mean(0))[:, :, 1] @ model.blocks[0].attn.W_O[1]
        x = block.ln2(resid)
        change, apart = x - block.ln2(resid - moved), out - out.mean(0)
        ends = [float((block.mlp(x + size * change) * apart).sum()) for size in (STEP, -STEP)]
    share = (ends[0] - ends[1]) / (2 * STEP) / float((apart**2).sum())
    assert float(found.sel(source="L0H1", target="L1MLP", through="")) == pytest.approx(
        share, abs=2e-3
    )


def test_attention_so_sharp_that_it_is_zero_elsewhere():
    """Its scores are read off queries and keys, not off the attention that lost them."""
    model = native()
    with torch.no_grad():
        model.blocks[1].attn.q.weight *= 100
    tokens = some_tokens(model)
    found = ls.composition_on_tokens(model, tokens)
    clean = seen(model, tokens[:, :-1])
    q, k = (clean[f"blocks.1.attn.hook_{part}"].double().transpose(1, 2) for part in "qk")
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    attention = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    assert float((attention.float() == 0)[..., ~hidden].double().mean()) > 0.01
    weight = attention - (~hidden) / (~hidden).sum(-1, keepdim=True)
    drive = (weight * scores.masked_fill(hidden, 0)).sum((0, 2, 3)) / (6 * 9)
    for head, one in enumerate(drive):
        got = float(found["drive"].sel(target=f"L1H{head}"))
        assert np.isnan(got) or got == pytest.approx(float(one), rel=1e-3)
    # Where the scores are lost, nothing is said; where they are not, all of it is right.
    assert float(found["drive"].max()) > 100 or bool(found["drive"].isnull().all())


@pytest.mark.parametrize("name", USABLE)
def test_several_places_at_once_are_each_alone(name):
    """Passes are shared, numbers are not: sequences that one set of positions leaves out, too."""
    model = TINY_MODELS[name]()
    tokens = some_tokens(model)
    some = torch.rand(2, 6, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    some[1, :3] = False
    wheres = [None, *some.numpy()]
    for where, found in zip(wheres, compositions_on_tokens(model, tokens, wheres), strict=True):
        alone = ls.composition_on_tokens(model, tokens, where)
        xr.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
        assert found.attrs == alone.attrs
    with pytest.raises(ValueError, match="pattern is false everywhere"):
        compositions_on_tokens(model, tokens, [None, some[1].numpy() & False])


def test_attention_so_sharp_that_noise_in_queries_changes_nothing():
    """It was taken for a model that does not read its queries."""
    model = native()
    attention = model.blocks[1].attn
    one_way = torch.zeros(model.cfg.n_heads, model.cfg.d_head)
    one_way[:, 2] = 1e3
    with torch.no_grad():
        attention.k.weight *= one_way.flatten()[:, None]
        attention.k.bias.zero_()
        attention.q.weight.zero_()
        attention.q.bias.copy_(one_way.flatten())
    assert ls.composition_on_tokens(model, some_tokens(model))["share"].notnull().any()


def test_one_sequence_has_no_error():
    model = native()
    where = np.zeros((6, 9), bool)
    where[2, 3:] = True
    found = ls.composition_on_tokens(model, some_tokens(model), where)
    assert bool(found["se"].isnull().all())
    assert bool(found["share"].notnull().any())


def test_all_that_varies_is_shared_out():
    """Without a norm the parts of heads and embedding add up to the whole, for values."""
    model = native(normalization_type=None)
    tokens = some_tokens(model, 8)
    found = ls.composition_on_tokens(model, tokens)
    clean = seen(model, tokens[:, :-1])
    embedded = clean["blocks.0.hook_resid_pre"]
    embedded = embedded - embedded.mean(0)
    weights = model.blocks[1].attn
    for head in range(model.cfg.n_heads):
        w_out = weights.W_O[head].detach()
        out = clean["blocks.1.attn.hook_z"][:, :, head] @ w_out
        apart = out - out.mean(0)
        pattern = clean["blocks.1.attn.hook_pattern"][:, head]
        of_embedding = pattern @ (embedded @ weights.W_V[head].detach()) @ w_out
        rest = float((of_embedding * apart).sum() / (apart**2).sum())
        # What attention does with the part that is the same in every sequence.
        same = clean["blocks.1.hook_resid_pre"].mean(0) @ weights.W_V[head].detach()
        bias = weights.b_V[head].detach()
        rest += float(((pattern @ (same + bias) @ w_out) * apart).sum() / (apart**2).sum())
        heads = [f"L0H{i}" for i in range(model.cfg.n_heads)]
        mine = float(found["share"].sel(source=heads, target=f"L1H{head}", through="V").sum())
        assert mine + rest == pytest.approx(1, abs=1e-3)


def test_planted_edges_drive_their_heads():
    """Also one whose weights are no larger than those of a pair that composes without effect."""
    p = ls.plant("induction", seed=0, n_sequences=32)
    where = p.patterns.sel(pattern=p.pattern).values
    share = ls.composition_on_tokens(p.model, p.tokens, where)["share"]
    [edge] = p.truth.edges
    into = share.sel(target=edge.target, through=edge.through).dropna("source")
    assert float(into.sel(source=edge.source)) > 0.8
    assert float(into.drop_sel(source=edge.source).max()) < 0.1


def test_errors_of_shares_are_those_of_sequences():
    model = native()
    found = [
        ls.composition_on_tokens(model, some_tokens(model, 400)[i : i + 20])
        for i in range(0, 400, 20)
    ]
    shares = np.stack([one["share"].sel(through="V").values for one in found])
    errors = np.stack([one["se"].sel(through="V").values for one in found])
    there = np.isfinite(shares[0])
    spread = shares[:, there].std(0, ddof=1)
    assert np.median(errors[:, there].mean(0) / spread) == pytest.approx(1, abs=0.25)


def test_what_no_share_can_be_told_of():
    model = native()
    tokens = some_tokens(model)
    with pytest.raises(
        ValueError, match=r"pattern must be bool \[6, 9\], \[sequence, position - 1\]"
    ):
        ls.composition_on_tokens(model, tokens, np.ones((6, 10), bool))
    with pytest.raises(ValueError, match="pattern is false everywhere"):
        ls.composition_on_tokens(model, tokens, np.zeros((6, 9), bool))
    with pytest.raises(ValueError, match="tokens must have at least 2 sequences; got 1"):
        ls.composition_on_tokens(model, tokens[:1])
    with pytest.raises(ValueError, match="norm"):
        ls.composition_on_tokens(GENERIC_MODELS["wrapped_gemma2"](), tokens)


def test_the_model_comes_back_as_it_was():
    model = native(attn_only=False)
    tokens = some_tokens(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ls.composition_on_tokens(model, tokens)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
