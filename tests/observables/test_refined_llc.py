"""Refined LLCs from draws whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens_slt as ls
from tests.tiny_models import native


@pytest.fixture(scope="module")
def draws():
    """Eight heads of the shipped model, with probes of every kind."""
    model = ls.load_model("attn-2l")
    tokens = ls.load_tokens("mix", n_sequences=64, length=48)
    probe = ls.load_tokens("code", n_sequences=4, length=32, seed=3)
    return ls.sample(
        model, tokens, "L0H0,L0H1,L1H0,L1H1,L1H2",
        settings=ls.Settings(draws=60, batch_size=8, thin=2),
        probes={
            "code": probe,
            "self": ls.Probe(probe, reference=model),
            "one_layer": ls.Probe(probe, reference=ls.load_model("attn-1l")),
        },
        progress=False,
    )  # fmt: skip


def test_weight_refined(draws):
    table = ls.refined_llc(draws)
    mean = draws["posterior"]["step_loss"].mean(("chain", "draw"))
    np.testing.assert_allclose(table["llc"], 30 * mean, rtol=1e-5)
    assert (table["llc"] > 5 * table["se"]).all()
    assert (draws["health"]["verdict"] == "healthy").all()
    assert (table["chains_used"] == 4).all()


def test_data_refined(draws):
    table = ls.refined_llc(draws)
    losses = draws["probes/code"]["paired_loss"]
    np.testing.assert_allclose(
        table["probe_llc"].sel(probe="code"),
        30 * losses.mean(("chain", "draw", "sequence", "position")),
        rtol=1e-4,
    )
    assert losses.sizes["draw"] == 30


def test_model_refined(draws):
    """Moving away from oneself costs; the divergence from oneself starts at zero."""
    assert np.abs(draws["probes/self"]["base_loss"]).max() < 1e-5
    assert (draws["probes/self"]["paired_loss"].values > -1e-5).all()
    assert draws["probes/one_layer"]["base_loss"].mean() > 0.05
    table = ls.refined_llc(draws)
    assert (table["probe_llc"].sel(probe="self") > 0).all()


def test_diverged_chains_are_not_averaged_in(draws):
    spoiled = draws.copy(deep=True)
    health = spoiled["health"].to_dataset()
    health["used"][0, 2:] = False
    health["used"][1, :] = False
    spoiled["health"] = type(spoiled)(health)
    table = ls.refined_llc(spoiled)
    kept = draws["posterior"]["paired_loss"][0, :2].mean()
    assert float(table["llc"][0]) == pytest.approx(30 * float(kept), rel=1e-5)
    assert table["chains_used"].values[:2].tolist() == [2, 0]
    assert np.isnan(table["llc"][1]) and np.isnan(table["se"][1])


def test_the_pure_prior_has_no_llc_but_a_loss():
    tokens = torch.randint(50, (8, 12), generator=torch.Generator().manual_seed(0))
    settings = ls.Settings(n_beta=0.0, draws=40, batch_size=4)
    table = ls.refined_llc(ls.sample(native(), tokens, "L0H0", settings=settings, progress=False))
    assert float(table["llc"][0]) == 0
    assert abs(float(table["mean_paired_loss"][0])) > 0


@pytest.mark.slow
def test_importance_reweights_towards_the_prior_result():
    """Heads of the shipped model: lm and the exact sampler agree within their errors."""
    model = ls.load_model("attn-2l")
    tokens = ls.load_tokens("code", n_sequences=16, length=48)
    settings = ls.Settings(draws=150, batch_size=16)
    names = ["L0H1", "L1H1"]
    lm = ls.refined_llc(ls.sample(model, tokens, names, settings=settings, progress=False))
    exact = ls.refined_llc(
        ls.sample(
            model, tokens, names, progress=False,
            settings=settings.but(sampler="importance", antithetic=False, draws=400),
        )
    )  # fmt: skip
    combined = np.hypot(lm["se"], exact["se"])
    assert (np.abs(lm["llc"] - exact["llc"]) < 4 * combined).all()
    assert (combined < 0.08 * exact["llc"]).all()


def test_errors_of_the_text_weigh_draws_as_the_sampler_does():
    """Against the weights of the draws themselves: rare draws near the minimum count most."""
    tokens = torch.randint(1, 49, (6, 10), generator=torch.Generator().manual_seed(0))
    settings = ls.Settings(sampler="importance", antithetic=False, draws=60, n_beta=20)
    drawn = ls.sample(
        native(), tokens, "L0H1", settings=settings, probes={"p": tokens}, progress=False
    )
    used = drawn["health"]["used"].values[0].astype(bool)
    loss = drawn["posterior"]["paired_loss"].values[0].astype(float)[used].ravel()
    weight, _ = settings.method.draw_weights(loss, 20.0)
    assert weight.max() > 2 / len(weight)
    each = drawn["probes/p"]["paired_loss"].values[0][used].astype(float).reshape(-1, 6, 9)
    means = np.einsum("d,dsp->s", weight, each) / 9
    error = means.std(ddof=1) / 6**0.5
    found = ls.refined_llc(drawn)["probe_text_se"].item()
    assert found == pytest.approx(20 * error, rel=1e-4)


def test_blocks_have_the_mean_and_the_error(draws):
    """Of the weight-refined and of the data-refined coefficients."""
    table = ls.refined_llc(draws)
    n = table.sizes["block"]
    np.testing.assert_allclose(table["blocks"].mean("block"), table["llc"], rtol=1e-5)
    np.testing.assert_allclose(table["probe_blocks"].mean("block"), table["probe_llc"], rtol=1e-4)
    error = table["blocks"].std("block", ddof=1) / n**0.5
    assert float(np.median(error / table["se"])) == pytest.approx(1, abs=0.5)
