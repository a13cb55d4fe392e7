"""The bias that a run at half the step quotes, where the bias is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.sampling import half_step
from lens_slt.sampling.course import Course
from lens_slt.sampling.driver import chains_of
from lens_slt.sampling.half_step import half_step_draws, is_short
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import independent_units, standard_error
from tests.made_targets import MadeTarget, quadratic, run

N_BETA, GAMMA, P = 30.0, 200.0, 24
H = torch.logspace(-1, 1.3, P)  # nβ·h from 3 to 600
A = N_BETA * H + GAMMA
EXACT = float((N_BETA * H / A).sum() / 2)
ROWS, BATCH = 64, 8
SETTINGS = Settings(
    n_beta=N_BETA, gamma=GAMMA, chains=64, draws=200, burn_in=60, batch_size=BATCH,
    check_step=True,
)  # fmt: skip
CENTRED = torch.randn(ROWS, P, generator=torch.Generator().manual_seed(0))
CENTRED = 1.5 * (CENTRED - CENTRED.mean(0))


def measured(settings, rows=None, loss=None):
    data = torch.zeros(1, P) if rows is None else rows
    found = ls.refined_llc(run(MadeTarget([{"a": loss or quadratic(H)}], P, settings, data)))
    return {key: values.values[0] for key, values in found.data_vars.items()}


def heat(step_size):
    """λ̂ above the truth from the noise of minibatch gradients, closed form of a Gaussian."""
    variance = CENTRED.var(0, unbiased=False) / BATCH * (ROWS - BATCH) / (ROWS - 1)
    heat = step_size / 4 * N_BETA**2 * variance / (1 - step_size * A / 4)
    return float((N_BETA * H / A * heat).sum() / 2)


@pytest.mark.parametrize(("step_size", "beyond"), [(5e-4, 0.1), (1e-3, 0.1), (2e-3, 0.3)])
def test_the_discretisation_of_sgld(step_size, beyond):
    """Stationary variances 1/(a·(1 − εa/4)); the quoted share is of the truth."""
    found = measured(SETTINGS.but(sampler="sgld", step_size=step_size))
    true = float((N_BETA * H / A / (1 - step_size * A / 4)).sum() / 2) / EXACT - 1
    assert true > 4 * found["bias_se"]
    # What is not linear between ε and ε/2 makes the quoted bias too large, not too small.
    assert -3 * found["bias_se"] < found["bias"] - true < 3 * found["bias_se"] + beyond * true


@pytest.mark.parametrize("step_size", [5e-4, 1e-3, 2e-3])
def test_the_heat_of_gradient_noise(step_size, monkeypatch):
    """All chains share the minibatches and so their heat: only more draws tell more."""
    monkeypatch.setattr(half_step, "DRAWS", 1500)
    found = measured(SETTINGS.but(step_size=step_size, draws=1000, chains=16), CENTRED)
    true = heat(step_size) / EXACT
    assert abs(found["bias"] - true) < 3 * found["bias_se"] + 0.1 * true
    assert abs(found["llc"] / EXACT - 1 - true) < 4 * found["se"] / EXACT
    assert found["bias_se"] < 0.5 * true


def test_a_run_without_bias_has_none():
    found = measured(SETTINGS.but(step_size=1e-3))
    assert abs(found["bias"]) < 3 * found["bias_se"]
    assert found["bias_se"] < 0.01
    assert found["certificate"] == "certified"


@pytest.mark.parametrize(("sampler", "rows", "share"), [("sgld", None, 0.2), ("lm", CENTRED, 0.5)])
def test_the_coupled_difference_is_known_far_better_than_the_losses(
    sampler, rows, share, monkeypatch
):
    """Not so much where a half step has a minibatch that the whole one has not seen."""
    kept = []
    original = half_step._bias

    def spy(traces, settings, epsilon):
        kept.append(traces)
        return original(traces, settings, epsilon)

    monkeypatch.setattr(half_step, "_bias", spy)
    measured(SETTINGS.but(step_size=1e-3, sampler=sampler), rows)
    (traces,) = kept
    everyone = np.ones(64, bool)
    loss, finer = (independent_units(x, everyone, antithetic=True) for x in traces[:2])
    apart = standard_error(loss - finer)
    assert apart < share * np.hypot(standard_error(loss), standard_error(finer))
    assert traces.shape == (5, 64, half_step.DRAWS)


def test_the_noise_of_two_halves_makes_that_of_the_whole():
    """Each is standard normal, the whole one (first + second)/√2."""
    target = MadeTarget([{"a": quadratic(H), "b": quadratic(H)}], P, SETTINGS)

    class Nothing:
        metrics = [None]  # noqa: RUF012

    class Metricless:
        def rows(self, index):
            return self

    class Outcome:
        pilot = Nothing()

    Nothing.metrics = [Metricless()]
    whole, half = (
        half_step._chains(target, SETTINGS, Outcome(), (0, (1,)), 1e-3, whole=whole)
        for whole in (True, False)
    )
    for step in (0, 7):
        pair = half.noise(2 * step), half.noise(2 * step + 1)
        torch.testing.assert_close(whole.noise(step), (pair[0] + pair[1]) / 2**0.5)
        assert (
            abs(float(torch.corrcoef(torch.stack([x[0, ::2].flatten() for x in pair]))[0, 1])) < 0.1
        )
        assert torch.equal(whole.noise(step)[:, ::2], -whole.noise(step)[:, 1::2])
    assert torch.equal(whole.noise("start 0"), half.noise("start 0"))
    main = chains_of(
        target.groups[0], SETTINGS, [1], Metricless(), [1e-3], [False],
        lambda like, key: half_step.chain_noise(like, ["b"], 0, key, True),
    )  # fmt: skip
    assert not torch.equal(main.noise(0), half.noise(0))  # not the noise of the run itself


def test_only_what_rings_is_measured():
    """Of two components the one whose defect is large, unless both are asked for."""
    settings = SETTINGS.but(step_size=0.003, check_step=False, sampler="lm", draws=200)

    def stiff(u, rows):
        return 300.0 * (u**4).sum(-1)

    losses = [{"calm": quadratic(0.1 * H), "stiff": stiff}]
    some = run(MadeTarget(losses, P, settings))["bias"].values
    assert np.isnan(some[0]) and np.isfinite(some[1])
    both = run(MadeTarget(losses, P, settings.but(check_step=True)))["bias"].values
    assert np.isfinite(both).all()
    assert both[1] == some[1]


@pytest.mark.parametrize(
    "changes", [{"n_beta": 0.0}, {"sampler": "pcn"}, {"sampler": "rmsprop_sgld"}]
)
def test_what_has_no_bias_of_a_step_or_no_identity_is_not_measured(changes):
    settings = SETTINGS.but(draws=60, chains=4, **changes)
    assert np.isnan(run(MadeTarget([{"a": quadratic(H)}], P, settings))["bias"].values).all()


def test_a_chain_that_diverges_quotes_nothing():
    """At a step beyond 4/a every chain does."""
    settings = SETTINGS.but(sampler="sgld", step_size=0.02, draws=60, chains=4)
    found = measured(settings)
    assert np.isnan(found["bias"])
    assert found["certificate"] == "not certified" and found["verdict"] != "healthy"


def test_nothing_is_run_at_half_the_step_where_no_defect_is_finite(monkeypatch):
    """All chains diverge: a default run that cannot tell has nothing to compare."""
    called = []
    monkeypatch.setattr(half_step, "measure_bias", lambda *given: called.append(given))
    settings = SETTINGS.but(
        sampler="sgld", step_size=0.02, draws=None, chains=4, check_step=False
    )  # fmt: skip
    assert np.isnan(measured(settings)["bias"]) and not called


def test_made_traces():
    """A bias of 20 % linear in ε: 6 at ε, 5.5 at ε/2, 5 at none."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 400))
    loss = 0.2 * (1 + 0.05 * noise)
    finer = loss * 5.5 / 6
    defect = 2.0 + 0.01 * rng.normal(size=noise.shape)
    traces = np.stack([loss, finer, 60 * finer, defect / 2, defect])
    settings = Settings(antithetic=False)
    found = half_step._bias(traces, settings, 1e-3)
    assert found.share == pytest.approx(0.2, abs=0.01)
    assert found.se < 0.005
    quadratic_in_step = np.stack([loss, loss * 0.955, 60 * finer, defect / 4, defect])
    found = half_step._bias(quadratic_in_step, settings, 1e-3)
    assert found.share == pytest.approx(0.06 / 0.94, abs=0.01)  # 4/3 of the difference
    broken = traces.copy()
    broken[0, 1, 3] = np.inf
    assert half_step._bias(broken, settings, 1e-3).share == pytest.approx(0.2, abs=0.01)
    broken[:, :, 3] = np.nan
    assert np.isnan(half_step._bias(broken, settings, 1e-3).share)


def test_short_runs():
    assert is_short(Course(1, 8, 200)) and half_step_draws(Course(1, 8, 200)) == 50
    assert half_step_draws(Course(32, 8, 200)) == 20
    assert not is_short(Course(1, 10_000, 200))
