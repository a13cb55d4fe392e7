"""The three ways to evaluate a component agree, and their gradients are gradients."""

from __future__ import annotations

import hashlib

import pytest
import torch

from lens_slt.models.adapter import adapt, copy_weights
from lens_slt.models.components import parse_components
from lens_slt.models.leaves import padding_token
from lens_slt.models.loss import ReferenceState
from lens_slt.models.prefix import Batch
from lens_slt.models.suffix import ENGINES, make_groups, mean_weight, prefix_for
from tests.tiny_models import GENERIC_MODELS, TINY_MODELS, has_hooked_transformer, hooked, native

needs_hooked = pytest.mark.skipif(
    not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer"
)
NAMES = [
    pytest.param(name, marks=needs_hooked if name.startswith("hooked") else ())
    for name in TINY_MODELS
]


def batch_for(model, masked: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(2, model.d_vocab, (5, 18), generator=generator)
    padding = padding_token(model.module)
    if padding is not None:  # torch drops the gradient of its row of the embedding
        tokens[tokens == padding] = (padding + 1) % model.d_vocab
    mask = torch.rand(5, 17, generator=generator) > (0.2 if masked else -1)
    return Batch(tokens, mean_weight(mask, float(mask.sum()) / len(mask)).to(model.dtype))


def evaluate(model, names, engine, batch, *, gradient=True, chunk=None, chains=2):
    """Component -> (paired losses [chain, N], gradient [chain, parameter], path)."""
    weights = copy_weights(model)
    groups = make_groups(model, weights, parse_components(names, model), engine)
    prefix = prefix_for(model, weights, groups, batch)
    found = {}
    for group in groups:
        star = group.suffix.star()
        rows = []
        for i, component in enumerate(group.components):
            seed = int.from_bytes(hashlib.sha1(component.name.encode()).digest()[:4], "big")
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(chains, star.shape[1], generator=generator).to(star)
            rows.append(star[i] + 0.1 * noise)
        loss, grad = group.suffix.losses(torch.stack(rows), prefix, gradient=gradient, chunk=chunk)
        for i, component in enumerate(group.components):
            g = None if grad is None else grad[i]
            found[component.name] = (loss[i] - prefix.base_loss, g, group.path)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_engines_agree(name):
    model = adapt(TINY_MODELS[name]())
    names = ["L0H1", "L0H2", "L1H0", "L1", "embed", "full", "L0H3+L1H3"]
    names += [] if model.attn_only else ["L0MLP"]
    names += [] if model.tied_embeddings else ["unembed"]
    batch = batch_for(model)
    results = {engine: evaluate(model, names, engine, batch, chains=1) for engine in ENGINES}
    assert results["auto"]["L1H0"][2] in ("low-rank last layer", "batched heads")
    for component, (loss, grad, _) in results["modules"].items():
        for engine in ("auto", "functional"):
            other_loss, other_grad, path = results[engine][component]
            torch.testing.assert_close(other_loss, loss, atol=1e-4, rtol=1e-4, msg=path)
            scale = grad.abs().max()
            assert (other_grad - grad).abs().max() < 1e-4 * scale, (component, path)


@pytest.mark.parametrize("name", ["native_attn_only", "native_mlp", "native_gqa"])
def test_gradient_is_the_finite_difference(name):
    model = adapt(TINY_MODELS[name]().double())
    batch = batch_for(model)
    weights = copy_weights(model)
    for group in make_groups(model, weights, parse_components("L0H1,L1H2,L1", model)):
        prefix = prefix_for(model, weights, [group], batch)
        star = group.suffix.star()[:, None]
        direction = torch.randn(
            star.shape, generator=torch.Generator().manual_seed(0), dtype=star.dtype
        )
        _, grad = group.suffix.losses(star, prefix, gradient=True)
        weight = batch.weight.flatten()

        def mean(v, group=group, prefix=prefix, weight=weight):
            return (group.suffix.losses(v, prefix, gradient=False)[0] * weight).sum(-1)

        step = 1e-5
        difference = (mean(star + step * direction) - mean(star - step * direction)) / (2 * step)
        torch.testing.assert_close((grad * direction).sum(-1), difference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["native_attn_only", "native_mlp", "native_gqa"])
def test_chunks_and_company_do_not_matter(name):
    model = adapt(TINY_MODELS[name]())
    batch = batch_for(model)
    together = evaluate(model, "heads,L0", "auto", batch)
    for component in ("L0H2", "L1H1", "L0"):
        alone = evaluate(model, component, "auto", batch, chunk=7)[component]
        torch.testing.assert_close(alone[0], together[component][0], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(alone[1], together[component][1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_forward_only_gives_the_same_losses(engine):
    model = adapt(native())
    batch = batch_for(model)
    with_gradient = evaluate(model, "heads,L0", engine, batch)
    without = evaluate(model, "heads,L0", engine, batch, gradient=False)
    for component, (loss, _, _) in with_gradient.items():
        torch.testing.assert_close(without[component][0], loss, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["native_attn_only", "native_mlp", "native_gqa", "native_rms"])
def test_logits_at_some_tokens_give_the_losses_there(name, engine):
    model = adapt(TINY_MODELS[name]())
    batch, weights = batch_for(model), copy_weights(model)
    tokens = torch.tensor([2, 0, 11])
    components = parse_components("heads,L0,embed", model)
    for group in make_groups(model, weights, components, engine):
        prefix = prefix_for(model, weights, [group], batch)
        star = group.suffix.star()[:, None].repeat(1, 2, 1)
        noise = torch.randn(star.shape, generator=torch.Generator().manual_seed(0))
        v = star + 0.1 * noise
        loss, _ = group.suffix.losses(v, prefix, gradient=False)
        logits = torch.stack(list(group.suffix.logits(v, prefix, tokens)))
        scores = logits.log_softmax(-1).unflatten(0, v.shape[:2])
        found = -scores.gather(-1, batch.targets[tokens].expand(*v.shape[:2], 3)[..., None])
        torch.testing.assert_close(found[..., 0], loss[..., tokens], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_divergence_from_a_reference(engine):
    """Every engine's loss equals torch's KL divergence of the two models' predictions."""
    model = adapt(native())
    batch = batch_for(model, masked=False)
    generator = torch.Generator().manual_seed(8)
    n_tokens = batch.targets.numel()
    reference = ReferenceState(
        torch.randn(n_tokens, 6, generator=generator),
        torch.randn(6, model.d_vocab, generator=generator),
        torch.randn(model.d_vocab, generator=generator),
    )
    found = evaluate(
        model, "L0H0,L1H0", engine, Batch(batch.tokens, batch.weight, reference), gradient=False
    )
    plain = evaluate(model, "L0H0,L1H0", "modules", batch, gradient=False)
    assert not torch.allclose(found["L1H0"][0], plain["L1H0"][0])
    log_p = reference.log_probs(slice(None))
    weights = copy_weights(model)
    groups = make_groups(model, weights, parse_components("L0H0", model), engine)
    prefix = prefix_for(model, weights, groups, Batch(batch.tokens, batch.weight, reference))
    with torch.no_grad():
        ours = model.module(batch.inputs, return_type="logits").log_softmax(-1).flatten(0, 1)
    expected = torch.nn.functional.kl_div(ours, log_p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(prefix.base_loss, expected, atol=1e-4, rtol=1e-4)


def test_generic_models_run_through_their_own_blocks():
    name = "native_logit_cap"
    model = adapt(GENERIC_MODELS[name]())
    assert model.architecture is None
    found = evaluate(model, "L0H0,full", "auto", batch_for(model))
    assert found["L0H0"][2] == "the model's own blocks"
    with pytest.raises(ValueError, match="engine='functional' cannot run this model: .*soft cap"):
        evaluate(model, "L0H0", "functional", batch_for(model))


def test_engine_names():
    model = adapt(native())
    with pytest.raises(ValueError, match="engine must be one of auto, functional, modules; got"):
        evaluate(model, "L0H0", "fast", batch_for(model))


@needs_hooked
def test_last_layer_head_before_an_mlp_is_not_low_rank():
    model = adapt(hooked(attn_only=False))
    assert evaluate(model, "L1H0", "auto", batch_for(model))["L1H0"][2] == "batched heads"
