"""Estimated effects of edges against true ablation of paths and against finite differences."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import lens_slt as ls
from lens_slt.circuits.attribution import edge_attribution
from lens_slt.circuits.hypothesis import Edge
from lens_slt.circuits.interventions import ablate_path
from lens_slt.circuits.runs import Runs
from lens_slt.models.adapter import adapt, copy_weights, weights_hash
from tests.tiny_models import GENERIC_MODELS, TINY_MODELS, has_hooked_transformer, native

ALL = {**TINY_MODELS, **GENERIC_MODELS}
CASES = [
    ("hooked_gqa", "mean"), ("hooked_shortformer", "zero"), ("hooked_alibi", "mean"),
    ("native_mlp", "mean"), ("native_logit_cap", "zero"), ("wrapped_neox", "mean"),
    ("wrapped_llama", "mean"), ("wrapped_opt", "mean"),
]  # fmt: skip


def usable(names):
    return [n for n in names if has_hooked_transformer() or not n.startswith("hooked_")]


def some_tokens(n: int = 4, length: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 49, (n, length), generator=torch.Generator().manual_seed(seed))


def some_mask(tokens, seed: int = 0):
    shape = (tokens.shape[0], tokens.shape[1] - 1)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4


def true_effect(model, tokens, mask, edges, how="mean"):
    return float(ablate_path(model, tokens, edges, how=how)["effect"].values[mask].mean())


@pytest.mark.parametrize(
    ("name", "ablate"), [case for case in CASES if case[0] in usable([case[0]])]
)
def test_effects_of_one_source_add_up_to_ablating_its_edges_together(name, ablate):
    """The path integral of a gradient is the difference of the ends."""
    model, tokens = ALL[name](), some_tokens()
    mask = some_mask(tokens)
    adapted = adapt(model)
    found = edge_attribution(model, tokens, mask, steps=6, ablate=ablate)["effect"]
    for through in "QKV":
        edges = [Edge("L0H1", f"L1H{i}", through) for i in range(4)]
        parts = found.sel(source="L0H1", through=through, target=[e.target for e in edges])
        # Under grouped-query attention all heads of a group show what is the group's.
        group = 1 if through == "Q" else adapted.n_heads // adapted.n_key_value_heads
        truth = true_effect(model, tokens, mask, edges, ablate)
        assert float(parts[::group].sum()) == pytest.approx(truth, rel=0.02, abs=3e-4)
    for source in ("L0H2", "L1H3"):
        truth = true_effect(model, tokens, mask, [Edge(source, "logits")], ablate)
        effect = float(found.sel(source=source, target="logits", through=""))
        assert effect == pytest.approx(truth, rel=0.02, abs=3e-4)


def by_finite_difference(model, tokens, mask, source, target, through):
    """Slope of the loss when the target's queries, keys or values begin to move to their ablated
    value, which is computed here from hooks alone; float64."""
    adapted = adapt(model)
    weights = copy_weights(adapted)
    inputs, kept = tokens[:, :-1], {}

    def keep(name):
        def hook(value, hook):
            kept[name] = value.detach().clone()

        return hook

    place = f"blocks.1.attn.hook_{through.lower()}"
    names = ["blocks.0.attn.hook_z", "blocks.1.hook_resid_pre", place]
    with torch.no_grad():
        model.run_with_hooks(inputs, fwd_hooks=[(n, keep(n)) for n in names], return_type="logits")
        z, stream, clean = (kept[name] for name in names)
        own = z[:, :, source]
        moved = stream + (own.mean((0, 1)) - own) @ weights["blocks.0.attn.W_O"][source]
        ln1 = model.blocks[1].ln1
        change = torch.einsum(
            "spd,hde->sphe", ln1(moved) - ln1(stream), weights[f"blocks.1.attn.W_{through}"]
        )
        index = target // (adapted.n_heads // change.shape[2])

        def loss(scale):
            shifted = clean.clone()
            shifted[:, :, index] += scale * change[:, :, index]
            logits = model.run_with_hooks(
                inputs, fwd_hooks=[(place, lambda value, hook: shifted)], return_type="logits"
            )
            return float(F.cross_entropy(logits[mask], tokens[:, 1:][mask]))

        return (loss(1e-5) - loss(-1e-5)) / 2e-5


@pytest.mark.parametrize("name", usable(["hooked_mlp", "hooked_gqa", "native_gqa", "wrapped_neox"]))
def test_one_step_is_the_slope_of_the_loss(name):
    model, tokens = ALL[name]().to(torch.float64), some_tokens(seed=1)
    mask = some_mask(tokens, seed=1)
    found = edge_attribution(model, tokens, mask, steps=1)["effect"]
    for source, target, through in ((0, 3, "Q"), (1, 2, "K"), (3, 0, "K"), (2, 1, "V")):
        slope = by_finite_difference(model, tokens, mask, source, target, through)
        one = found.sel(source=f"L0H{source}", target=f"L1H{target}", through=through)
        assert float(one) == pytest.approx(slope, rel=1e-4)


def test_the_edges_are_those_that_can_be_ablated():
    found = edge_attribution(native(n_layers=3), some_tokens(), some_mask(some_tokens()), steps=2)
    effect = found["effect"]
    assert effect.dims == ("source", "target", "through")
    for source in effect["source"].values:
        for target in effect["target"].values:
            for through in effect["through"].values:
                value = effect.sel(source=source, target=target, through=through)
                try:
                    Edge(str(source), str(target), str(through))
                except ValueError:
                    assert np.isnan(value), (source, target, through)
                else:
                    assert np.isfinite(value), (source, target, through)


def test_batches_padding_and_sequences_without_the_pattern_change_nothing():
    model, tokens = native(), some_tokens(5)
    mask = some_mask(tokens)
    mask[2] = False
    whole = edge_attribution(model, tokens, mask, steps=2, batch_size=8)
    assert whole.attrs["n_tokens"] == int(mask.sum())
    logits = model(tokens[:, :-1], return_type="logits").detach()
    clean = F.cross_entropy(logits[mask], tokens[:, 1:][mask])
    assert whole.attrs["loss"] == pytest.approx(float(clean), rel=1e-5)
    parts = edge_attribution(model, tokens, mask.numpy(), steps=2, batch_size=2)
    np.testing.assert_allclose(parts["effect"], whole["effect"], rtol=1e-3, atol=1e-6)
    padded = torch.cat([tokens, torch.full((5, 3), 49)], dim=1)
    longer = torch.cat([mask, torch.ones(5, 3, dtype=torch.bool)], dim=1)
    again = edge_attribution(model, padded, longer, steps=2, pad_id=49)
    np.testing.assert_allclose(again["effect"], whole["effect"], rtol=1e-3, atol=1e-6)


@cache
def shipped_case():
    tokens = ls.load_tokens("mix", n_sequences=6, length=96, seed=3)
    return tokens, ls.label_patterns(tokens).sel(pattern="induction")


@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_the_induction_circuit_of_the_shipped_model(backend):
    model = ls.load_model("attn-2l", backend=backend)
    effect = edge_attribution(model, *shipped_case(), steps=1)["effect"]
    ranked = effect.stack(edge=("source", "target", "through")).dropna("edge")
    ranked = ranked.sortby(ranked, ascending=False)
    assert ranked["edge"].values[0] == ("L0H2", "L1H2", "K")
    assert float(ranked[0]) > 0.5
    assert float(effect.sel(source="L1H2", target="logits", through="")) > 0.2


def test_integrated_gradients_come_near_true_ablation():
    model, (tokens, labels) = ls.load_model("attn-2l"), shipped_case()
    steps = {n: edge_attribution(model, tokens, labels, steps=n)["effect"] for n in (1, 3)}
    sources = ["L0H0", "L0H2", "L0H6", "L0H7"]
    edges = [Edge(s, t, x) for s in sources for t in ("L1H1", "L1H2", "L1H3") for x in "KV"]
    truth = np.array([true_effect(model, tokens, labels.values, [edge]) for edge in edges])
    estimate = {
        n: np.array(
            [effect.sel(source=e.source, target=e.target, through=e.through) for e in edges]
        )
        for n, effect in steps.items()
    }
    error = {n: np.sqrt(np.mean((e - truth) ** 2) / np.mean(truth**2)) for n, e in estimate.items()}
    assert error[3] < 0.15 < error[1]
    assert stats.pearsonr(estimate[3], truth).statistic > 0.99


@pytest.mark.parametrize("name", usable(["hooked_mlp", "native_mlp", "wrapped_gpt2"]))
def test_the_model_is_untouched(name):
    model, tokens = TINY_MODELS[name](), some_tokens()
    seen = []
    hook_point = dict(model.hook_dict)["blocks.1.attn.hook_q"]
    hook_point.add_hook(lambda value, hook: seen.append(1))
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    hooks = {n: len(m._forward_hooks) for n, m in model.named_modules()}
    before, state = weights_hash(adapt(model)), torch.get_rng_state()
    with torch.no_grad():
        edge_attribution(model, tokens, some_mask(tokens), steps=2)
        assert not torch.is_grad_enabled()
    assert weights_hash(adapt(model)) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert {n: len(m._forward_hooks) for n, m in model.named_modules()} == hooks
    seen.clear()
    model(tokens)
    assert seen, "the caller's hook is still there"


def test_bad_arguments_are_named():
    model, tokens = native(), some_tokens()
    mask = some_mask(tokens)
    for name, value in (("steps", 0), ("batch_size", 1.5)):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1; got"):
            edge_attribution(model, tokens, mask, **{name: value})
    with pytest.raises(
        ValueError, match="ablate must be one of mean, mean_position, zero, auto; got 'men'"
    ):
        edge_attribution(model, tokens, mask, ablate="men")
    with pytest.raises(ValueError, match=r"bool \[4, 9\], .* got bool \[4, 10\]"):
        edge_attribution(model, tokens, torch.ones(4, 10, dtype=torch.bool))
    with pytest.raises(TypeError, match="got int64"):
        edge_attribution(model, tokens, mask.long())
    with pytest.raises(ValueError, match="false everywhere"):
        edge_attribution(model, tokens, mask & False)
    with pytest.raises(ValueError, match="a norm after attention"):
        edge_attribution(GENERIC_MODELS["wrapped_gemma2"](), tokens, mask)


def test_a_metric_is_attributed_as_it_is_ablated():
    """Into the logits the path is straight, and a logit difference linear but for the norm."""
    model, tokens = native(), some_tokens(seed=2)
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[[0, 1, 3], [8, 4, 7]] = True
    metric = ls.LogitDifference([5, 6, 7, 8])
    found = edge_attribution(model, tokens, mask, steps=30, ablate="zero", metric=metric)
    assert (found.attrs["metric"], found.attrs["units"]) == ("logit_difference", "logits")
    for head in ("L0H1", "L1H2"):
        true = ls.ablate_path(model, tokens, f"{head} -> logits", how="zero", metric=metric)
        effect = float(true["effect"].values[mask.numpy()].mean())
        estimate = found["effect"].sel(source=head, target="logits", through="")
        assert float(estimate) == pytest.approx(effect, rel=2e-2, abs=1e-4)
    with pytest.raises(ValueError, match="metric: accuracy has no gradient"):
        edge_attribution(model, tokens, mask, metric=ls.Accuracy())


def test_position_weights_are_those_of_the_mean():
    """Against runs on single sequences, whose losses are weighted here."""
    model, tokens = native(), some_tokens(3)
    everywhere = torch.ones(3, 9, dtype=torch.bool)
    weights = torch.rand(3, 9, generator=torch.Generator().manual_seed(5))
    weights[1, 4:] = 0
    found = edge_attribution(model, tokens, everywhere, steps=1, ablate="zero", weights=weights)
    parts = []
    for row in range(3):
        for position in weights[row].nonzero()[:, 0]:
            one = torch.zeros(1, 9, dtype=torch.bool)
            one[0, position] = True
            part = edge_attribution(model, tokens[[row]], one, steps=1, ablate="zero")["effect"]
            parts.append(float(weights[row, position]) * part)
    expected = sum(parts) / float(weights.sum())
    np.testing.assert_allclose(found["effect"], expected, rtol=1e-3, atol=1e-6)
    marked = torch.cat([torch.zeros(3, 1, dtype=torch.bool), weights > 0.5], 1)
    by_mask = edge_attribution(model, tokens, everywhere, steps=1, ablate="zero", mask=marked)
    by_pattern = edge_attribution(model, tokens, marked[:, 1:], steps=1, ablate="zero")
    np.testing.assert_allclose(by_mask["effect"], by_pattern["effect"], rtol=1e-3, atol=1e-6)


def test_what_stands_in_for_an_output_is_what_ablation_puts_there():
    model, tokens = native(n_layers=1, attn_only=False), some_tokens(9, seed=4)
    mask, options = some_mask(tokens, seed=4), dict(steps=6, embeddings=True, batch_size=9)
    for ablate in ("auto", "mean"):
        found = edge_attribution(model, tokens, mask, ablate=ablate, **options)
        how = "mean" if ablate == "mean" else "mean_position"
        assert found.attrs["ablate"] == how  # positions are learned, nine sequences are enough
        for source in ("L0H1", "L0MLP", "pos_embed"):
            truth = true_effect(model, tokens, mask, [Edge(source, "logits")], how)
            effect = float(found["effect"].sel(source=source, target="logits", through=""))
            assert effect == pytest.approx(truth, rel=0.02, abs=3e-4)


MLP_MODELS = ["hooked_gated", "native_mlp", "wrapped_llama"]
PARALLEL = ["hooked_parallel", "wrapped_neox"]


def edges_of(effect):
    """All edges with an estimate."""
    for index in np.argwhere(np.isfinite(effect.values)):
        yield Edge(*(str(effect[dim].values[i]) for dim, i in zip(effect.dims, index, strict=True)))


@pytest.mark.parametrize("name", usable([*MLP_MODELS, *PARALLEL]))
def test_edges_of_mlps_and_embeddings_add_up_to_ablating_them_together(name):
    model, tokens = ALL[name](), some_tokens()
    mask = some_mask(tokens)
    found = edge_attribution(model, tokens, mask, steps=6, embeddings=True)
    assert found.attrs["left_out"] == ""
    effect = found["effect"]
    learned = adapt(model).positions == "standard"
    layers = [[*(f"L{i}H{j}" for j in range(4)), f"L{i}MLP"] for i in range(2)]
    embeddings = ["embed", "pos_embed"] if learned else ["embed"]
    assert list(effect["source"].values) == [*embeddings, *layers[0], *layers[1]]
    single = [("L0MLP", "L1MLP"), ("L1MLP", "logits"), ("embed", "logits"), ("L0MLP", "logits")]
    if name not in PARALLEL:
        single += [("L1H2", "L1MLP")]
    groups = [[Edge(*ends)] for ends in single]
    groups += [[Edge("L0MLP", f"L1H{i}", x) for i in range(4)] for x in "QKV"]
    for edges in groups:
        group = 1
        if edges[0].through in ("K", "V"):
            group = 4 // adapt(model).n_key_value_heads
        parts = [effect.sel(source=e.source, target=e.target, through=e.through) for e in edges]
        truth = true_effect(model, tokens, mask, edges)
        assert float(sum(parts[::group])) == pytest.approx(truth, rel=0.03, abs=5e-4), edges


@pytest.mark.parametrize("name", usable(["hooked_gated", "hooked_parallel", "native_mlp"]))
def test_every_edge_that_can_be_ablated_has_an_estimate(name):
    model, tokens = ALL[name](), some_tokens(2)
    effect = edge_attribution(model, tokens, some_mask(tokens), steps=1, embeddings=True)["effect"]
    there, runs = {str(edge) for edge in edges_of(effect)}, Runs(adapt(model), tokens)
    for source in effect["source"].values:
        for target in effect["target"].values:
            for through in effect["through"].values:
                try:
                    edge = str(Edge(str(source), str(target), str(through)))
                except ValueError:
                    assert f"{source}→{target}" + f".{through}" * bool(through) not in there
                else:
                    assert (edge in there) == runs.can_read(str(target), str(source)), edge


def mlp_slope(model, tokens, mask, source):
    """Slope of the loss when what the MLP of layer 1 is called with begins to move to its value
    without what a source wrote, from hooks alone; float64."""
    adapted = adapt(model)
    weights, inputs, kept = copy_weights(adapted), tokens[:, :-1], {}

    def keep(name):
        def hook(value, hook):
            kept[name] = value.detach().clone()

        return hook

    written = {"L0H1": "blocks.0.attn.hook_z", "L1H2": "blocks.1.attn.hook_z"}
    names = {"L0MLP": "blocks.0.hook_mlp_out", "embed": "hook_embed", **written}
    names = [names[source], "blocks.1.hook_resid_mid"]
    model.run_with_hooks(inputs, fwd_hooks=[(n, keep(n)) for n in names], return_type="logits")
    out, stream = (kept[name] for name in names)
    if source in written:
        layer, head = int(source[1]), int(source[3])
        out = out[:, :, head] @ weights[f"blocks.{layer}.attn.W_O"][head]
    norm = model.blocks[1].ln2
    change = norm(stream - out + out.mean((0, 1))) - norm(stream)

    def loss(scale):
        handle = model.blocks[1].mlp.register_forward_pre_hook(
            lambda module, args: (args[0] + scale * change, *args[1:])
        )
        logits = model(inputs, return_type="logits")
        handle.remove()
        return float(F.cross_entropy(logits[mask], tokens[:, 1:][mask]))

    with torch.no_grad():
        return (loss(1e-5) - loss(-1e-5)) / 2e-5


@pytest.mark.parametrize("name", usable(["hooked_mlp", "native_gated", "wrapped_gpt2"]))
def test_one_step_into_an_mlp_is_the_slope_of_the_loss(name):
    model, tokens = ALL[name]().to(torch.float64), some_tokens(seed=1)
    mask = some_mask(tokens, seed=1)
    found = edge_attribution(model, tokens, mask, steps=1, embeddings=True)["effect"]
    for source in ("L0H1", "L1H2", "L0MLP", "embed"):
        slope = float(mlp_slope(model, tokens, mask, source))
        one = float(found.sel(source=source, target="L1MLP", through=""))
        assert one == pytest.approx(slope, rel=1e-4), source


@pytest.mark.parametrize("name", usable(["hooked_mlp", "wrapped_gpt2"]))
def test_single_edges_of_mlps_and_embeddings_come_near_true_ablation(name):
    """The path ablates all edges of one kind together: of an embedding these are many."""
    model, tokens = ALL[name](), some_tokens(6, seed=3)
    mask = some_mask(tokens, seed=3)
    effect = edge_attribution(model, tokens, mask, steps=4, embeddings=True)["effect"]
    runs = Runs(adapt(model), tokens, "mean")
    chosen = {"MLP": [e for e in edges_of(effect) if "MLP" in str(e) and "embed" not in str(e)]}
    chosen["embed"] = [e for e in edges_of(effect) if "embed" in e.source][::2]
    for kind, least in (("MLP", 0.98), ("embed", 0.9)):
        edges = chosen[kind]
        truth = [(runs.loss(paths=[e]) - runs.base)[mask.numpy()].mean() for e in edges]
        estimate = [
            float(effect.sel(source=e.source, target=e.target, through=e.through)) for e in edges
        ]
        assert stats.pearsonr(estimate, truth).statistic > least
        assert len(edges) > 20 and np.abs(truth).max() > 0.05


def test_mlps_that_read_otherwise_are_left_out_by_name():
    """Something stands between the stream and the MLP of layer 0: all other edges are estimated."""
    model, tokens = native(attn_only=False), some_tokens()
    model.blocks[0].mlp.register_forward_pre_hook(lambda module, args: (args[0] ** 2, *args[1:]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = edge_attribution(model, tokens, some_mask(tokens), steps=1, embeddings=True)
        with pytest.raises(ValueError, match="what the MLP of layer 0 reads is not a norm"):
            ablate_path(model, tokens, "L0H1 -> L0MLP")
    assert "L0MLP: model: what the MLP of layer 0 reads is not a norm" in found.attrs["left_out"]
    effect = found["effect"]
    assert effect.sel(source="L0MLP").isnull().all() and effect.sel(target="L0MLP").isnull().all()
    assert np.isfinite(effect.sel(source="L0H1", target="L1MLP", through=""))
    scores = ls.composition_scores(model, n_null=2)
    assert "L0MLP: model: what the MLP" in scores.attrs["left_out"]
    assert scores["score"].sel(source="L0MLP").isnull().all()
    assert np.isfinite(scores["score"].sel(source="L0H1", target="L1MLP", through=""))
