"""Interventions against weights and hooks written by hand; the model stays untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.circuits.case import Case
from lens_slt.circuits.hypothesis import Edge
from lens_slt.circuits.interventions import (
    ablate,
    ablate_path,
    affected_tokens,
    keep_only,
    knock_in,
)  # fmt: skip
from lens_slt.circuits.null_sets import other_paths
from lens_slt.circuits.replacements import HOWS, Ablation, donors
from lens_slt.circuits.runs import Runs
from lens_slt.circuits.statistics import Contrast
from lens_slt.models import forward
from lens_slt.models.adapter import adapt, copy_weights, weights_hash
from tests.tiny_models import (
    GENERIC_MODELS,
    TINY_MODELS,
    has_hooked_transformer,
    hooked,
    native,
    wrapped_gptj,
)

MODELS = [
    name
    for name in (*TINY_MODELS, *GENERIC_MODELS)
    if has_hooked_transformer() or not name.startswith("hooked_")
]
FAST = [name for name in MODELS if name in TINY_MODELS]


def make(name):
    return {**TINY_MODELS, **GENERIC_MODELS}[name]()


def some_tokens(n: int = 4, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 49, (n, length), generator=torch.Generator().manual_seed(seed))


def losses(logits: torch.Tensor, tokens: torch.Tensor) -> np.ndarray:
    return -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].detach().numpy()


@pytest.mark.parametrize("name", MODELS)
def test_zero_ablation_equals_weights_set_to_zero(name):
    model, tokens = make(name), some_tokens()
    got = ablate(model, tokens, "L0H1", how="zero")["loss"].values
    leaf = adapt(model).leaves["blocks.0.attn.W_O"]
    with torch.no_grad():
        leaf.view(leaf.parameter)[1] = 0
        want = losses(model(tokens[:, :-1], return_type="logits"), tokens)
    np.testing.assert_allclose(got, want, atol=1e-5)


def by_hand(model, tokens, edge):
    """Loss with one path zero-ablated, in the package's functional forward pass."""
    adapted = adapt(model)
    arch, w = adapted.architecture, copy_weights(adapted)
    inputs = tokens[:, :-1]
    source_layer, source = int(edge.source[1]), int(edge.source[3:])
    resid = forward.embed(arch, w, inputs)
    for layer in range(arch.n_layers):
        z = forward.head_outputs(arch, w, layer, resid)
        if layer == source_layer:
            write = z[:, source] @ w[f"blocks.{layer}.attn.W_O"][source]
        if edge.target.startswith(f"L{layer}H"):
            head = int(edge.target[3:])
            x = dict.fromkeys("QKV", resid)
            x[edge.through] = resid - write
            qkv = {}
            for part in "QKV":
                qk, v = forward.attention_inputs(arch, w, layer, x[part])
                read = v if part == "V" else qk
                bias = w.get(f"blocks.{layer}.attn.b_{part}")
                qkv[part] = forward.project(read, w[f"blocks.{layer}.attn.W_{part}"], bias)
            group = arch.heads_per_key_value
            index = head if edge.through == "Q" else head // group
            full = {p: forward.project(
                forward.attention_inputs(arch, w, layer, resid)[p == "V"],
                w[f"blocks.{layer}.attn.W_{p}"], w.get(f"blocks.{layer}.attn.b_{p}"),
            ) for p in "QKV"}  # fmt: skip
            full[edge.through][:, index] = qkv[edge.through][:, index]
            k, v = (full[p].repeat_interleave(group, dim=1) for p in "KV")
            z = forward.causal_attention(arch, full["Q"], k, v)
        attn = forward.attention_output(w, layer, z)
        resid = forward.finish_block(arch, w, layer, resid, attn)
    if edge.target == "logits":
        resid = resid - write
    w_u, b_u = forward.unembedding(arch, w)
    logits = forward.final_state(arch, w, resid) @ w_u
    return losses(logits if b_u is None else logits + b_u, tokens)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("text", ["L0H1 -> L1H2.Q", "L0H1 -> L1H2.K", "L0H3 -> L1H0.V", "logits"])
def test_a_path_equals_the_forward_pass_without_it(name, text):
    model, tokens = make(name), some_tokens()
    if text == "logits":
        text = "L1H2 -> logits"
    source, target = text.split(" -> ")
    edge = Edge(source, *(target.split(".") if "." in target else (target,)))
    got = ablate_path(model, tokens, text, how="zero")
    np.testing.assert_allclose(got["loss"], by_hand(model, tokens, edge), atol=1e-5)
    assert float(np.abs(got["effect"]).max()) > 1e-4


def plain_path(model, tokens, edge, plus):
    """Loss where an edge's target reads its stream less what its source writes, zero-ablated.

    The reader is a copy of the model's own modules, run on values that hooks recorded; ``plus`` is
    the hook that its output is put in at.
    """
    source, target = edge
    kept = {}
    layer = int(target[1])
    places = [source, f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_resid_mid"]
    hooks = [(n, lambda x, hook, n=n: kept.update({n: x.clone()})) for n in places]
    block = model.blocks[layer]
    with torch.no_grad():
        model.run_with_hooks(tokens[:, :-1], fwd_hooks=hooks)
        if target.endswith("MLP"):
            new = block.mlp(block.ln2(kept[places[2]] - kept[source]))
        else:
            x = block.ln1(kept[places[1]] - kept[source])
            leaves = adapt(model).leaves
            weight, bias = (leaves[f"blocks.{layer}.attn.{n}_K"] for n in "Wb")
            new = torch.einsum("rpd,hde->rphe", x, weight.view(weight.parameter))
            new = new + bias.view(bias.parameter)

        def put(x, hook):
            if target.endswith("MLP"):
                return new
            x = x.clone()
            x[:, :, 1] = new[:, :, 1]
            return x

        logits = model.run_with_hooks(tokens[:, :-1], return_type="logits", fwd_hooks=[(plus, put)])
    return losses(logits, tokens)


@pytest.mark.parametrize("name", ["native_mlp", "wrapped_gpt2", "hooked_mlp"])
@pytest.mark.parametrize(
    ("text", "source", "plus"),
    [
        ("L0MLP -> L1MLP", "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"),
        ("L0MLP -> L1H1.K", "blocks.0.hook_mlp_out", "blocks.1.attn.hook_k"),
        ("embed -> L0MLP", "hook_embed", "blocks.0.hook_mlp_out"),
        ("pos_embed -> L1H1.K", "hook_pos_embed", "blocks.1.attn.hook_k"),
    ],
)
def test_a_path_from_or_into_an_mlp_equals_plain_hooks(name, text, source, plus):
    if name not in MODELS:
        pytest.skip("this TransformerLens has no HookedTransformer")
    model, tokens = make(name), some_tokens()
    got = ablate_path(model, tokens, text, how="zero")
    edge = source, text.split(" -> ")[1].split(".")[0]
    want = plain_path(make(name), tokens, edge, plus)
    np.testing.assert_allclose(got["loss"], want, atol=1e-5)
    assert float(np.abs(got["effect"]).max()) > 1e-4


@pytest.mark.parametrize("name", ["native_mlp", "wrapped_gpt2", "hooked_mlp", "wrapped_llama"])
def test_all_paths_out_of_a_node_together_are_its_ablation(name):
    """Every reader of a head, an MLP or the embedding lacks it, one after the other."""
    if name not in MODELS:
        pytest.skip("this TransformerLens has no HookedTransformer")
    model, tokens = make(name), some_tokens()
    into_1 = [f"L1H{h}.{q}" for h in range(4) for q in "QKV"] + ["L1MLP", "logits"]
    for source, readers in (("L0MLP", into_1), ("L0H2", ["L0MLP", *into_1])):
        paths = ablate_path(model, tokens, "; ".join(f"{source} -> {r}" for r in readers))
        node = ablate(model, tokens, source)
        np.testing.assert_allclose(paths["loss"], node["loss"], atol=1e-5)
        assert float(np.abs(node["effect"]).max()) > 1e-3


def test_an_mlp_beside_attention_does_not_read_the_heads_of_its_layer():
    model = make("wrapped_gptj") if "wrapped_gptj" in MODELS else wrapped_gptj()
    ablate_path(model, some_tokens(), "L0H1 -> L1MLP")
    with pytest.raises(ValueError, match="reads the stream before the heads of its own layer"):
        ablate_path(model, some_tokens(), "L1H1 -> L1MLP")


@pytest.mark.parametrize("name", [*FAST, "native_logit_cap"])
def test_frozen_norm_makes_a_last_head_its_path_to_the_logits(name):
    """Without MLPs nothing else reads it, so the ablation is linear in its output."""
    model, tokens = make(name), some_tokens()
    node = ablate(model, tokens, "L1H2", how=Ablation(frozen_norm=True))["effect"].values
    if not adapt(model).attn_only:
        assert np.abs(node - ablate(model, tokens, "L1H2")["effect"].values).max() > 1e-5
        return
    path = ablate_path(model, tokens, "L1H2 -> logits", how=Ablation(frozen_norm=True))[
        "effect"
    ].values
    np.testing.assert_allclose(node, path, atol=1e-5)


def test_frozen_norm_equals_the_linearised_norm_of_a_path():
    model, tokens = native(normalization_type="LN"), some_tokens()
    adapted = adapt(model)
    arch, w = adapted.architecture, copy_weights(adapted)
    resid = forward.embed(arch, w, tokens[:, :-1])
    z = forward.head_outputs(arch, w, 0, resid)
    write = z[:, 1] @ w["blocks.0.attn.W_O"][1]
    for layer in range(arch.n_layers):
        resid = forward.block(arch, w, layer, resid)
    scale = (resid.var(-1, keepdim=True, unbiased=False) + arch.norm_eps).sqrt()
    change = (write - write.mean(-1, keepdim=True)) / scale * w["ln_final.w"]
    w_u, b_u = forward.unembedding(arch, w)
    want = (forward.final_state(arch, w, resid) - change) @ w_u + (0 if b_u is None else b_u)
    got = ablate_path(model, tokens, "L0H1 -> logits", how=Ablation("zero", frozen_norm=True))
    np.testing.assert_allclose(got["loss"], losses(want, tokens), atol=1e-5)


@pytest.mark.parametrize("name", ["native_mlp", "wrapped_gpt2", "hooked_mlp", "wrapped_llama"])
@pytest.mark.parametrize("how", [how for how in HOWS if how != "interchange"])
def test_ablations_equal_hooks_written_by_hand(name, how):
    if name not in MODELS:
        pytest.skip("needs HookedTransformer")
    model, tokens = make(name), some_tokens()
    pattern = torch.rand(4, 11, generator=torch.Generator().manual_seed(3)) < 0.4
    kept = {}

    def keep(value, hook, place):
        kept[place] = value.clone()

    head, mlp = "blocks.1.attn.hook_z", "blocks.0.hook_mlp_out"
    with torch.no_grad():
        for place in (head, mlp):
            model.run_with_hooks(
                tokens[:, :-1],
                fwd_hooks=[(place, lambda x, hook, p=place: keep(x, hook, p))],
            )

    def put_in(value):
        if how == "zero":
            return torch.zeros_like(value)
        if how == "mean":
            return value.mean((0, 1), keepdim=True).expand_as(value)
        if how == "mean_position":
            return value.mean(0, keepdim=True).expand_as(value)
        if how == "mean_pattern":
            new = value.clone()
            for member in (True, False):
                new[pattern == member] = value[pattern == member].mean(0)
            return new
        order = torch.randperm(4, generator=torch.Generator().manual_seed(5)).tolist()
        new = value.clone()
        for place, row in enumerate(order):
            new[row] = value[order[place - 1]]
        return new

    def replace_head(value, hook):
        value = value.clone()
        value[:, :, 2] = put_in(kept[head])[:, :, 2]
        return value

    with torch.no_grad():
        logits = model.run_with_hooks(
            tokens[:, :-1],
            fwd_hooks=[(head, replace_head), (mlp, lambda x, hook: put_in(kept[mlp]))],
        )
    found = ablate(model, tokens, ["L1H2", "L0MLP"], how=Ablation(how, pattern=pattern, seed=5))
    np.testing.assert_allclose(found["loss"], losses(logits, tokens), atol=1e-5)


def test_reference_tokens_give_the_means():
    model, tokens, other = native(), some_tokens(), some_tokens(n=6, seed=9)
    own = ablate(model, tokens, "L0H1")
    theirs = ablate(model, tokens, "L0H1", how=Ablation("mean", reference=other))
    both = ablate(model, torch.cat([tokens, other]), "L0H1", how=Ablation("mean", reference=other))
    assert np.abs(own["loss"] - theirs["loss"]).max() > 1e-4
    np.testing.assert_allclose(theirs["loss"], both["loss"][:4], atol=1e-5)


def test_layers_are_their_heads_and_mlp():
    model, tokens = native(attn_only=False), some_tokens()
    parts = [f"L1H{i}" for i in range(4)]
    whole = ablate(model, tokens, "L1")["loss"]
    np.testing.assert_allclose(whole, ablate(model, tokens, [*parts, "L1MLP"])["loss"], atol=1e-6)
    np.testing.assert_allclose(
        ablate(model, tokens, "L1ATTN")["loss"], ablate(model, tokens, parts)["loss"], atol=1e-6
    )


def test_keep_only_and_ablate_are_complements():
    model, tokens = native(), some_tokens()
    kept = keep_only(model, tokens, ["L0H1", "L1H3"])["loss"]
    rest = [f"L0H{i}" for i in (0, 2, 3)] + [f"L1H{i}" for i in (0, 1, 2)]
    np.testing.assert_allclose(kept, ablate(model, tokens, rest)["loss"], atol=1e-6)
    np.testing.assert_allclose(keep_only(model, tokens, "heads")["effect"], 0, atol=1e-6)


def test_knock_in_of_the_first_layer_equals_keeping_it_and_of_the_second_does_not():
    model, tokens = native(), some_tokens()
    first = [f"L0H{i}" for i in range(4)]
    np.testing.assert_allclose(
        knock_in(model, tokens, first)["loss"], keep_only(model, tokens, first)["loss"], atol=1e-5
    )
    kept, put_back = keep_only(model, tokens, "L1H2"), knock_in(model, tokens, "L1H2")
    assert np.abs(kept["loss"] - put_back["loss"]).max() > 1e-3
    np.testing.assert_allclose(knock_in(model, tokens, "heads")["effect"], 0, atol=1e-5)


def test_padding_has_no_loss_and_does_not_enter_the_mean():
    model, tokens = native(), some_tokens()
    padded = torch.cat([tokens, torch.full((4, 5), 49)], dim=1)
    plain, with_padding = (ablate(model, t, "L0H1", pad_id=49) for t in (tokens, padded))
    np.testing.assert_allclose(with_padding["loss"][:, :11], plain["loss"], atol=1e-5)
    assert np.isnan(with_padding["loss"][:, 11:]).all()


@pytest.mark.parametrize("name", ["hooked_attn_only", "native_mlp", "wrapped_gpt2"])
def test_the_model_is_untouched(name):
    if name not in MODELS:
        pytest.skip("needs HookedTransformer")
    model, tokens = make(name), some_tokens()
    seen = []
    place = "blocks.0.attn.hook_z"
    hook_point = dict(model.hook_dict)[place]
    hook_point.add_hook(lambda value, hook: seen.append(1))
    if name != "wrapped_gpt2":  # it has dropout, which is refused
        model.train()
    mode = model.training
    before, state = weights_hash(adapt(model)), torch.get_rng_state()
    modules = {n: len(m._forward_hooks) for n, m in model.named_modules()}
    ablate(model, tokens, "L0H1", how=Ablation("resample", frozen_norm=True))
    ablate_path(model, tokens, "L0H1 -> L1H2.K", how=Ablation(frozen_norm=True))
    with pytest.raises(ValueError, match="L9H0"):
        ablate(model, tokens, "L9H0")
    assert weights_hash(adapt(model)) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert {n: len(m._forward_hooks) for n, m in model.named_modules()} == modules
    assert all(p.grad is None for p in model.parameters())
    assert model.training == mode
    seen.clear()
    model(tokens)
    assert seen, "the caller's hook is still there"


def test_affected_tokens_stand_in_context():
    model = ls.load_model("attn-2l")
    tokens = ls.load_tokens("code", n_sequences=6, length=48)
    found = ablate(model, tokens, "L1H2")
    table = affected_tokens(found, n=4)
    assert list(table["kind"]) == ["hurt"] * 4 + ["helped"] * 4
    first = table.iloc[0]
    assert first["effect"] == pytest.approx(float(found["effect"].max()))
    token = int(tokens[first["sequence"], first["position"] + 1])
    shown = first["context"].split("«")[1].rstrip("»")
    assert shown == model.tokenizer.decode([token]).replace("\n", "⏎")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: ablate(m, t, "L0H9"), "L0H9.*did you mean 'L0H3'"),
        (lambda m, t: ablate(m, t, "unembed"), "'unembed' cannot be ablated; heads, MLPs, layers"),
        (lambda m, t: ablate(m, t, "L0H1", how="men"), "how must be one of auto, mean.*'mean'"),
        (lambda m, t: ablate(m, t, "L0H1", how="mean_pattern"), "needs pattern"),
        (
            lambda m, t: ablate(m, t, "L0H1", how=Ablation("mean_pattern", pattern=t > 0)),
            r"pattern must be bool \[4, 11\]",
        ),
        (
            lambda m, t: ablate(m, t, "L0H1", how=Ablation(reference=t[:, :7])),
            "sequences of 7 tokens",
        ),
        (
            lambda m, t: ablate(m, t, "L0H1", how=Ablation(reference=t + 40)),
            "reference.*between 0 and 49",
        ),
        (lambda m, t: ablate_path(m, t, "L1H1 -> L0H0.K"), "runs backwards"),
        (lambda m, t: ablate_path(m, t, "L0H1 -> L1H7.K"), "L1H7.*does not exist"),
        (lambda m, t: ablate_path(m, t, "L0H1 -> L1H1"), "through what.*Q, K, V"),
        (lambda m, t: ablate_path(m, t, "L0H1"), "paths must be edges"),
        (lambda m, t: keep_only(m, t, "L0H1", outside="mlps"), "outside must be one of heads, all"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(native(), some_tokens())


def test_what_cannot_be_done_is_refused():
    tokens = some_tokens()
    with pytest.raises(ValueError, match="stream of layer 0 is not.*a norm after attention"):
        ablate_path(GENERIC_MODELS["wrapped_gemma2"](), tokens, "L0H1 -> L1H1.K")


def padded_tokens() -> torch.Tensor:
    tokens = torch.randint(1, 48, (8, 16), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate([16, 5, 8, 4, 14, 6, 10, 7]):
        tokens[row, length:] = 49
    return tokens


@pytest.mark.parametrize("how", ["mean", "mean_position", "resample"])
def test_replacements_never_come_from_padding(how):
    """Position 14 of the first sequence has losses, and no other sequence is as long."""
    other = native()
    with torch.no_grad():
        row = torch.randn(16, generator=torch.Generator().manual_seed(3))
        other.embed._modules["_original_component"].weight[49] = row
    found = [
        ablate(model, padded_tokens(), ["L0H1", "L1H2"], how=how, pad_id=49)["loss"].values
        for model in (native(), other)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert np.isfinite(found[0]).sum() == sum([15, 4, 7, 3, 13, 5, 9, 6])


@pytest.mark.parametrize("same", [True, False])
def test_donors_are_real_and_other_sequences(same):
    real = np.arange(15) < np.array([15, 4, 7, 3, 13, 5, 9, 6])[:, None]
    reference = real if same else real[2:6]
    rows, places = donors(real, reference, same, seed=0)
    own = np.arange(8)[:, None]
    assert reference[rows, places][real].all()
    assert not same or (rows.numpy() != own)[real].all()
    moved = (places.numpy() != np.arange(15)) & real
    longest = reference.sum(1).max() if not same else 13  # the first has no other beyond
    assert (np.nonzero(moved)[1] >= longest).all()


def test_mean_position_needs_a_reference_at_every_position():
    tokens = padded_tokens()
    with pytest.raises(ValueError, match="reference has nothing but padding at position 9, where"):
        ablate(
            native(),
            tokens,
            "L0H1",
            how=Ablation("mean_position", reference=tokens[[1, 6]]),
            pad_id=49,
        )


@pytest.mark.skipif(
    not has_hooked_transformer(), reason="this TransformerLens has no HookedTransformer"
)
def test_ungrouped_keys_and_values_give_the_paths_of_their_group():
    model, tokens = hooked(n_key_value_heads=2), some_tokens()
    expected = [
        ablate_path(model, tokens, f"L0H1 -> L1H2.{through}", how="zero")["effect"].values
        for through in "QKV"
    ]
    mask = torch.ones(4, 11, dtype=torch.bool)
    attributed = ls.edge_attribution(model, tokens, mask)["effect"].values
    model.set_ungroup_grouped_query_attention(True)
    for through, effect in zip("QKV", expected, strict=True):
        found = ablate_path(model, tokens, f"L0H1 -> L1H2.{through}", how="zero")["effect"].values
        np.testing.assert_allclose(found, effect, atol=1e-6)
        assert np.abs(effect).max() > 1e-3
    again = ls.edge_attribution(model, tokens, mask)["effect"].values
    np.testing.assert_allclose(again, attributed, atol=1e-5)


def answer_logits(model, tokens, hooks=()):
    with torch.no_grad():
        logits = model.run_with_hooks(tokens[:, :-1], return_type="logits", fwd_hooks=list(hooks))
    return logits[:, -1]


def test_a_metric_at_the_answer_is_that_of_hooks_written_by_hand():
    model, tokens = native(attn_only=False), some_tokens()
    rows = torch.arange(4)
    wrong = torch.tensor([3, 1, 4, 1])
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, -1] = True

    def difference(logits):
        return (logits[rows, tokens[:, -1]] - logits[rows, wrong]).numpy()

    def zero(z, hook):
        z = z.clone()
        z[:, :, 1] = 0
        return z

    found = ablate(model, tokens, "L0H1", how="zero", metric=ls.LogitDifference(wrong), mask=mask)
    before = difference(answer_logits(model, tokens))
    after = difference(answer_logits(model, tokens, [("blocks.0.attn.hook_z", zero)]))
    last = found.isel(position=-1)
    np.testing.assert_allclose(last["base_logit_difference"], before, atol=1e-5)
    np.testing.assert_allclose(last["logit_difference"], after, atol=1e-5)
    np.testing.assert_allclose(last["effect"], after - before, atol=1e-5)
    assert np.isnan(found["effect"].values[:, :-1]).all()
    assert (found.attrs["units"], found.attrs["cost_sign"]) == ("logits", -1)
    path = ablate_path(model, tokens, "L1H1 -> logits", how="zero", metric=ls.Accuracy(), mask=mask)
    assert set(np.unique(path["accuracy"].values[:, -1])) <= {0.0, 1.0}
    table = affected_tokens(found.assign_coords(text=found["token_id"].astype(str)), n=2)
    hurt = table[table["kind"] == "hurt"]["effect"]
    assert float(hurt.iloc[0]) == pytest.approx(float(last["effect"].min()))


@pytest.mark.parametrize("node", ["L0H1", "L0MLP"])
def test_interchange_puts_in_what_the_other_prompt_of_a_pair_has(node):
    model, tokens, other = native(attn_only=False), some_tokens(), some_tokens(seed=1)
    place = "blocks.0.attn.hook_z" if node == "L0H1" else "blocks.0.hook_mlp_out"
    kept, where = {}, torch.tensor([2, 5, 3, 7])
    with torch.no_grad():
        model.run_with_hooks(other[:, :-1], fwd_hooks=[(place, lambda x, hook: kept.update(x=x))])

    def put(x, hook):
        x = x.clone()
        for row, position in enumerate(where.tolist()):
            if node == "L0H1":
                x[row, position, 1] = kept["x"][row, position - 1, 1]
            else:
                x[row, position] = kept["x"][row, position - 1]
        return x

    swap = Ablation("interchange", reference=other, positions=where, reference_positions=where - 1)
    found = ablate(model, tokens, node, how=swap)
    with torch.no_grad():
        logits = model.run_with_hooks(
            tokens[:, :-1], return_type="logits", fwd_hooks=[(place, put)]
        )
    right = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    np.testing.assert_allclose(found["loss"], right.numpy(), atol=1e-5)
    everywhere = ablate(model, tokens, node, how=Ablation("interchange", reference=other))
    assert np.abs(everywhere["loss"] - found["loss"]).max() > 1e-3
    itself = ablate(model, tokens, node, how=Ablation("interchange", reference=tokens.clone()))
    np.testing.assert_allclose(itself["effect"], 0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_observables_of_every_architecture_are_those_of_plain_hooks(name):
    """A head written out of the first layer, and what the logits at the answers then are."""
    model, tokens = make(name), some_tokens()
    rows, places, right, wrong = torch.arange(4), torch.tensor([3, 5, 10, 8]), [7] * 4, [9] * 4
    mask = torch.zeros(4, 12, dtype=torch.bool)
    mask[rows, places + 1] = True

    def zero(z, hook):
        z = z.clone()
        z[:, :, 1] = 0
        return z

    with torch.no_grad():
        clean = model(tokens[:, :-1], return_type="logits")[rows, places].double()
        logits = model.run_with_hooks(
            tokens[:, :-1], return_type="logits", fwd_hooks=[("blocks.0.attn.hook_z", zero)]
        )[rows, places].double()
    p, q = (x.log_softmax(-1) for x in (clean, logits))
    want = [
        (ls.LogitDifference(wrong, right), logits[:, 7] - logits[:, 9]),
        (ls.Probability([[7, 9]] * 4), q.exp()[:, [7, 9]].sum(-1)),
        (ls.Accuracy(), (logits.argmax(-1) == tokens[rows, places + 1]).double()),
        (ls.Divergence(), (p.exp() * (p - q)).sum(-1)),
    ]
    for observable, value in want:
        found = ablate(model, tokens, "L0H1", how="zero", metric=observable, mask=mask)
        got = found[observable.name].values[rows, places]
        np.testing.assert_allclose(got, value.numpy(), atol=1e-6 * max(1, float(value.abs().max())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(how="interchange"), "needs reference, one prompt for each of the 4.*got none"),
        (
            dict(how=Ablation("interchange", reference=some_tokens(3))),
            "each of the 4 in tokens; got 3",
        ),
        (
            dict(how=Ablation(positions=[1, 2])),
            r"positions must be positions \[sequence\] or",
        ),
        (
            dict(how=Ablation(positions=[1, 2, 3, 11])),
            "positions must lie between 0 and 10, .* got 11",
        ),
        (
            dict(
                how=Ablation(
                    "interchange", reference=some_tokens(), reference_positions=[1, 1, 1, 1]
                )
            ),
            "reference_positions needs positions",
        ),
        (dict(metric=lambda logits, sites: logits), "must return one number for each site"),
        (dict(metric=ls.LogitDifference(50)), "wrong has the token id 50; the model predicts"),
    ],
)
def test_what_does_not_fit_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ablate(native(), some_tokens(), "L0H1", **options)


def _on_the_last_sequence(fn):
    """A hook that leaves the first sequences of a batch alone, as one on rare tokens does."""

    def hook(value, hook):
        value = value.clone()
        value[3:] = fn(value[3:])
        return value

    return hook


@pytest.mark.parametrize("place", ["attn.hook_q", "hook_attn_out"])
def test_hooks_on_some_sequences_are_seen_before_paths_are_computed_around_them(place):
    model, tokens = native(), some_tokens()
    layer = 1 if place == "attn.hook_q" else 0
    point = dict(model.hook_dict)[f"blocks.{layer}.{place}"]
    point.add_hook(_on_the_last_sequence(lambda value: 0 * value))
    with pytest.warns(UserWarning, match="hooks are attached"), pytest.raises(
        ValueError, match=f"are the hooks at blocks.{layer}.* the reason"
    ):  # fmt: skip
        ablate_path(model, tokens, "L0H1 -> L1H0.Q")


def test_norms_with_hooks_in_them_are_not_frozen_in_part():
    model, tokens = native(), some_tokens()
    point = dict(model.hook_dict)["blocks.1.ln1.hook_normalized"]
    point.add_hook(_on_the_last_sequence(lambda value: 0 * value + 1))
    with pytest.warns(UserWarning, match="hooks are attached"), pytest.raises(
        ValueError, match="frozen_norm: hooks are attached at blocks.1.ln1"
    ):  # fmt: skip
        ablate(model, tokens, "L0H1", how=Ablation(frozen_norm=True))


@pytest.mark.parametrize("name", [n for n in MODELS if n in ("hooked_mlp", "native_mlp")])
def test_norms_are_frozen_alike_in_every_batch(monkeypatch, name):
    model, tokens = make(name), some_tokens(6)
    whole = ablate(model, tokens, "L0H1", how=Ablation(frozen_norm=True))
    monkeypatch.setattr("lens_slt.circuits.runs.MOST_LOGITS", 2 * 50 * 11)
    batched = ablate(model, tokens, "L0H1", how=Ablation(frozen_norm=True))
    alone = ablate(model, tokens[4:5], "L0H1", how=Ablation("zero", frozen_norm=True))
    zeroed = ablate(model, tokens, "L0H1", how=Ablation("zero", frozen_norm=True))
    np.testing.assert_allclose(batched["loss"], whole["loss"], atol=1e-5)
    np.testing.assert_allclose(zeroed["loss"][4], alone["loss"][0], atol=1e-5)


@pytest.mark.skipif("hooked_attn_only" not in MODELS, reason="needs HookedTransformer")
@pytest.mark.parametrize("switch", ["set_use_split_qkv_input", "set_use_attn_in"])
def test_norms_that_are_called_for_every_head_are_not_frozen(switch):
    model = make("hooked_attn_only")
    getattr(model, switch)(True)
    with pytest.raises(ValueError, match=r"blocks.0.ln1 is called for parts.*switch"):
        ablate(model, some_tokens(), "L0H1", how=Ablation(frozen_norm=True))


def test_a_single_sequence_has_no_other_to_take_values_from():
    model, tokens = native(), some_tokens()
    with pytest.raises(ValueError, match="resample.*only one"):
        ablate(model, tokens[:1], "L0H1", how="resample")
    alone = ablate(model, tokens[:1], "L0H1", how=Ablation("resample", reference=tokens[1:2]))
    pair = ablate(model, tokens[:2], "L0H1", how="resample")
    np.testing.assert_allclose(alone["loss"][0], pair["loss"][0], atol=1e-5)


@pytest.mark.skipif("hooked_attn_only" not in MODELS, reason="needs HookedTransformer")
def test_tokens_that_the_model_does_not_predict():
    model = hooked(d_vocab_out=20)
    tokens = some_tokens() % 20
    plain = ablate(model, tokens, "L0H1")
    with pytest.raises(ValueError, match=r"tokens\[0, 3\] is 30.*d_vocab_out is 20"):
        ablate(model, tokens.index_fill(1, torch.tensor([3]), 30), "L0H1")
    padded = torch.cat([tokens, torch.full((4, 5), 49)], dim=1)
    with_padding = ablate(model, padded, "L0H1", pad_id=49)
    np.testing.assert_allclose(with_padding["loss"][:, :11], plain["loss"], atol=1e-5)


@pytest.mark.parametrize("name", ["L01H0", "L1H00", "L１H0"])
def test_a_head_has_one_name_only(name):
    model, tokens = native(), some_tokens()
    for call in (ablate, keep_only, knock_in):
        with pytest.raises(ValueError, match="is not a component.*did you mean"):
            call(model, tokens, name)
    with pytest.raises(ValueError, match="edge source must be a head"):
        ablate_path(model, tokens, f"{name} -> logits")


@pytest.mark.parametrize("pattern", [np.full((4, 11), np.nan), np.full((4, 11), "False")])
def test_patterns_are_true_or_false(pattern):
    with pytest.raises(TypeError, match="pattern must be bool"):
        ablate(native(), some_tokens(), "L0H1", how=Ablation("mean_pattern", pattern=pattern))


def test_nothing_that_was_asked_for_is_left_out():
    model, tokens = native(), some_tokens()
    with pytest.raises(ValueError, match="paths must be edges; L1H2 in .* is none"):
        ablate_path(model, tokens, "L0H1 -> logits; L1H2")
    found = ablate(model, tokens, (name for name in ("L0H1", "L1H2")))
    assert found.attrs["intervention"] == "mean ablation of L0H1, L1H2"
    np.testing.assert_array_equal(found["loss"], ablate(model, tokens, "L0H1,L1H2")["loss"])


@pytest.mark.parametrize("seed", ["a", -1, 1.5])
def test_seeds_are_integers(seed):
    with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
        ablate(native(), some_tokens(), "L0H1", how=Ablation("resample", seed=seed))


def test_the_seed_of_a_curve_chooses_the_donors_of_resample():
    """Of a trained model, for which losing its heads costs something."""
    model, tokens = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=12, length=24)
    pattern = np.ones((12, 23), bool)
    pattern[:, ::2] = False
    losses = []
    for seed in (3, 4):
        resample = Ablation("resample", seed=seed)
        kept = ls.keep_only(model, tokens, "L0H1", how=resample)
        empty = ls.ablate(model, tokens, "heads", how=resample)
        gone = (empty["loss"] - kept["loss"]).values[pattern].sum()
        share = gone / empty["effect"].values[pattern].sum()
        curve = ls.faithfulness_curve(
            model, tokens, pattern, ["L0H1"], how="resample", n_random=1, seed=seed
        )
        assert float(curve["faithfulness"].sel(size=1)) == pytest.approx(share, abs=1e-4)
        losses.append(kept["loss"].values)
    assert np.abs(losses[0] - losses[1]).max() > 1e-3


@pytest.mark.parametrize("through", ["K", "V"])
def test_heads_of_a_group_read_one_path(through):
    """Whichever of them an edge names, and in whatever order several do."""
    model, tokens = native(n_heads=4, n_key_value_heads=2), some_tokens(8)

    def effect(text: str) -> np.ndarray:
        return ls.ablate_path(model, tokens, text)["effect"].values

    first, second = (f"L0H1 -> L1H{h}.{through}" for h in (2, 3))
    np.testing.assert_array_equal(effect(first), effect(second))
    together = effect(f"L0H1 -> L1H2.{through}; L0H2 -> L1H2.{through}")
    np.testing.assert_array_equal(effect(f"{first}; L0H2 -> L1H3.{through}"), together)
    np.testing.assert_array_equal(effect(f"L0H2 -> L1H2.{through}; {second}"), together)
    assert np.abs(together - effect(first)).max() > 1e-4
    runs = Runs(adapt(model), tokens)
    others = other_paths(Edge("L0H1", "L1H3", through), (), runs, 99, 0).members
    losses = [runs.loss(paths=one).tobytes() for one in others]
    assert len(set(losses)) == len(losses)
    contrast = Contrast(runs.base, runs.real)
    for head in range(4):  # every head of a group is as good a name of its path as the first
        hypothesis = ls.circuit(f"L0H1 -> L1H{head}.{through}", "all")
        case = Case(hypothesis, runs, contrast, 0.1, 20, 0)
        kept, empty = case.along(case.own_paths), case.along(frozenset())
        assert len(case.own_paths) == 1
        assert np.abs(kept - empty).max() > 1e-4


def test_no_hypotheses_are_no_trials():
    mask = np.ones((8, 23), bool)
    tokens = ls.load_tokens("mix", n_sequences=8, length=24)
    model = ls.load_model("attn-1l")
    assert ls.cross_check(model, tokens, [], patterns=mask, progress=False) == []


def test_messages_name_what_was_passed():
    model, tokens = native(), some_tokens(16)
    with pytest.raises(ValueError, match=r"^paths: 'L0H9' does not exist"):
        ablate_path(model, tokens, "L0H9 -> L1H2.K")
    mask = np.ones((len(tokens), tokens.shape[1] - 1), bool)
    mask[:, ::2] = False
    with pytest.raises(ValueError, match=r"^ranking: 'L0H9' does not exist"):
        ls.faithfulness_curve(model, tokens, mask, ["L0H9"])
    with pytest.raises(ValueError, match=r"^components: 'L0H9' does not"):
        ablate(model, tokens, "L0H9")
