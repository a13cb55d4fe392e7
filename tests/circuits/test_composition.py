"""Composition scores against TransformerLens's own, and their nulls against sampled rotations."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy import stats

import lens_slt as ls
from lens_slt.circuits.composition import (
    _against,
    _cumulants,
    _moments,
    composition_by_component,
    composition_scores,
)
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.models.norms import norm_weight
from tests.tiny_models import (
    HF_SIZES,
    TINY_MODELS,
    has_hooked_transformer,
    hooked,
    native,
    wrapped,
    wrapped_gemma2,
    wrapped_gpt2,
    wrapped_llama,
)

THROUGH = ("Q", "K", "V")
WIDE = dict(n_layers=3, d_model=64, n_heads=8, d_head=8)
KINDS = [hooked, native] if has_hooked_transformer() else [native]
hooked_only = pytest.mark.skipif(
    not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer"
)


def assert_equal_scores(found, model):
    """Equal to TransformerLens's scores of ``model``, which has zeros where there is no edge."""
    for through in THROUGH:
        scores = model.all_composition_scores(through)
        scores = getattr(scores, "scores", scores).detach().numpy()
        n = scores.shape[0] * scores.shape[1]
        mine = found["score"].sel(through=through).values
        np.testing.assert_allclose(np.nan_to_num(mine), scores.reshape(n, n), rtol=2e-5)
        assert np.isfinite(mine).sum() == (scores > 0).sum() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [None, 2])
def test_scores_are_those_of_transformer_lens_where_there_is_no_norm(kind, groups):
    model = kind(n_layers=3, normalization_type=None, n_key_value_heads=groups)
    assert_equal_scores(composition_scores(model), model)


def test_scores_are_those_of_transformer_lens_where_the_norm_has_no_weight_and_keeps_the_mean():
    model = KINDS[0](n_layers=3, normalization_type="RMSPre")
    assert_equal_scores(composition_scores(model), model)


@hooked_only
@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_folding_is_transformer_lens_s_on_a_hooked_model(norm):
    model = hooked(n_layers=3, normalization_type=norm)
    folded = deepcopy(model)
    folded.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=False)
    found = composition_scores(model)
    assert_equal_scores(found, folded)
    bare = composition_scores(hooked(n_layers=3, normalization_type=None))
    assert float(abs(found["score"] - bare["score"]).max()) > 0.05  # folding does something


@pytest.mark.parametrize("make", [wrapped_gpt2, wrapped_llama])
def test_folding_is_transformer_lens_s_on_a_bridge(make):
    model = make()
    found = composition_scores(model)
    model.process_weights(
        fold_ln=True, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    assert_equal_scores(found, model)


def test_the_weight_of_a_norm_is_read_off_what_it_does():
    gemma = wrapped_gemma2()
    weight, centres = norm_weight(gemma.blocks[0].ln1, torch.zeros(16))
    stored = adapt(gemma).leaves["blocks.0.ln1.w"].parameter.detach()
    ratio = weight / (1 + stored)  # Gemma stores the weight less one
    torch.testing.assert_close(ratio, ratio[:1].expand(16))
    assert not centres
    assert norm_weight(None, torch.zeros(3))[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("norm", [None, "LN"])
def test_random_weights_score_at_chance_and_have_uniform_p_values(norm):
    found = composition_scores(native(**WIDE, normalization_type=norm), seed=1)
    assert found.attrs["n_scores"] == 3 * 3 * 8 * 8
    assert found.attrs["chance_score"] == pytest.approx(1 / 8)
    assert float(found["score"].mean()) == pytest.approx(1 / 8, rel=0.02)
    # The weight of a norm makes the columns of what is read longer in some dimensions, which the
    # null of plain random weights does not know.
    for null, tolerance in (("random", 0.2), ("rotation", 0.12)):
        p = found[f"p_{null}"].values
        p = p[np.isfinite(p)]
        assert stats.kstest(p, "uniform").pvalue > 0.01
        z = found[f"z_{null}"]
        assert abs(float(z.mean())) < 0.15 and abs(float(z.std()) - 1) < tolerance
        assert float(found[f"q_{null}"].min()) > 0.01


def test_no_edge_leads_backwards_or_within_a_layer():
    found = composition_scores(native(n_layers=2))
    for value in found.data_vars.values():
        assert np.isfinite(value.sel(source=["L0H1"], target=["L1H0", "L1H3"])).all()
        assert np.isnan(value.sel(source=["L0H1", "L1H2"], target=["L0H0", "L0H2"])).all()
        assert np.isnan(value.sel(source="L1H2", target="L1H0")).all()


def test_a_head_that_reads_exactly_what_another_writes_stands_out():
    model = native(**WIDE, normalization_type=None)
    leaves = adapt(model).leaves
    w_o, w_k = (leaves[f"blocks.{i}.attn.{name}"] for i, name in ((0, "W_O"), (2, "W_K")))
    with torch.no_grad():
        w_k.view(w_k.parameter)[5] = w_o.view(w_o.parameter)[3].T
    found = composition_scores(model)
    best = found["score"].where(found["score"] == found["score"].max(), drop=True)
    edge = [best[dim].item() for dim in ("source", "target", "through")]
    assert edge == ["L0H3", "L2H5", "K"]
    one = found.sel(source="L0H3", target="L2H5", through="K")
    assert one["z_rotation"] > 15 and one["q_rotation"] < 1e-12
    assert one["z_random"] > 15 and one["q_random"] < 1e-12
    others = found["q_rotation"].where(found["target"] != "L2H5")
    assert float(others.min()) > 0.01


def rotated_scores(left, right, n, seed=0):
    """Squared TransformerLens scores of two d × d matrices with random rotations between them."""
    generator = np.random.default_rng(seed)
    norm = np.linalg.norm(left) * np.linalg.norm(right)
    rotations = stats.ortho_group.rvs(len(left), n, random_state=generator)
    return np.linalg.norm(left @ rotations @ right, axis=(1, 2)) ** 2 / norm**2


def spectrum(matrix, rank):
    squared = np.linalg.svd(matrix, compute_uv=False)[:rank] ** 2
    return squared / squared.sum()


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_the_rotation_null_has_the_moments_and_the_tail_of_sampled_rotations(decay):
    """Rotations keep both spectra; those of real heads are as uneven as ``decay`` 0.7."""
    d, rank, n = 24, 6, 4000
    generator = np.random.default_rng(3)
    sizes = np.exp(-decay * np.arange(rank))
    left, right = (
        generator.normal(size=(d, rank)) * sizes @ generator.normal(size=(rank, d))
        for _ in range(2)
    )
    rotation = stats.ortho_group.rvs(d, random_state=generator)
    np.testing.assert_allclose(spectrum(left @ rotation, rank), spectrum(left, rank), rtol=1e-10)
    squared = rotated_scores(left, right, n)
    shares = [spectrum(matrix, rank)[None] for matrix in (left, right)]
    null = _cumulants(_moments(*shares)[..., None], d)
    mean, variance, third = (float(np.squeeze(x)) for x in null)
    assert mean == 1 / d
    assert squared.mean() == pytest.approx(mean, rel=5 * np.sqrt(variance / n) / mean)
    assert squared.var() == pytest.approx(variance, rel=0.12)
    assert stats.moment(squared, 3) == pytest.approx(third, rel=0.4)
    _, p = _against(squared[:, None, None], null)
    assert stats.kstest(p.ravel()[:1000], "uniform").pvalue > 0.001
    for level in (0.1, 0.01):
        expected = level * n
        assert abs((p < level).sum() - expected) < 4 * np.sqrt(expected) + 0.1 * expected


def test_moments_of_rank_one_matrices_are_those_of_the_beta_distribution():
    """A squared entry of a random rotation has the distribution Beta(1/2, (d − 1)/2)."""
    one = np.ones((1, 1))
    mean, variance, third = (
        float(np.squeeze(x)) for x in _cumulants(_moments(one, one)[..., None], 20)
    )
    truth = stats.beta(0.5, 9.5)
    assert mean == pytest.approx(truth.mean())
    assert variance == pytest.approx(truth.var())
    assert third == pytest.approx(float(truth.stats("s")) * truth.std() ** 3)


@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_the_induction_circuit_of_the_shipped_model(backend):
    found = composition_scores(ls.load_model("attn-2l", backend=backend))
    through_k = found["score"].sel(through="K")
    best = through_k.where(through_k == through_k.max(), drop=True)
    assert (best["source"].item(), best["target"].item()) == ("L0H2", "L1H2")
    one = found.sel(source="L0H2", target="L1H2", through="K")
    assert float(one["score"]) == pytest.approx(0.299, abs=0.001)
    assert float(one["score"]) == float(found["score"].max())
    assert one["z_random"] > 100 and one["z_rotation"] > 70 and one["q_rotation"] < 1e-100


def test_directions_add_up_to_the_squared_score():
    model = native(**WIDE)
    whole = composition_by_component(model, "L0H3", "L2H5", "V")
    score = composition_scores(model)["score"].sel(source="L0H3", target="L2H5", through="V")
    assert whole.sizes["direction"] == 8
    assert float(whole["squared_score"].sum()) == pytest.approx(float(score) ** 2, rel=1e-5)
    assert whole.attrs["score"] == pytest.approx(float(score), rel=1e-5)
    for name in ("share", "expected_share"):
        assert float(whole[name].sum()) == pytest.approx(1)
    assert float(whole["expected_squared_score"].sum()) == pytest.approx(1 / 64)
    assert (np.diff(whole["singular_value"]) < 0).all()
    some = composition_by_component(model, "L0H3", "L2H5", "V", n=3)
    np.testing.assert_array_equal(some["share"], whole["share"][:3])


def test_the_direction_that_is_read_is_found():
    model = native(**WIDE, normalization_type=None)
    leaves = adapt(model).leaves
    part = {name: leaves[f"blocks.{i}.attn.{name}"] for i, name in ((0, "W_V"), (0, "W_O"))}
    w_v, w_o = (part[name].view(part[name].parameter.detach())[3] for name in ("W_V", "W_O"))
    _, _, right = torch.linalg.svd(w_v @ w_o)
    w_q = leaves["blocks.2.attn.W_Q"]
    with torch.no_grad():
        w_q.view(w_q.parameter)[5] = right[1][:, None] * torch.linspace(1, 2, 8)
    found = composition_by_component(model, "L0H3", "L2H5", "Q")
    assert np.argmax(found["share"].values) == 1
    assert float(found["share"][1]) > 0.999


@pytest.mark.parametrize("name", ["hooked_gqa", "native_mlp", "wrapped_gpt2"])
def test_the_model_is_untouched(name):
    if name.startswith("hooked_") and not has_hooked_transformer():
        pytest.skip("needs HookedTransformer")
    model = TINY_MODELS[name]()
    next(model.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    before, state = weights_hash(adapt(model)), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = composition_scores(model, seed=3)
    composition_by_component(model, "L0H0", "L1H3", "K")
    assert weights_hash(adapt(model)) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert composition_scores(model, seed=3).identical(first)
    assert not composition_scores(model, seed=4)["z_random"].equals(first["z_random"])


def test_bad_arguments_are_named():
    model = native()
    with pytest.raises(ValueError, match="n_null must be an integer of at least 2; got 1"):
        composition_scores(model, n_null=1)
    with pytest.raises(ValueError, match="seed must be an integer of at least 0; got -1"):
        composition_scores(model, seed=-1)
    with pytest.raises(ValueError, match="target must be one of L0H0 … L1H3; got 'L1H7'"):
        composition_by_component(model, "L0H0", "L1H7", "K")
    with pytest.raises(ValueError, match="runs backwards"):
        composition_by_component(model, "L1H0", "L0H1", "K")
    with pytest.raises(ValueError, match="one of Q, K, V; got 'k'"):
        composition_by_component(model, "L0H0", "L1H1", "k")
    with pytest.raises(ValueError, match="logits"):
        composition_by_component(model, "L0H0", "logits", "")
    with pytest.raises(ValueError, match="n must be an integer from 1 to 4 .d_head.; got 5"):
        composition_by_component(model, "L0H0", "L1H1", "K", n=5)
    with pytest.raises(TypeError, match="expected a HookedTransformer"):
        composition_scores("attn-2l")


def test_norms_of_queries_and_keys_are_folded_in():
    model = wrapped(
        "Qwen3ForCausalLM", "Qwen3Config",
        **{**HF_SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4},
    )  # fmt: skip
    first, second = model.original_model.model.layers

    def read(layer, name, head):
        weight = getattr(layer.self_attn, name).weight[4 * head : 4 * head + 4].T
        return layer.input_layernorm.weight[:, None] * weight

    with torch.no_grad():
        ov = read(first, "v_proj", 1) @ first.self_attn.o_proj.weight[:, 12:16].T
        q = read(second, "q_proj", 1) * second.self_attn.q_norm.weight
        k = read(second, "k_proj", 0) * second.self_attn.k_norm.weight
        expected = (ov @ q @ k.T).norm() / ov.norm() / (q @ k.T).norm()
    found = ls.composition_scores(model, n_null=2)["score"]
    one = found.sel(source="L0H3", target="L1H1", through="Q")
    assert float(one) == pytest.approx(float(expected), rel=1e-4)
