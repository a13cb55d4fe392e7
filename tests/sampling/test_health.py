"""Verdicts on synthetic traces whose health is known."""

from __future__ import annotations

import arviz as az
import numpy as np
import pytest
import xarray as xr

from lens_slt.sampling.health import diagnose, independent_units, standard_error
from lens_slt.sampling.settings import Settings

SETTINGS = Settings(gamma=100.0)
N_PARAMETERS = 500


def autoregressive(rng, chains=4, draws=200, mean=0.2, spread=0.05, memory=0.5):
    x = np.zeros((chains, draws))
    kick = rng.normal(size=(chains, draws)) * spread * np.sqrt(1 - memory**2)
    x[:, 0] = rng.normal(size=chains) * spread
    for t in range(1, draws):
        x[:, t] = memory * x[:, t - 1] + kick[:, t]
    return x + mean


def verdicts(loss, distance=None, settings=SETTINGS):
    distance = np.full_like(loss, N_PARAMETERS / SETTINGS.gamma) if distance is None else distance
    dims = ("component", "chain", "draw")
    posterior = xr.Dataset(
        {"paired_loss": (dims, loss[None]), "squared_distance": (dims, distance[None])},
        coords={"component": ["L0H0"], "chain": range(len(loss))},
    )
    return diagnose(posterior, np.array([N_PARAMETERS]), settings)


def test_healthy_chains_are_rarely_accused():
    accused = 0
    for seed in range(100):
        found = verdicts(autoregressive(np.random.default_rng(seed)))
        accused += int((found["verdict"] != "healthy").sum())
    assert accused <= 4  # of 400 chains


@pytest.mark.parametrize(
    ("sampler", "factor", "verdict"),
    [
        ("lm", 1.2, "beyond the prior"),
        ("sgld", 1.2, "beyond the prior"),
        ("lm", 1.05, "healthy"),
        ("rmsprop_sgld", 1.2, "healthy"),  # its noise is not the prior's
    ],
)
def test_chains_beyond_the_prior_are_named_and_kept(sampler, factor, verdict):
    """‖v − v*‖² of the prior: γ⁻¹ times a χ² of as many degrees of freedom as weights."""
    rng = np.random.default_rng(0)
    loss = autoregressive(rng)
    distance = factor * rng.chisquare(N_PARAMETERS, loss.shape) / SETTINGS.gamma
    found = verdicts(loss, distance, SETTINGS.but(sampler=sampler))
    assert (found["verdict"] == verdict).all()
    assert found["used"].all()


def test_few_weights_wander_without_being_accused():
    rng = np.random.default_rng(0)
    distance = 1.15 * N_PARAMETERS / SETTINGS.gamma * rng.gamma(2, 0.5, (4, 200))
    assert (verdicts(autoregressive(rng), distance)["verdict"] == "healthy").all()


@pytest.mark.parametrize("shape", [0.25, 0.5, 5.0])
def test_the_tail_of_a_singular_posterior_is_no_spike(shape):
    """nβ·ΔL of a healthy chain follows a gamma distribution of shape λ."""
    rng = np.random.default_rng(0)
    found = [verdicts(rng.gamma(shape, size=(4, 200))) for _ in range(25)]
    assert sum(int((f["verdict"] == "spiky").sum()) for f in found) <= 1  # of 100 chains


def spoiled(kind):
    x = autoregressive(np.random.default_rng(0))
    distance = np.full_like(x, N_PARAMETERS / SETTINGS.gamma)
    if kind == "diverged":
        x[1, 50:] = np.nan
    elif kind == "diverged far":
        distance[1, 100] *= 11
    elif kind == "spiky":
        x[1, 60] += 3.0
    elif kind == "still rising":
        x[1] += np.linspace(-0.15, 0.15, 200)
    elif kind == "still falling":
        x[1] -= np.linspace(-0.15, 0.15, 200)
    elif kind == "chains disagree":
        x[1] += 0.2
    elif kind == "below start":
        x -= 0.4
    elif kind == "signal below noise":
        x -= 0.2
    return verdicts(x, distance)


@pytest.mark.parametrize(
    "kind",
    ["diverged", "diverged far", "spiky", "still rising", "still falling", "chains disagree"],
)
def test_a_spoiled_chain_is_named_and_excluded(kind):
    found = spoiled(kind)
    word = kind.removesuffix(" far")
    assert found["verdict"].values[0].tolist() == ["healthy", word, "healthy", "healthy"]
    assert found["used"].values[0].tolist() == [True, False, True, True]
    assert found["summary"].values[0] == f"1 of 4 chains {word}"


@pytest.mark.parametrize("kind", ["below start", "signal below noise"])
def test_a_small_mean_is_named_but_kept(kind):
    found = spoiled(kind)
    assert kind in found["verdict"].values[0].tolist()
    assert found["used"].values.all()


def test_heavy_importance_weights_are_refused():
    rng = np.random.default_rng(0)
    settings = SETTINGS.but(sampler="importance", n_beta=100.0)
    light = verdicts(rng.normal(1, 0.001, (4, 200)), settings=settings)
    assert light["used"].values.all()
    heavy = verdicts(rng.exponential(5.0, (4, 200)) ** 2, settings=settings)
    assert not heavy["used"].values.any()
    assert heavy["summary"].values[0].startswith("importance weights too heavy (k̂ = ")


def test_the_standard_error_covers_the_truth():
    """Of 200 autocorrelated data sets, a 95 % interval holds the mean about 190 times."""
    covered = 0
    for seed in range(200):
        x = autoregressive(np.random.default_rng(seed), memory=0.7)
        covered += abs(x.mean() - 0.2) < 1.96 * standard_error(x)
    assert covered >= 180  # 3.3 standard deviations of the binomial below 190


def test_noise_shared_by_all_chains_counts():
    """Chains on the same minibatches: the error is that of one chain, not of four."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(1, 400)).repeat(4, axis=0)
    assert standard_error(shared) == pytest.approx(1 / 20, rel=0.2)
    assert np.asarray(az.mcse(shared, method="mean")).item() < 0.7 * standard_error(shared)


def test_antithetic_pairs_are_one_unit():
    series = np.arange(12.0).reshape(4, 3)
    used = np.array([True, True, False, True])
    units = independent_units(series, used, antithetic=True)
    np.testing.assert_array_equal(units, [series[:2].mean(0), series[3]])
    np.testing.assert_array_equal(independent_units(series, used, False), series[used])
