"""Verdicts on synthetic traces whose health is known."""

from __future__ import annotations

import arviz as az
import numpy as np
import pytest

from lens_slt.sampling.result import dataset
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import independent_units, mean_with_error, standard_error
from tests.made_draws import labelled

SETTINGS = Settings(gamma=100.0)
N_PARAMETERS = 500


def autoregressive(rng, chains=4, draws=200, mean=0.2, spread=0.05, memory=0.5):
    x = np.zeros((chains, draws))
    kick = rng.normal(size=(chains, draws)) * spread * np.sqrt(1 - memory**2)
    x[:, 0] = rng.normal(size=chains) * spread
    for t in range(1, draws):
        x[:, t] = memory * x[:, t - 1] + kick[:, t]
    return x + mean


def verdicts(loss, distance=None, settings=SETTINGS, **traces):
    """The health of one component with these traces ``[chain, draw]``."""
    settings = settings.but(chains=len(loss), draws=loss.shape[1])
    if distance is not None:
        traces["squared_distance"] = distance
    draws = labelled(
        loss[None], ["L0H0"], settings, columns={"n_parameters": [N_PARAMETERS]},
        traces={name: values[None] for name, values in traces.items()},
    )  # fmt: skip
    return dataset(draws, "health")


def wandering(shape):
    """Squared distances as far as the prior's, that move."""
    return N_PARAMETERS / SETTINGS.gamma * np.random.default_rng(1).uniform(0.95, 1.05, shape)


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
    distance = wandering(x.shape)
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
    ["diverged", "diverged far", "still rising", "still falling", "chains disagree"],
)
def test_a_spoiled_chain_is_named_and_excluded(kind):
    found = spoiled(kind)
    word = kind.removesuffix(" far")
    assert found["verdict"].values[0].tolist() == ["healthy", word, "healthy", "healthy"]
    assert found["used"].values[0].tolist() == [True, False, True, True]
    assert found["summary"].values[0] == f"1 of 4 chains {word}"


@pytest.mark.parametrize("kind", ["below start", "signal below noise", "spiky"])
def test_what_would_bias_the_mean_if_it_were_left_out_is_named_but_kept(kind):
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
    assert heavy["certificate"].values[0] == "not certified"
    assert heavy["why"].values[0] == heavy["summary"].values[0]


def test_weights_that_leave_few_draws_are_not_certified():
    """Weights of losses uniform on [0, 6/nβ] leave a third: 2·(1 − e⁻⁶)²/(6·(1 − e⁻¹²))."""
    rng = np.random.default_rng(0)
    settings = SETTINGS.but(sampler="importance", n_beta=10.0, antithetic=False)
    loss = rng.uniform(0, 0.6, (4, 200))
    assert verdicts(loss, settings=settings)["certificate"].values[0] == "certified"
    found = verdicts(loss[:, :50], settings=settings)
    assert found["why"].values[0] in [
        f"only {n} effective draws of an exact sampler" for n in range(60, 73)
    ]


def test_effective_draws_are_those_of_the_table():
    """Antithetic pairs are one unit: what the verdict counts is the ess of the rLLC."""
    rng = np.random.default_rng(0)
    settings = SETTINGS.but(sampler="pcn", chains=4, draws=120)
    loss = autoregressive(rng, draws=120, memory=0.6)
    loss[1::2] = 0.5 * loss[1::2] + 0.5 * loss[::2]
    ess = mean_with_error(loss, loss, np.ones(4, bool), settings)[2]
    why = verdicts(loss, settings=settings)["why"].values[0]
    assert ess < 100 and why == f"only {ess:.0f} effective draws of an exact sampler"


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


def words(found):
    return found["verdict"].values[0].tolist()


def test_a_loss_that_nothing_reaches_has_no_effect():
    """The weights move, every loss equals that at the given weights."""
    found = verdicts(np.zeros((4, 200)))
    assert words(found) == ["no effect"] * 4
    assert found["summary"].values[0] == "no effect"
    assert found["used"].values.all()


def test_chains_that_never_moved_are_excluded():
    x = autoregressive(np.random.default_rng(0))
    x[2] = 0.0
    distance = wandering(x.shape)
    distance[2] = 0.0
    found = verdicts(x, distance)
    assert words(found) == ["healthy", "healthy", "never moved", "healthy"]
    assert found["used"].values[0].tolist() == [True, True, False, True]


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_a_trace_too_short_for_an_error_says_so(draws):
    found = verdicts(autoregressive(np.random.default_rng(0), draws=draws))
    assert words(found) == ["too short"] * 4
    assert found["summary"].values[0] == "too short"
    assert found["used"].values.all()


@pytest.mark.parametrize("draws", [4, 8, 20])
def test_no_short_trace_is_accused_and_none_is_healthy_without_a_certificate(draws):
    """The defect of a few draws is known to within its own size only."""
    rng = np.random.default_rng(0)
    settings = SETTINGS.but(draws=draws)
    accused = 0
    for _ in range(20):
        x = autoregressive(rng, draws=draws, memory=0.0)
        noisy = 10 * rng.normal(size=x.shape)
        found = verdicts(x, settings=settings, defect=noisy)
        accused += sum(word != "healthy" for word in words(found))
        assert found["summary"].values[0] != "healthy"
    assert accused <= 8  # of 80 chains


def test_chains_with_one_trace_are_identical():
    """Other than the two of an antithetic pair, whose losses are equal where the loss is even."""
    x = autoregressive(np.random.default_rng(0))
    pairs = x[[0, 0, 1, 1]]
    assert words(verdicts(pairs)) == ["healthy"] * 4
    settings = SETTINGS.but(antithetic=False)
    assert words(verdicts(pairs, settings=settings)) == [
        "healthy", "identical chains", "healthy", "identical chains",
    ]  # fmt: skip
    copies = x[[0, 1, 2, 0]]
    found = verdicts(copies)
    assert words(found) == ["healthy", "healthy", "healthy", "identical chains"]
    assert found["used"].values[0].tolist() == [True, True, True, False]


def test_a_constant_has_an_error_of_zero():
    assert standard_error(np.full((4, 200), 0.3)) == 0.0
    assert np.isnan(standard_error(np.full((4, 3), 0.3)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_diverged_wherever_it_stands(value):
    for draw in (0, 199):
        x = autoregressive(np.random.default_rng(0))
        x[3, draw] = value
        found = verdicts(x)
        assert words(found) == ["healthy", "healthy", "healthy", "diverged"]
    every = verdicts(np.full((4, 200), value))
    assert words(every) == ["diverged"] * 4
    assert every["summary"].values[0] == "diverged"
    assert not every["used"].values.any()


def test_a_single_chain_has_a_verdict():
    rng = np.random.default_rng(0)
    settings = SETTINGS.but(chains=1, antithetic=False)
    found = verdicts(autoregressive(rng, chains=1), settings=settings)
    assert words(found) == ["healthy"]
    assert np.isnan(found["rhat"].values[0])


@pytest.mark.parametrize(("factor", "healthy"), [(1.0, True), (1.3, False)])
def test_chains_apart_by_less_than_a_verdict_show_in_rhat(factor, healthy):
    """Means 8 % apart are no verdict on a chain, but no run that has mixed either."""
    rng = np.random.default_rng(0)
    x = autoregressive(rng, memory=0.0, spread=0.02)
    x[:2] *= factor**0.3
    found = verdicts(x)
    assert words(found) == ["healthy"] * 4
    summary = found["summary"].values[0]
    assert summary == ("healthy" if healthy else f"chains disagree (R̂ {found['rhat'][0]:.2f})")
