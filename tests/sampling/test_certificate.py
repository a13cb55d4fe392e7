"""The certificate: the coupled virial against closed forms, and its words."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.sampling.certificate import Bias, Virial, certificate, coupled
from lens_slt.sampling.settings import Settings
from tests.made_draws import labelled
from tests.made_targets import MadeTarget, quadratic, run

N_BETA, GAMMA, P = 30.0, 200.0, 24
H = torch.logspace(-1, 1.3, P)  # nβ·h from 3 to 600
A = N_BETA * H + GAMMA
EXACT = float((N_BETA * H / A).sum() / 2)
ROWS, BATCH = 64, 8


def centred_rows(scale):
    """Data whose mean is zero: minibatch gradients h·u + (mean of a batch)."""
    rows = torch.randn(ROWS, P, generator=torch.Generator().manual_seed(0)) * scale
    return rows - rows.mean(0)


def noise_variance(rows):
    """Of the mean of a batch without repeats, per weight."""
    return rows.var(0, unbiased=False) / BATCH * (ROWS - BATCH) / (ROWS - 1)


def measured(rows=None, **options):
    """One component's row of :func:`ls.refined_llc`, 64 chains on a Gaussian."""
    options = {"chains": 64, "draws": 400, "batch_size": BATCH, "burn_in": 60} | options
    settings = Settings(n_beta=N_BETA, gamma=GAMMA, **options)
    data = torch.zeros(1, P) if rows is None else rows
    found = ls.refined_llc(run(MadeTarget([{"a": quadratic(H)}], P, settings, data)))
    return {key: values.values[0] for key, values in found.data_vars.items()}


@pytest.mark.parametrize("step_size", [0.001, 0.004, None])
def test_the_defect_of_lm_on_a_gaussian_is_zero(step_size):
    found = measured(step_size=step_size)
    assert abs(found["defect"]) < 4 * found["defect_se"]
    assert found["defect_se"] < 0.015 * 2 * EXACT
    assert found["certificate"] == "certified"


@pytest.mark.parametrize("step_size", [0.001, 0.003])
def test_the_heat_of_gradient_noise_has_its_closed_form(step_size):
    """(ε/4)·nβ²·tr Cov(g_B), enlarged where ε·a is not small; λ̂ rises by a part of half of it."""
    rows = centred_rows(3.0)
    found = measured(rows, step_size=step_size)
    heat = step_size / 4 * N_BETA**2 * noise_variance(rows) / (1 - step_size * A / 4)
    assert abs(found["defect"] - float(heat.sum())) < 4 * found["defect_se"]
    assert found["defect_se"] < 0.05 * float(heat.sum())
    bias = float((N_BETA * H / A * heat).sum() / 2)
    assert abs(found["llc"] - EXACT - bias) < 4 * found["se"]
    # The share is the largest bias that the defect allows.
    share, share_se = found["defect_share"], found["defect_share_se"]
    assert share + 4 * share_se > bias / (EXACT + bias)
    right = float(heat.sum()) / (2 * (EXACT + bias))
    assert abs(share - right) < 4 * share_se


def test_where_the_heat_sits_in_stiff_directions_the_share_is_the_bias():
    stiff = (N_BETA * H > 2 * GAMMA).float()
    rows = centred_rows(3.0) * stiff
    found = measured(rows, step_size=0.002)
    heat = 0.002 / 4 * N_BETA**2 * noise_variance(rows) / (1 - 0.002 * A / 4)
    bias = float((N_BETA * H / A * heat).sum() / 2)
    true = bias / (EXACT + bias)
    assert true > 0.08
    assert found["defect_share"] == pytest.approx(true, rel=0.5, abs=4 * found["defect_share_se"])
    assert true < found["defect_share"] + 3 * found["defect_share_se"]


@pytest.mark.parametrize("step_size", [1e-3, 2.5e-3])
def test_sgld_adds_the_inflation_of_its_prior_chain(step_size):
    """Stationary variances 1/(a(1 − εa/4)) of the chain and 1/(γ(1 − εγ/4)) of its prior's."""
    found = measured(sampler="sgld", step_size=step_size, burn_in=100, draws=600)
    own, prior = 1 / (1 - step_size * A / 4), 1 / (1 - step_size * GAMMA / 4)
    biased = float((N_BETA * H / A * own).sum() / 2)
    assert abs(found["llc"] - biased) < 4 * found["se"]
    defect = float((own - prior).sum())
    assert abs(found["defect"] - defect) < 4 * found["defect_se"]
    assert found["defect_se"] < 0.1 * defect
    share = defect / (2 * biased) + prior - 1
    assert abs(found["defect_share"] - share) < 4 * found["defect_share_se"]
    assert share > 1 - EXACT / biased  # no bias is larger than what is allowed for
    assert found["certificate"] != "certified"


def test_sgld_with_a_tiny_step_is_certified():
    found = measured(sampler="sgld", step_size=2e-4, burn_in=400, draws=800)
    assert found["certificate"] == "certified"
    assert abs(found["llc"] - EXACT) < 0.05 * EXACT + 4 * found["se"]


def test_a_chain_that_has_not_relaxed_is_not_certified():
    """Many soft directions, at a tenth of the steps that they need: λ̂ is far too low.

    Chain and prior chain both start at the given weights, and are equally far from them all along.
    """
    soft = torch.full((2000,), 0.2)
    settings = Settings(
        n_beta=N_BETA, gamma=GAMMA, step_size=1e-5, burn_in=300, draws=100, chains=8
    )  # fmt: skip
    found = ls.refined_llc(run(MadeTarget([{"a": quadratic(soft)}], 2000, settings)))
    exact = float((N_BETA * soft / (N_BETA * soft + GAMMA)).sum() / 2)
    assert not float(found["llc"][0]) > 0.7 * exact  # or NaN, where every chain is excluded
    assert found["certificate"].values[0] != "certified"
    assert found["verdict"].values[0] != "healthy"


# Words -------------------------------------------------------------------------------------------

NO_PRIOR = (float("nan"), float("nan"))


def virial(share=0.0, share_se=0.01, defect=None, defect_se=None, size=10.0):
    defect = share * size if defect is None else defect
    return Virial(
        size, defect, share_se * size if defect_se is None else defect_se, share, share_se
    )


@pytest.mark.parametrize(
    ("given", "bias", "word", "why"),
    [
        (virial(0.03), None, "certified", "defect 0.3 ± 0.1"),
        (virial(-0.03), None, "certified", "defect -0.3 ± 0.1"),
        (virial(0.5, 0.1, size=0.1), None, "certified", "defect 0.05 ± 0.01"),  # λ̂ off by 0.1
        (virial(0.085, 0.01), None, "not certified", "too few draws to tell"),
        (virial(0.0, 0.2), None, "not certified", "too few draws to tell"),
        (virial(0.3, 0.01), None, "not certified", "the defect allows a bias of 30 %"),
        (virial(-0.3, 0.01), None, "not certified", "the defect allows a bias of 30 %"),
        (virial(float("nan"), float("nan"), 5.0, 0.1), None, "not certified", None),
        (virial(0.3, 0.01), Bias(0.02, 0.02, 0.05), "certified", "changes λ̂ by .2 %"),
        (virial(0.3, 0.01), Bias(0.2, 0.02, 0.05), "biased by about 20 %", "half the step"),
        (virial(0.3, 0.01), Bias(-0.2, 0.02, 0.05), "biased by about -20 %", "half the step"),
        (virial(0.3, 0.01), Bias(0.2, 0.02, 0.3), "biased by more than 20 %", "half the step"),
        (virial(0.3, 0.01), Bias(0.1, 0.2, 0.05), "not certified", "too few .* also at half the"),
        (virial(0.3, 0.01), Bias(0.02, 0.02, 0.3), "not certified", "half the step has a defect"),
        (virial(0.3, 0.01), Bias(float("nan"), 0.1, 0.0), "not certified", "bias of 30 %"),
        (virial(*[float("nan")] * 4), None, "not certified", "no finite defect"),
        (None, None, "certified", "no step-size bias"),
    ],
)  # fmt: skip
def test_words(given, bias, word, why):
    found = certificate(given, bias, NO_PRIOR, 0.2)
    assert re.fullmatch(word, found[0]), found
    assert why is None or re.search(why, found[1]), found


@pytest.mark.parametrize(
    ("posterior", "prior", "alarm"),
    [
        (0.5, (0.3, 0.01), True),
        (0.31, (0.3, 0.001), False),  # above, but by less than a tenth
        (0.5, (0.3, 0.1), False),  # the prior's loss is not known well enough
        (0.2, (0.3, 0.01), False),
        (0.5, NO_PRIOR, False),
    ],
)
def test_a_posterior_loses_no_more_than_its_prior(posterior, prior, alarm):
    word, why = certificate(virial(0.0), None, prior, posterior)
    assert (word == "not certified") == alarm
    assert ("chains are too hot" in why) == alarm


def made(loss=None, settings=None, **options):
    """The health of one component: healthy chains of 200 draws, unless said otherwise."""
    settings = settings or Settings()
    rng = np.random.default_rng(0)
    loss = 0.2 + 0.02 * rng.normal(size=(1, 4, 200)) if loss is None else loss
    return labelled(loss, ["L0H0"], settings.but(draws=loss.shape[2]), **options)["health"]


def defect_of(mean, spread):
    return {"defect": mean + spread * np.random.default_rng(1).normal(size=(1, 4, 200))}


def test_a_component_that_is_not_certified_is_not_healthy():
    """2λ̂ = 12: a defect of 0.2 is 1.7 %, one of 3 is 25 %."""
    for mean, spread, expected in (
        (0.2, 0.3, "healthy"),
        (3.0, 0.3, "not certified: the defect allows a bias of 25 %"),
        (0.2, 30.0, "not certified: too few draws to tell"),
    ):
        found = made(traces=defect_of(mean, spread))
        assert (found["verdict"] == "healthy").all()
        assert found["summary"].values[0] == expected
    biased = {"bias": [0.2], "bias_se": [0.01], "bias_remaining": [0.05]}
    found = made(traces=defect_of(3.0, 0.3), columns=biased)
    assert found["summary"].values[0] == "biased by about 20 %: from a run at half the step"
    hot = {"prior_loss": [0.1], "prior_loss_se": [0.001]}
    assert made(columns=hot)["summary"].values[0].startswith("not certified: the mean loss is 0.")


def test_the_defect_is_that_of_the_chains_that_count():
    traces = defect_of(0.0, 0.3)
    traces["defect"][0, 2:] += 50
    loss = 0.2 + 0.02 * np.random.default_rng(0).normal(size=(1, 4, 200))
    loss[0, 2:, 100:] = np.nan
    found = made(loss, traces=traces)
    assert found["used"].values[0].tolist() == [True, True, False, False]
    assert abs(float(found["defect"][0])) < 0.1
    assert found["certificate"].values[0] == "certified"


def test_samplers_without_an_identity_say_so():
    found = made(settings=Settings(sampler="rmsprop_sgld"))
    assert found["summary"].values[0] == (
        "not certified: no identity for rmsprop_sgld: its preconditioner follows the chain"
    )
    settings = Settings(sampler="rmsprop_sgld", draws=50, chains=2)
    table = ls.refined_llc(run(MadeTarget([{"a": quadratic(H)}], P, settings)))
    assert table["certificate"].values[0] == "not certified"
    assert table["why"].values[0].startswith("no identity for rmsprop_sgld")


def test_an_exact_sampler_needs_draws_that_count():
    """Two hundred draws that remember a hundred others are worth a few."""
    rng = np.random.default_rng(0)
    free = rng.normal(size=(1, 4, 200))
    slow = np.stack([np.convolve(x, np.ones(60) / 60**0.5, "same") for x in free[0]])[None]
    settings = Settings(sampler="pcn")
    assert made(0.2 + 0.02 * free, settings)["certificate"].values[0] == "certified"
    found = made(0.2 + 0.003 * slow, settings)
    assert found["certificate"].values[0] == "not certified"
    assert found["summary"].values[0] != "healthy"


def test_the_control_is_certified():
    """At nβ = 0 the chain is its own prior chain."""
    settings = Settings(n_beta=0.0, gamma=GAMMA, draws=200)
    table = ls.refined_llc(run(MadeTarget([{"a": quadratic(H)}], P, settings)))
    assert abs(float(table["defect"][0])) < 1e-4
    assert table["verdict"].values[0] == "healthy"
    prior = float(H.sum()) / (2 * GAMMA)
    assert float(table["mean_paired_loss"][0]) == pytest.approx(prior, rel=0.1)
    assert float(table["prior_loss"][0]) == pytest.approx(
        prior, abs=4 * float(table["prior_loss_se"][0])
    )


@pytest.mark.parametrize(("chains", "antithetic"), [(1, False), (3, False), (2, True)])
def test_units_of_the_defect(chains, antithetic):
    """Antithetic pairs are one unit, single chains are units of their own."""
    rng = np.random.default_rng(0)
    loss = np.abs(rng.normal(size=(chains, 100)))
    defect = rng.normal(size=(chains, 100))
    settings = Settings(n_beta=30.0, chains=chains, antithetic=antithetic)
    found = coupled(loss, 60 * loss, defect, np.ones(chains, bool), settings, 0.004)
    assert found.defect == pytest.approx(defect.mean())
    spread = defect.mean(0).std() if antithetic else defect.std() / chains**0.5
    assert found.defect_se == pytest.approx(spread / 10, rel=0.5)
    assert found.virial == pytest.approx(60 * loss.mean())


def test_no_finite_chain_has_no_virial():
    nothing = np.full((2, 10), np.nan)
    found = coupled(nothing, nothing, nothing, np.zeros(2, bool), Settings(chains=2), 0.004)
    assert np.isnan(found.defect) and not found.holds and not found.fails
