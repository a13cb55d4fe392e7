"""A Gaussian posterior, where E[ΔL] of every sampler is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import lens_slt as ls
from benchmarks.common import llc_of
from benchmarks.potentials import quadratic, quadratic_exact
from lens_slt.sampling.registry import SAMPLERS
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import weighted_mean

N_BETA, GAMMA = 30.0, 200.0
CURVATURES = torch.logspace(-1, 1.3, 40)  # nβ·h from 3 to 600: below and above γ
EXACT = quadratic_exact(CURVATURES, N_BETA, GAMMA)


def draw(curvatures: torch.Tensor = CURVATURES, **changes: object) -> xr.DataTree:
    settings = Settings(chains=64, draws=400, antithetic=False, seed=3).but(**changes)  # type: ignore[arg-type]
    return ls.sample_function(
        quadratic(curvatures), torch.zeros(len(curvatures)), settings=settings
    )


def ula_exact(curvatures: torch.Tensor, epsilon: float) -> float:
    """Unadjusted Langevin: stationary variance 1/(a·(1 − ε·a/4)) where a = nβ·h + γ."""
    a = N_BETA * curvatures + GAMMA
    return float((N_BETA * curvatures / (a * (1 - epsilon * a / 4))).sum() / 2)


@pytest.mark.parametrize(
    ("sampler", "changes", "largest_se"),
    [
        ("lm", {}, 0.01),
        ("lm", {"antithetic": True}, 0.01),
        ("pcn", {"draws": 3000}, 0.015),
    ],
)
def test_sampler_is_exact_on_a_gaussian(sampler, changes, largest_se):
    got = llc_of(draw(sampler=sampler, **changes))
    assert got.se < largest_se * EXACT
    assert abs(got.value - EXACT) < 4 * got.se


def test_importance_is_exact_on_a_gaussian():
    curvatures = CURVATURES[:20]  # where the prior's draws reach
    exact = quadratic_exact(curvatures, N_BETA, GAMMA)
    found = ls.refined_llc(draw(curvatures, sampler="importance"))
    assert float(found["se"][0]) < 0.01 * exact
    assert abs(float(found["llc"][0]) - exact) < 4 * float(found["se"][0])


@pytest.mark.parametrize("antithetic", [True, False])
def test_errors_of_importance_cover_the_truth(antithetic):
    """ΔL is even: both draws of an antithetic pair have the same loss and count as one."""
    curvatures = CURVATURES[:20]
    exact = quadratic_exact(curvatures, N_BETA, GAMMA)
    many = draw(curvatures, sampler="importance", chains=400, draws=200, antithetic=antithetic)
    loss = many["posterior"]["paired_loss"].values[0].astype(float)
    scores = []
    for four in loss.reshape(100, 4, 200):
        weights, refused = SAMPLERS["importance"].draw_weights(four.ravel(), N_BETA)
        assert not refused
        mean, error, ess = weighted_mean(weights, four, np.ones(4, bool), antithetic)
        assert 1 < ess < 800 / (1 + antithetic)
        scores.append((N_BETA * mean - exact) / (N_BETA * error))
    assert 0.8 < np.std(scores) < 1.25  # three standard deviations of that of 100 normals


@pytest.mark.parametrize("step_size", [1e-3, 2.5e-3])
def test_sgld_has_the_bias_of_unadjusted_langevin(step_size):
    biased = ula_exact(CURVATURES, step_size)
    got = llc_of(draw(sampler="sgld", step_size=step_size, burn_in=100))
    assert abs(got.value - biased) < 4 * got.se
    assert biased - EXACT > 8 * got.se  # the test tells the bias from none


@pytest.mark.parametrize("step_size", [0.2 / GAMMA, 0.8 / GAMMA])
def test_lm_has_no_step_size_bias_on_a_gaussian(step_size):
    got = llc_of(draw(step_size=step_size, draws=2000))
    assert got.se < 0.006 * EXACT
    assert abs(got.value - EXACT) < 4 * got.se


def test_antithetic_pairs_share_a_symmetric_loss():
    """ΔL is even here: both chains of a pair have the same loss, and the error must know."""
    pairs = draw(antithetic=True, chains=32)
    loss = pairs["posterior"]["paired_loss"].values[0]
    assert loss[0::2] == pytest.approx(loss[1::2], rel=1e-4)
    single = llc_of(draw(antithetic=False, chains=16))
    assert llc_of(pairs).se == pytest.approx(single.se, rel=0.25)
