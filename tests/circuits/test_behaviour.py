"""Scores of heads against TransformerLens's detectors, caches read by hand, and dense matrices."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from transformer_lens.head_detector import detect_head

import lens_slt as ls
from lens_slt.circuits.attention import attention_pattern
from lens_slt.circuits.behaviour import (
    ATTENTION,
    DIRECT,
    TYPES,
    _multigrams,
    _random_tokens,
    _Sums,
    behaviour_scores,
)
from lens_slt.models.adapter import adapt, copy_weights, weights_hash
from tests.tiny_models import TINY_MODELS, has_hooked_transformer, native, wrapped_opt

BACKENDS = ["hooked", "bridge"] if has_hooked_transformer() else ["bridge"]
TEXT = "def add(first, second):\n    return add(first) + add(second)\n"


def usable(names):
    return [n for n in names if has_hooked_transformer() or not n.startswith("hooked_")]


def some_tokens(n: int = 4, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 49, (n, length), generator=torch.Generator().manual_seed(seed))


def seen_by_hooks(model, tokens, names):
    kept = {}

    def keep(name):
        def hook(value, hook):
            kept[name] = value.detach()

        return hook

    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[(n, keep(n)) for n in names], return_type="logits")
    return kept


@cache
def shipped(name: str, backend: str):
    model = ls.load_model(name, backend=backend)
    tokens = ls.load_tokens("mix", n_sequences=64, length=96, seed=5)
    return behaviour_scores(model, tokens, n_random=8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_previous_token_is_what_transformer_lens_detects(backend):
    model = ls.load_model("attn-2l", backend=backend)
    tokens = model.to_tokens(TEXT)
    theirs = detect_head(model, TEXT, "previous_token_head").flatten().numpy()
    found = behaviour_scores(model, tokens, n_random=2)
    n = tokens.shape[1]  # its mean is over all positions, the first included
    np.testing.assert_allclose(found["previous_token"] * (n - 1) / n, theirs, atol=1e-5)
    assert found["previous_token_se"].isnull().all()  # there is one sequence


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_induction_circuit_of_the_shipped_model(backend):
    found = shipped("attn-2l", backend).set_coords("head_type")
    assert found.attrs["text"] == "tokens" and found.attrs["n_ngram"] > 100
    assert found["component"].values[np.argmax(found["previous_token"].values)] == "L0H2"
    assert found["component"].values[np.argmax(found["prefix_matching"].values)] == "L1H2"
    previous, induction = found.sel(component="L0H2"), found.sel(component="L1H2")
    assert float(previous["previous_token"]) > 0.99
    assert previous["head_type"] == "previous token"
    assert float(induction["prefix_matching"]) == pytest.approx(0.916, abs=0.02)
    assert float(induction["induction"]) > 10 > float(found["induction"].sel(component="L1H3"))
    assert induction["head_type"] == "induction"
    assert float(found["copying"].sel(component="L0H2")) < 0 < float(induction["copying"])
    assert set(found["head_type"].values) <= set(TYPES)
    assert (found["prefix_matching_se"] < 0.02).all()


@pytest.mark.parametrize("seed", [1, 2])
def test_every_shipped_model_has_a_head_of_either_kind(seed):
    types = shipped(f"attn-2l-seed{seed}", "auto")["head_type"].values
    assert list(types[:8]).count("previous token") == 1
    assert list(types[8:]).count("induction") == 3 and "induction" not in types[:8]


def test_backends_agree():
    if len(BACKENDS) > 1:
        one, other = (shipped("attn-2l", backend) for backend in BACKENDS)
        for name in (*ATTENTION, *DIRECT, "copying"):
            np.testing.assert_allclose(one[name], other[name], atol=2e-3)


@pytest.mark.parametrize("name", usable(["hooked_gqa", "native_mlp", "wrapped_neox"]))
def test_attention_is_that_of_the_right_positions(name):
    model = TINY_MODELS[name]()
    found = behaviour_scores(model, n_random=3, length=6, seed=4)
    tokens = _random_tokens(adapt(model), 3, 6, 4)
    assert tokens.shape == (3, 12)  # these models have no tokenizer, so no BOS
    assert (tokens[:, :6] == tokens[:, 6:]).all()
    assert all(row.unique().numel() == 6 for row in tokens)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(2)]
    kept = seen_by_hooks(model, tokens, names)
    pattern = torch.cat([kept[n].transpose(0, 1) for n in names])  # [head, sequence, query, key]
    again, first = range(6, 12), range(1, 6)
    expected = {
        "prefix_matching": [pattern[:, :, q, q - 5] for q in again],
        "duplicate_token": [pattern[:, :, q, q - 6] for q in again],
    }
    half = seen_by_hooks(model, tokens[:, :6], names)
    pattern = torch.cat([half[n].transpose(0, 1) for n in names])
    expected["previous_token"] = [pattern[:, :, q, q - 1] for q in first]
    expected["current_token"] = [pattern[:, :, q, q] for q in first]
    expected["first_token"] = [pattern[:, :, q, 0] for q in first]
    for score, parts in expected.items():
        by_sequence = torch.stack(parts).mean(0)
        np.testing.assert_allclose(found[score], by_sequence.mean(1), atol=1e-6)
        se = by_sequence.std(1) / 3**0.5
        np.testing.assert_allclose(found[f"{score}_se"], se, atol=1e-6)
    assert found["ngram"].isnull().all() and found["skip_gram_se"].isnull().all()


@pytest.mark.parametrize(
    "name",
    usable(["hooked_attn_only", "hooked_lnpre", "hooked_rms", "native_no_norm", "wrapped_llama"]),
)
def test_direct_contributions_are_those_of_the_frozen_norm(name):
    """Computed again from the norm's formula and the canonical weights."""
    model = TINY_MODELS[name]()
    adapted = adapt(model)
    weights, arch = copy_weights(adapted), adapted.architecture
    found = behaviour_scores(model, n_random=3, length=6)
    tokens = _random_tokens(adapted, 3, 6, 0)
    kept = seen_by_hooks(
        model, tokens, [*(f"blocks.{i}.attn.hook_z" for i in range(2)), "blocks.1.hook_resid_post"]
    )
    final = kept["blocks.1.hook_resid_post"]
    centred = str(arch.final_norm).startswith("LN")
    final = final - final.mean(-1, keepdim=True) if centred else final
    size = (final.pow(2).mean(-1, keepdim=True) + arch.norm_eps).sqrt()
    size = torch.ones_like(size) if arch.final_norm is None else size
    logits = weights.get("unembed.W_U", weights["embed.W_E"].T)
    expected = []
    for layer in range(2):
        for head in range(4):
            out = kept[f"blocks.{layer}.attn.hook_z"][:, :, head]
            out = out @ weights[f"blocks.{layer}.attn.W_O"][head]
            out = out - out.mean(-1, keepdim=True) if centred else out
            all_logits = out / size * weights.get("ln_final.w", torch.ones(out.shape[-1])) @ logits
            own = all_logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
            contribution = own - all_logits[:, :-1].mean(-1)
            expected.append(float(contribution[:, 6:].mean()))  # predictions of the second half
    np.testing.assert_allclose(found["induction"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name", usable(["hooked_gqa", "native_rotary", "wrapped_neox", "wrapped_llama"])
)
def test_the_pattern_that_stands_in_is_the_models_own(name):
    model = TINY_MODELS[name]()
    parts = [f"blocks.1.attn.hook_{part}" for part in ("q", "k", "pattern")]
    kept = seen_by_hooks(model, some_tokens(), parts)
    q, k, pattern = (kept[part] for part in parts)
    torch.testing.assert_close(attention_pattern(adapt(model), q, k), pattern, atol=1e-5, rtol=1e-4)


def test_a_model_that_hides_its_attention_has_scores_too():
    found = behaviour_scores(wrapped_opt(), some_tokens(), n_random=2)
    total = found["previous_token"] + found["current_token"]
    assert (total > 0).all() and (total < 1).all()


def test_copying_is_that_of_the_dense_matrix():
    model = native(normalization_type=None)
    w = {name: value.double().numpy() for name, value in copy_weights(adapt(model)).items()}
    w_u = w["unembed.W_U"] - w["unembed.W_U"].mean(-1, keepdims=True)
    found = behaviour_scores(model, n_random=2)["copying"].values
    for i, (layer, head) in enumerate((layer, head) for layer in range(2) for head in range(4)):
        w_v, w_o = (w[f"blocks.{layer}.attn.W_{part}"][head] for part in "VO")
        values = np.linalg.eigvals(w["embed.W_E"] @ w_v @ w_o @ w_u)
        assert found[i] == pytest.approx(values.sum().real / np.abs(values).sum(), abs=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_head_that_copies(sign):
    model = native(n_heads=1, d_head=16, normalization_type=None)
    leaves = adapt(model).leaves
    with torch.no_grad():
        embedding = leaves["embed.W_E"].parameter
        leaves["unembed.W_U"].view(leaves["unembed.W_U"].parameter).copy_(embedding.T)
        for name, value in (("W_V", 1), ("W_O", sign)):
            leaf = leaves[f"blocks.1.attn.{name}"]
            leaf.view(leaf.parameter)[0] = value * torch.eye(16)
    copying = behaviour_scores(model, n_random=2)["copying"].sel(component="L1H0")
    # Not quite one: centring the unembedding makes the matrix a little unsymmetric.
    assert sign * float(copying) > 0.97


def test_multigrams_leave_out_what_the_sequence_repeats():
    """Five sequences say 7 8 9 once; the last says it twice."""
    tokens = some_tokens(5, 30, seed=2) % 40 + 10
    tokens[:, 3:6] = torch.tensor([7, 8, 9])
    tokens[4, 20:23] = torch.tensor([7, 8, 9])
    real = torch.ones_like(tokens, dtype=torch.bool)
    found = _multigrams(adapt(native()), tokens, real)
    assert found["ngram"].nonzero().tolist() == [[i, 4] for i in range(5)]
    assert not (found["ngram"] & found["skip_gram"]).any()


def test_standard_errors_treat_sequences_as_the_unit():
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 9, size=400)
    total = np.stack([generator.normal(counts * 2.0, 0.5), counts * 3.0])
    mean, se = _Sums(total, counts.astype(float)).mean()
    np.testing.assert_allclose(mean, [2, 3], atol=0.02)
    assert se[1] == pytest.approx(0, abs=1e-12)
    assert se[0] == pytest.approx(0.5 * 20 / counts.sum(), rel=0.1)
    assert np.isnan(_Sums(total, counts * 0.0).mean()[0]).all()


def test_padding_does_not_count():
    model, tokens = native(), some_tokens()
    padded = torch.cat([tokens, torch.full((4, 5), 49)], dim=1)
    plain = behaviour_scores(model, tokens, n_random=2)
    with_padding = behaviour_scores(model, padded, n_random=2, pad_id=49)
    for name in (*ATTENTION, *DIRECT, "written_share"):
        np.testing.assert_allclose(with_padding[name], plain[name], atol=1e-5)


@pytest.mark.parametrize("name", usable(["hooked_attn_only", "native_mlp", "wrapped_gpt2"]))
def test_the_model_is_untouched(name):
    model, tokens = TINY_MODELS[name](), some_tokens()
    seen = []
    dict(model.hook_dict)["blocks.0.attn.hook_z"].add_hook(lambda value, hook: seen.append(1))
    next(model.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    hooks = {n: len(m._forward_hooks) for n, m in model.named_modules()}
    before, state = weights_hash(adapt(model)), torch.get_rng_state()
    first = behaviour_scores(model, tokens, n_random=2, seed=1)
    assert weights_hash(adapt(model)) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert {n: len(m._forward_hooks) for n, m in model.named_modules()} == hooks
    seen.clear()
    model(tokens)
    assert seen, "the caller's hook is still there"
    assert behaviour_scores(model, tokens, n_random=2, seed=1).identical(first)
    other = behaviour_scores(model, tokens, n_random=2, seed=2)
    assert not other["prefix_matching"].equals(first["prefix_matching"])
    assert other["previous_token"].equals(first["previous_token"])


def test_bad_arguments_are_named():
    model = native()
    with pytest.raises(ValueError, match="n_random must be an integer of at least 2; got 1"):
        behaviour_scores(model, n_random=1)
    with pytest.raises(ValueError, match="seed must be an integer of at least 0; got 'x'"):
        behaviour_scores(model, seed="x")
    with pytest.raises(ValueError, match="length must be an integer from 2 to 15 .*; got 16"):
        behaviour_scores(model, length=16)
    with pytest.raises(ValueError, match="d_vocab is 50"):
        behaviour_scores(model, some_tokens() + 40)


def test_a_head_that_writes_nothing_is_dead_whatever_it_attends_to():
    model = ls.load_model("attn-2l")
    with torch.no_grad():
        leaf = adapt(model).leaves["blocks.1.attn.W_O"]
        leaf.view(leaf.parameter)[2] *= 1e-4
    scores = ls.behaviour_scores(model, n_random=4)
    dead = scores.sel(component="L1H2")
    assert float(dead["prefix_matching"]) > 0.3
    assert str(dead["head_type"].values) == "dead"
    assert (scores["head_type"] == "dead").sum() == 1


def test_what_a_head_writes_is_measured_against_the_stream():
    model = ls.load_model("attn-1l")
    tokens = ls.load_tokens("mix", n_sequences=4, length=24)
    kept = {}
    names = ["blocks.0.attn.hook_z", "blocks.0.hook_resid_pre"]
    with torch.no_grad():
        model.run_with_hooks(
            tokens, fwd_hooks=[(n, lambda x, hook, n=n: kept.update({n: x})) for n in names]
        )
    leaf = adapt(model).leaves["blocks.0.attn.W_O"]
    z, stream = (kept[name].double().flatten(0, 1) for name in names)
    written = z[:, 3] @ leaf.view(leaf.parameter)[3].double()
    sizes = [float((x - x.mean(0)).square().sum(-1).mean().sqrt()) for x in (written, stream)]
    found = ls.behaviour_scores(model, tokens, n_random=4)["written_share"]
    assert float(found.sel(component="L0H3")) == pytest.approx(sizes[0] / sizes[1], rel=1e-4)


def test_only_predictions_that_count_enter_attention_scores():
    model, tokens = (
        native(),
        torch.randint(1, 49, (4, 12), generator=torch.Generator().manual_seed(0)),
    )
    weights = torch.zeros(4, 11)
    weights[:, 7] = 1.0
    kept = {}
    with torch.no_grad():
        model.run_with_hooks(
            tokens, fwd_hooks=[("blocks.1.attn.hook_pattern", lambda x, hook: kept.update(x=x))]
        )
    found = ls.behaviour_scores(model, tokens, weights=weights, n_random=2, length=5)
    want = float(kept["x"][:, 2, 7, 6].mean())
    assert float(found["previous_token"].sel(component="L1H2")) == pytest.approx(want, abs=1e-6)
