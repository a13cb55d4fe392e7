"""Weighted losses, short outputs and long sequences, against plain autograd and by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.models.adapter import adapt
from lens_slt.models.suffix import ENGINES
from lens_slt.sampling.prepare import prepare
from tests.plain_losses import plain_losses
from tests.tiny_models import has_hooked_transformer, hooked, native

SHORT = ls.Settings(chains=2, draws=6, burn_in=3, batch_size=4, gamma=50.0)
TOKENS = torch.randint(0, 50, (8, 12), generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.rand(8, 11, generator=torch.Generator().manual_seed(1))
WEIGHTS[:, ::3] = 0
LAST = torch.zeros(8, 12, dtype=torch.bool)
LAST[:, -1] = True
MODELS = {
    "attn_only": lambda: native(),
    "mlp": lambda: native(attn_only=False),
    "shared_keys": lambda: native(n_key_value_heads=2, normalization_type=None),
    "30 outputs": lambda: native(d_vocab_out=30),
    "60 outputs": lambda: native(d_vocab_out=60, attn_only=False),
    "context 11": lambda: native(n_ctx=11),
    "hooked": lambda: hooked(d_vocab_out=30, n_ctx=11, normalization_type="RMS"),
}


def target_of(make, components, engine="auto", tokens=TOKENS, settings=SHORT, **options):
    """What ``sample`` would run."""
    arguments = {"weights": None, "mask": None, "pad_id": None, "probes": None, "device": None}
    return prepare(
        make(), tokens, components, settings=settings, engine=engine, **(arguments | options)
    ).target


def moved(target):
    """Displacements of every component, the same whatever the engine, ``[component, 1, P]``."""
    found = []
    for members in target.groups:
        rows = []
        for name, star in zip(members.names, members.star, strict=True):
            generator = torch.Generator().manual_seed(sum(name.encode()))
            rows.append(0.1 * torch.randn(star.shape, generator=generator))
        found.append(torch.stack(rows)[:, None])
    return found


def parts_of(target):
    return [(g, tuple(range(len(members.names)))) for g, members in enumerate(target.groups)]


def on_batch(target, u, index):
    """Paired losses and gradients of all groups on given sequences."""
    evaluate = target.on_batch(target.data.batch(torch.as_tensor(index)), parts_of(target))
    found = [evaluate(part, x, gradient=True) for part, x in zip(parts_of(target), u, strict=True)]
    return [loss for loss, _ in found], [gradient for _, gradient in found]


def mean(loss, weight):
    return float((loss * weight).sum() / weight.sum())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_are_those_of_plain_autograd(name, engine):
    if name == "hooked" and not has_hooked_transformer():
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    make = MODELS[name]
    d_vocab_out = adapt(make()).d_vocab_out
    tokens, weights = TOKENS.clone(), WEIGHTS.clone()
    tokens[:, -1] = torch.arange(8) % d_vocab_out + max(0, d_vocab_out - 50)
    weights[tokens[:, 1:] >= d_vocab_out] = 0
    weights[:, -1] = 1
    components = ["L0H1", "L1H2", "L1", "embed", "unembed", "full"]
    target = target_of(make, components, engine, tokens, weights=3 * weights)
    u = moved(target)
    losses, gradients = on_batch(target, u, range(8))
    whole = target.everything()
    everything = [whole(p, x, gradient=False)[0] for p, x in zip(parts_of(target), u, strict=True)]
    share = weights / weights.sum()
    n_seen = 0
    for i, members in enumerate(target.groups):
        for j, component in enumerate(members.names):
            star, _ = plain_losses(make, tokens, component, members.star[j], share)
            loss, gradient = plain_losses(
                make, tokens, component, members.star[j] + u[i][j, 0], share
            )
            expected = mean(loss, weights) - mean(star, weights)
            assert abs(expected) > 1e-3
            assert float(losses[i][j, 0]) == pytest.approx(expected, abs=1e-5)
            assert float(everything[i][j, 0]) == pytest.approx(expected, abs=1e-5)
            error = (gradients[i][j, 0] - gradient).abs().max() / gradient.abs().max()
            assert error < 1e-5, (component, target.suffixes[i].path)
            n_seen += 1
    assert n_seen == len(components)


def test_minibatches_are_unbiased_where_sequences_weigh_differently():
    tokens, weights = TOKENS[:5], WEIGHTS[:5] * torch.tensor([1.0, 0.1, 5.0, 0.5, 2.0])[:, None]
    target = target_of(native, "L1H2", tokens=tokens, weights=weights)
    u = moved(target)
    pairs = [on_batch(target, u, c) for c in _pairs(5)]
    losses = torch.stack([loss[0] for loss, _ in pairs])
    gradients = torch.stack([gradient[0] for _, gradient in pairs])
    whole, gradient = on_batch(target, u, range(5))
    assert losses.std() > 0.1 * whole[0].abs()
    torch.testing.assert_close(losses.mean(0), whole[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients.mean(0), gradient[0], rtol=1e-4, atol=1e-6)


def _pairs(n):
    return list(combinations(range(n), 2))


def run(model=None, tokens=TOKENS, components="L0H1,L1H2", settings=SHORT, **options):
    model = native() if model is None else model
    return ls.sample(model, tokens, components, settings=settings, progress=False, **options)


def loss_of(draws):
    return draws["posterior"]["paired_loss"].values


@pytest.mark.slow
def test_the_scale_of_weights_does_not_matter():
    expected = loss_of(run(weights=WEIGHTS))
    assert np.array_equal(loss_of(run(weights=1e6 * WEIGHTS.double())), expected)
    assert np.array_equal(loss_of(run(weights=torch.ones(11))), loss_of(run()))
    assert np.abs(expected - loss_of(run())).max() > 0.01


def test_a_mask_of_answers_is_a_weight_of_one_there_and_keeps_the_context():
    by_mask = loss_of(run(mask=LAST))
    assert np.array_equal(by_mask, loss_of(run(weights=LAST[:, 1:])))
    other = TOKENS.clone()
    other[:, 3] = (other[:, 3] + 1) % 50
    assert not np.array_equal(by_mask, loss_of(run(tokens=other, mask=LAST)))


def test_sequences_without_weight_are_left_out():
    weights = WEIGHTS.clone()
    weights[[2, 5]] = 0
    kept = [0, 1, 3, 4, 6, 7]
    expected = loss_of(run(tokens=TOKENS[kept], weights=weights[kept]))
    assert np.array_equal(loss_of(run(weights=weights)), expected)
    weights[kept[:3]] = 0
    with pytest.raises(
        ValueError, match=r"tokens has 3 sequences with a weight above 0, of 8, fewer than a batch"
    ):
        run(weights=weights)


@pytest.mark.parametrize(("n", "batch", "words"), [(8, 9, "8 sequences"), (1, 2, "1 sequence")])
def test_fewer_sequences_than_a_batch(n, batch, words):
    with pytest.raises(ValueError, match=f"tokens has {words}, fewer than a batch of {batch}"):
        run(tokens=TOKENS[:n], settings=SHORT.but(batch_size=batch))


def test_a_probe_has_a_weighted_mean_and_no_losses_where_nothing_counts(tmp_path):
    weights = WEIGHTS.clone()
    weights[3] = 0
    probes = {"plain": TOKENS, "heavy": ls.Probe(TOKENS, weights=10 * weights)}
    draws = run(probes=probes, path=tmp_path / "run")
    found = draws["probes/heavy"]
    share = (weights / weights.max()).numpy()
    np.testing.assert_allclose(found["weight"].values, share, rtol=1e-6)
    assert np.array_equal(np.isnan(found["base_loss"].values), share == 0)
    counts = share > 0
    plain = draws["probes/plain"]["paired_loss"].values[..., counts]
    np.testing.assert_allclose(found["paired_loss"].values[..., counts], plain, atol=1e-6)
    expected = SHORT.n_beta * np.average(plain, axis=-1, weights=share[counts]).mean((1, 2))
    estimates = ls.refined_llc(draws)["probe_llc"]
    np.testing.assert_allclose(estimates.sel(probe="heavy"), expected, rtol=1e-4)
    assert np.abs(estimates.sel(probe="plain") / expected - 1).min() > 1e-3
    again = ls.refined_llc(ls.open_draws(tmp_path / "run"))["probe_llc"]
    np.testing.assert_array_equal(again, estimates)
    assert ls.per_token_llc(draws, "heavy").sizes["token"] == counts.sum()


def test_a_reference_predicts_the_same_words_from_the_same_tokens():
    model, other = native(d_vocab_out=30), native(d_vocab_out=30, n_layers=1)
    probe = torch.cat([TOKENS[:, :-1], TOKENS[:, -1:] % 30], 1)
    options = {"tokens": probe, "mask": LAST}
    probes = {"near": ls.Probe(probe, reference=other, mask=LAST)}
    found = run(model, probes=probes, **options)["probes/near"]["base_loss"].values[:, -1]
    with torch.no_grad():
        log_q, log_p = (m(probe[:, :-1], return_type="logits")[:, -1] for m in (model, other))
        log_q, log_p = log_q.log_softmax(-1), log_p.log_softmax(-1)
    np.testing.assert_allclose(found, (log_p.exp() * (log_p - log_q)).sum(-1), atol=1e-5)
    for wrong, message in (
        (native(), r"reference predicts 50 tokens, the model 30: both need the same tokenizer"),
        (native(d_vocab=60, d_vocab_out=30), r"reference reads 60 tokens, the model 50"),
        (native(d_vocab_out=30, n_ctx=10), r"probes\['near'\] has .* the model's n_ctx is 10"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model, probes={"near": ls.Probe(probe, reference=wrong, mask=LAST)}, **options)


@pytest.mark.parametrize("engine", ["auto", "functional"])
def test_the_half_precision_drift_is_weighted(engine):
    half = SHORT.but(drift_dtype="bfloat16")
    components = ["L0H1", "L1H2", "L1"]
    for weights in (WEIGHTS, LAST[:, 1:]):
        found = []
        for settings in (SHORT, half):
            target = target_of(native, components, engine, settings=settings, weights=weights)
            found.append(on_batch(target, moved(target), range(8)))
        for whole, rounded in zip(found[0][1], found[1][1], strict=True):
            assert rounded.dtype == torch.float32
            assert (rounded - whole).norm() < 0.03 * whole.norm()
            scale = (rounded * whole).sum() / whole.square().sum()
            assert scale == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_estimates_and_calibration_take_weights():
    with pytest.raises(ValueError, match="weights of tokens are 0 everywhere"):
        ls.estimate(native(), TOKENS, weights=torch.zeros(11))
    found = ls.calibrate(
        native(), TOKENS, "L1H2", n_betas=[10.0], gammas=[50.0], settings=SHORT, weights=WEIGHTS,
        progress=False,
    )  # fmt: skip
    draws = run(components="L1H2", weights=WEIGHTS, settings=SHORT.but(n_beta=10.0))
    np.testing.assert_allclose(
        found.evidence["llc"].sel(n_beta=10, gamma=50), ls.refined_llc(draws)["llc"].values
    )


@pytest.mark.parametrize("n", [8, 200])
def test_the_loss_at_the_given_weights_stands_beside_that_of_a_uniform_guess(n, tmp_path):
    """Of 64 sequences if there are more; the standard error is near the jackknife's."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 30, (n, 12), generator=generator)
    weights = torch.rand(n, 11, generator=generator).round(decimals=1)
    model = native(d_vocab_out=30)
    attrs = run(model, tokens, weights=weights, path=tmp_path / "run").attrs
    used = [n * i // min(n, 64) for i in range(min(n, 64))]
    with torch.no_grad():
        scores = model(tokens[used, :-1], return_type="logits").log_softmax(-1).double()
    loss = -scores.gather(-1, tokens[used, 1:, None]).squeeze(-1).numpy()
    w = weights[used].double().numpy()
    mean = np.average(loss, weights=w)
    assert attrs["base_loss"] == pytest.approx(mean, abs=1e-5)
    rows = range(len(used))
    left_out = [np.average(np.delete(loss, i, 0), weights=np.delete(w, i, 0)) for i in rows]
    jackknife = np.std(left_out) * np.sqrt(len(used) - 1)
    assert attrs["base_loss_se"] == pytest.approx(jackknife, rel=0.7 / len(used))
    assert attrs["uniform_loss"] == pytest.approx(np.log(30))
    assert ls.open_draws(tmp_path / "run").attrs["base_loss"] == attrs["base_loss"]


def test_a_single_sequence_has_no_standard_error(tmp_path):
    settings = SHORT.but(batch_size=1)
    run(tokens=TOKENS[:1], settings=settings, path=tmp_path / "run")
    assert np.isnan(ls.open_draws(tmp_path / "run").attrs["base_loss_se"])
