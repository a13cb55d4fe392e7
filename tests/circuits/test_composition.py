"""Composition scores against TransformerLens's own, and their nulls against sampled rotations."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy import stats

import lens_slt as ls
from lens_slt.circuits import composition_nulls as nulls
from lens_slt.circuits.composition import composition_by_component, composition_scores
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
        heads = [f"L{i}H{j}" for i in range(scores.shape[0]) for j in range(scores.shape[1])]
        mine = found["score"].sel(through=through, source=heads, target=heads).values
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


def rotation_null(source, target, d):
    """Cumulants of one pair from the shares of both."""
    left, right = (nulls.zonal(nulls.power_sums(shares)) for shares in (source, target))
    return nulls.cumulants(left[:, :, None, None], right[:, None, :, None], d)


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
    null = rotation_null(*shares, d)
    mean, variance, third = (float(np.squeeze(x)) for x in null)
    assert mean == 1 / d
    assert squared.mean() == pytest.approx(mean, rel=5 * np.sqrt(variance / n) / mean)
    assert squared.var() == pytest.approx(variance, rel=0.12)
    assert stats.moment(squared, 3) == pytest.approx(third, rel=0.4)
    _, p = nulls.against(squared[:, None, None], null)
    assert stats.kstest(p.ravel()[:1000], "uniform").pvalue > 0.001
    for level in (0.1, 0.01):
        expected = level * n
        assert abs((p < level).sum() - expected) < 4 * np.sqrt(expected) + 0.1 * expected


def test_moments_of_rank_one_matrices_are_those_of_the_beta_distribution():
    """A squared entry of a random rotation has the distribution Beta(1/2, (d − 1)/2)."""
    one = np.ones((1, 1))
    mean, variance, third = (float(np.squeeze(x)) for x in rotation_null(one, one, 20))
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


MLPS = ["hooked_gated", "hooked_parallel", "native_mlp", "wrapped_gpt2", "wrapped_llama"]


def plain_matrices(model):
    """What every node writes, and reads with, from the model's own modules; norms folded in."""
    adapted = adapt(model)
    view = {
        name: leaf.view(leaf.parameter.detach()).double() for name, leaf in adapted.leaves.items()
    }
    centred = str(model.cfg.normalization_type).upper().startswith("LN")
    group = adapted.n_heads // adapted.n_key_value_heads
    writes, reads = {"embed": view["embed.W_E"]}, {}
    if adapted.positions == "standard":
        writes["pos_embed"] = view["pos_embed.W_pos"]
    for i in range(adapted.n_layers):
        w = {key.split(".", 2)[2]: value for key, value in view.items() if f"blocks.{i}." in key}

        def fold(matrix, norm, w=w):
            matrix = w[f"{norm}.w"][:, None] * matrix
            return matrix - matrix.mean(0) if centred else matrix

        for j in range(adapted.n_heads):
            q, k, v = (
                fold(w[f"attn.W_{x}"][j if x == "Q" else j // group], "ln1") for x in THROUGH
            )
            ov = v @ w["attn.W_O"][j]
            writes[f"L{i}H{j}"] = ov
            reads |= {
                (f"L{i}H{j}", x): m for x, m in zip("QKV", (q @ k.T, k @ q.T, ov), strict=True)
            }
        ln2 = "ln2" if "ln2.w" in w else "ln1"
        into = [fold(w[f"mlp.{x}"], ln2) for x in ("W_in", "W_gate") if f"mlp.{x}" in w]
        writes[f"L{i}MLP"], reads[f"L{i}MLP", ""] = w["mlp.W_out"], torch.cat(into, 1)
    return writes, reads


@pytest.mark.parametrize("name", [n for n in MLPS if has_hooked_transformer() or "hooked" not in n])
def test_scores_of_mlps_and_embeddings_are_those_of_the_formula(name):
    model = TINY_MODELS[name]()
    found = composition_scores(model, n_null=2, embeddings=True)
    assert found.attrs["left_out"] == ""
    writes, reads = plain_matrices(model)
    there = {}
    for (target, through), read in reads.items():
        for source, written in writes.items():
            one = float(found["score"].sel(source=source, target=target, through=through))
            expected = float((written @ read).norm() / written.norm() / read.norm())
            order = [(-1, 0) if "embed" in n else (int(n[1]), "MLP" in n) for n in (source, target)]
            beside = name == "hooked_parallel" and order[0][0] == order[1][0]
            edge = order[0] < order[1] and not beside
            there[source, target, through] = edge
            assert np.isnan(one) if not edge else one == pytest.approx(expected, rel=2e-4)
    assert found.attrs["n_scores"] == sum(there.values())
    assert np.isfinite(found["score"]).sum() == sum(there.values())
    for key in ("z_random", "p_random", "z_rotation", "q_rotation"):
        assert (np.isfinite(found[key]) == np.isfinite(found["score"])).all()
    alone = composition_scores(model, n_null=2)
    assert "embed" not in alone["source"].values
    np.testing.assert_allclose(
        alone["score"], found["score"].sel(source=alone["source"]), rtol=1e-4
    )


def test_shares_of_an_mlp_are_those_of_its_singular_values():
    model = TINY_MODELS["native_gated"]()
    writes, reads = plain_matrices(model)
    pairs = [("L0MLP", "L1MLP", ""), ("L0H1", "L0MLP", ""), ("L0MLP", "L1H2", "K")]
    found = composition_scores(model, n_null=2)
    for source, target, through in pairs:
        shares = [
            np.linalg.svd(m, compute_uv=False)[None] ** 2
            for m in (writes[source], reads[target, through])
        ]
        shares = [x / x.sum() for x in shares]
        one = found.sel(source=source, target=target, through=through)
        z, p = nulls.against(
            np.full((1, 1, 1), float(one["score"]) ** 2), rotation_null(*shares, 16)
        )
        assert float(one["z_rotation"]) == pytest.approx(float(z[0, 0, 0]), rel=1e-3, abs=1e-4)
        assert float(one["p_rotation"]) == pytest.approx(float(p[0, 0, 0]), rel=1e-3)


@pytest.mark.parametrize(("d", "width"), [(6, 3), (5, 40)])
def test_moments_of_random_matrices_are_those_of_sampled_ones(d, width):
    generator = np.random.default_rng(2)
    shares = np.linalg.svd(generator.normal(size=(20000, d, width)), compute_uv=False) ** 2
    shares /= shares.sum(-1, keepdims=True)
    sampled = nulls.zonal(nulls.power_sums(shares))
    exact = nulls.random_matrix(d, width)
    error = sampled.std(-1) / np.sqrt(sampled.shape[-1])
    assert (abs(sampled.mean(-1) - exact) < 4 * error + 1e-12).all()
    assert exact[:2].sum() == pytest.approx(1) and exact[2:].sum() == pytest.approx(1)


def test_random_mlps_have_uniform_p_values():
    model = native(n_layers=6, d_model=32, n_heads=2, d_head=8, attn_only=False, d_mlp=48)
    leaves = adapt(model).leaves
    with torch.no_grad():
        for name, leaf in leaves.items():
            if name.endswith((".ln1.w", ".ln2.w")):
                leaf.parameter.fill_(1.0)
    found = composition_scores(model, embeddings=True)
    mlps = found.sel(source=[n for n in found["source"].values if "H" not in n])
    for null in ("random", "rotation"):
        p = np.concatenate(
            [mlps[f"p_{null}"].values.ravel(), found[f"p_{null}"].sel(through="").values.ravel()]
        )
        p = p[np.isfinite(p)]
        assert len(p) > 200
        assert stats.kstest(p, "uniform").pvalue > 0.01


def test_an_mlp_that_reads_what_a_head_writes_stands_out():
    model = native(**WIDE, normalization_type=None, attn_only=False, d_mlp=32)
    leaves = adapt(model).leaves
    w_o, w_in = leaves["blocks.0.attn.W_O"], leaves["blocks.1.mlp.W_in"]
    with torch.no_grad():
        w_in.view(w_in.parameter)[:, :8] = 3 * w_o.view(w_o.parameter)[3].T
    found = composition_scores(model)
    into = found["score"].sel(through="")
    best = into.where(into == into.max(), drop=True)
    assert (best["source"].item(), best["target"].item()) == ("L0H3", "L1MLP")
    one = found.sel(source="L0H3", target="L1MLP", through="")
    assert one["q_rotation"] < 1e-9 and one["q_random"] < 1e-9
