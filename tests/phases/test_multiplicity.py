"""λ and m on curves that theory knows: claimed where told, never wrongly."""

from __future__ import annotations

import numpy as np
import pytest

import lens_slt as ls
from benchmarks.potentials import normal_crossing_exact
from lens_slt.phases.multiplicity import CLAIMED, FLOOR, Curve, fits, judge
from tests.phases.made_spectrum import STIFF, rungs

LONG = np.geomspace(10, 1e6, 16)


def curve(n_betas, value, error, prior, n_parameters, rng=None):
    """λ̂ with noise."""
    value = np.array(value)
    noise = 0 if rng is None else error * rng.standard_normal(len(value))
    return Curve(
        np.log(n_betas * prior), n_betas, value + noise, np.hypot(error, FLOOR * value),
        n_parameters,
    )  # fmt: skip


def quadratic(n_betas, h):
    return (n_betas[:, None] * h / (n_betas[:, None] * h + 1)).sum(1) / 2


def crossing(exponents, n_betas, rng=None):
    """Curve of a normal crossing, to 0.05 to 0.5 %."""
    exact = np.array([normal_crossing_exact(exponents, t, 1.0) for t in n_betas])
    prior = np.prod([np.prod(np.arange(1, 2 * k, 2)) for k in exponents])  # E[w^2k]
    error = 0.0005 * exact * (n_betas / 10) ** 0.18
    return curve(n_betas, exact, error, float(prior), len(exponents), rng)


@pytest.mark.parametrize("exponents", [(1, 1), (2, 2), (2, 3), (3, 4), (1, 1, 1)])
def test_two_poles_are_not_told_from_a_double_one(exponents):
    """λ = 1/(2·max k), m as often as that is attained; 1/6 and 1/4 are two single poles."""
    rng = np.random.default_rng(0)
    for noise in (None, rng, rng):
        found = judge(fits(crossing(exponents, LONG, noise)), LONG)
        assert found["verdict"].startswith("not identifiable, because m = 1 (")
        assert "multiplicity" not in found
        assert found["llc_low"] < 1 / (2 * max(exponents)) < found["llc_high"]


@pytest.mark.parametrize("exponents", [(1, 2), (1, 3)])
def test_a_pole_that_is_far_from_the_next_is_told(exponents):
    found = judge(fits(crossing(exponents, LONG, np.random.default_rng(0))), LONG)
    assert (found["verdict"], found["multiplicity"]) == (CLAIMED, 1)
    assert found["llc_low"] < 1 / (2 * max(exponents)) < found["llc_high"]
    short = LONG < 2e4
    found = judge(fits(crossing(exponents, LONG[short])), LONG[short])
    assert found["verdict"].startswith("not identifiable, because")


def test_two_is_told_over_ten_decades():
    n_betas = np.geomspace(10, 1e11, 60)
    x = np.log(n_betas)
    value = 0.5 - 1 / (x + 1.5) - 0.3 * np.exp(-x / 2)
    found = judge(fits(curve(n_betas, value, 1e-5, 1.0, 2, np.random.default_rng(0))), n_betas)
    assert (found["verdict"], found["multiplicity"]) == (CLAIMED, 2)
    assert found["llc"] == pytest.approx(0.5, rel=0.02)


def test_one_is_claimed_where_a_quadratic_has_levelled():
    n_betas, h = np.geomspace(1, 1e4, 13), np.array([10.0, 3.0])
    exact = quadratic(n_betas, h)
    found = judge(fits(curve(n_betas, exact, 0.001 * exact, h.sum() / 2, 2)), n_betas)
    assert (found["verdict"], found["multiplicity"]) == (CLAIMED, 1)
    assert found["llc"] == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("n_parameters", [3, 8])
def test_a_spread_of_curvatures_is_never_taken_for_a_singularity(n_parameters):
    rng = np.random.default_rng(1)
    for _ in range(6):
        h = np.exp(rng.uniform(-9, 2, n_parameters))
        n_betas = np.geomspace(1, 10 ** rng.uniform(2, 4), 10)
        exact = quadratic(n_betas, h)
        made = curve(n_betas, exact, 0.01 * exact, h.sum() / 2, n_parameters, rng)
        assert judge(fits(made), n_betas).get("multiplicity", 1) == 1


def test_why_it_cannot_be_told():
    n_betas = np.geomspace(1, 100, 8)
    rising = quadratic(n_betas, np.geomspace(1e-3, 1, 12))
    found = judge(fits(curve(n_betas, rising, 0.01 * rising, 3.0, 12)), n_betas)
    assert "λ̂ still rises, by" in found["verdict"] and "llc" not in found
    bumpy = np.array([1, 1.5] * 4)
    found = judge(fits(curve(n_betas, bumpy, 0.01 * bumpy, 3.0, 12)), n_betas)
    assert "no form fits λ̂ of all rungs" in found["verdict"]


def test_weights_that_are_no_minimum():
    spectrum = ls.spectrum(rungs([1, 3, 10, 30, 100, 300], curvatures=[STIFF[:2]]))
    found = ls.multiplicity(spectrum.assign(llc=-spectrum["llc"]))
    assert "the given weights are at no minimum" in found["verdict"].item()
    assert np.isnan(found["llc"]).all()


def test_ladders_that_are_too_short():
    found = ls.multiplicity(ls.spectrum(rungs([20, 40, 60, 100, 160, 200])))
    words = found["verdict"].values.ravel().tolist()
    assert all("above 10) span 1.0 decades of nβ; 2 are needed" in word for word in words)
    assert np.isnan(found["multiplicity"]).all() and np.isnan(found["fit"]).all()
    found = ls.multiplicity(ls.spectrum(rungs([2, 20, 200, 2000])))
    words = found["verdict"].values.ravel().tolist()  # at nβ 2 the flat component's prior has 1.2
    assert ["above 10) are 4; 6 are needed" in w for w in words] == [True, False]
    assert "above 10) are 3; 6 are needed" in words[1]
    with pytest.raises(TypeError, match="result must come from spectrum"):
        ls.multiplicity(found)


def test_from_draws_to_a_claim():
    h = np.array([30.0])
    made = rungs(
        [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000], curvatures=[h],
        settings=ls.Settings(chains=40, draws=800, burn_in=1, antithetic=False),
    )  # fmt: skip
    found = ls.multiplicity(ls.spectrum(made)).isel(gamma=0, component=0)
    assert str(found["verdict"].values) == CLAIMED and float(found["multiplicity"]) == 1
    assert abs(float(found["llc"]) - 0.5) < 3 * float(found["llc_se"])
    assert np.isnan(found["misfit"].sel(form=2))  # one weight has no m = 2
