"""λ in the limit of a wide prior, on closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.phases.limit import MISSES, _fits
from tests.phases.made_phases import CURVATURES, localised, rung


def test_the_limit_of_a_spread_of_curvatures():
    found = ls.limit_llc([rung(ratio) for ratio in (100, 10, 30)])
    exact = len(CURVATURES) / 2
    assert localised(100) < 0.95 * exact
    assert float(found["llc"][0]) == pytest.approx(exact, rel=0.02)
    assert float(found["reach"][0]) == pytest.approx(localised(100) / float(found["llc"][0]))
    np.testing.assert_allclose(found["fit"][0], found["rung_llc"][0], rtol=1e-3)


def test_its_error_follows_from_those_of_the_rungs():
    rungs = [rung(ratio, error=0.01) for ratio in (10, 30, 100)]
    found = ls.limit_llc(rungs)
    slopes = []
    for i in range(3):
        moved = [one.assign(llc=one["llc"] + 0.05 * (j == i)) for j, one in enumerate(rungs)]
        slopes.append((float(ls.limit_llc(moved)["llc"][0]) - float(found["llc"][0])) / 0.05)
    of_draws = np.sqrt(found["se"] ** 2 - found["form_se"] ** 2)
    assert float(of_draws[0]) == pytest.approx(0.01 * np.linalg.norm(slopes), rel=0.2)


def test_its_error_holds_what_the_form_misses():
    """Of spectra with as many directions, and without any error of the rungs."""
    rng = np.random.default_rng(2)
    x, apart = 1 / np.array([10.0, 30.0, 100.0]), []
    for _ in range(60):
        h = np.exp(rng.uniform(np.log(0.02), np.log(30), 8))
        value = (h / (h + x[:, None])).sum(1) / 2
        (stiff,), (soft,), _ = _fits(x, value[None], value)
        apart.append((stiff + soft - 4) / (MISSES * (stiff + soft - value[-1])))
    assert 0.5 < np.sqrt(np.mean(np.square(apart))) < 1.3


def test_a_curve_that_does_not_fit_has_a_larger_error():
    rungs = [rung(ratio, error=0.01) for ratio in (10, 30, 100)]
    bent = [one.assign(llc=one["llc"] + 0.3 * (i == 1)) for i, one in enumerate(rungs)]
    found = ls.limit_llc(bent)
    misfit = (((found["fit"] - found["rung_llc"]) / 0.01) ** 2).sum()
    assert float(misfit) > 4
    assert float(found["se"][0]) > 2 * 0.01


def test_rungs_that_are_not_certified_are_left_out():
    rungs = [rung(r) for r in (10, 30, 100)] + [rung(300, certificate="not certified")]
    assert "[300.0]" in ls.limit_llc(rungs).attrs["left_out"]
    assert str(ls.limit_llc(rungs, trust=True)["certificate"].values[0]) == "not certified"
    with pytest.raises(ValueError, match="2 rungs are certified, 3 are needed"):
        ls.limit_llc([*rungs[:2], rungs[3]])
    with pytest.raises(ValueError, match="rungs must have different nβ/γ"):
        ls.limit_llc([rungs[0], *rungs[:2]])
    other = rungs[1].copy()
    other.attrs["tokens_hash"] = "u"
    with pytest.raises(ValueError, match="rungs are of different tokens"):
        ls.limit_llc([rungs[0], other, rungs[2]])
    with pytest.raises(ValueError, match="of the same components"):
        ls.limit_llc([rungs[0], rungs[1].assign_coords(component=["L9H9"]), rungs[2]])
    with pytest.raises(ValueError, match="nβ must be above 0; got 0, the control"):
        ls.limit_llc([*rungs[:2], rung(0)])


def test_a_phase_is_made_of_a_limit():
    limit = ls.limit_llc([rung(ratio) for ratio in (10, 30, 100)])
    name = str(limit["component"].values[0])
    found = ls.phase(limit, "bowl", component=name, loss=0.5)
    assert (found.llc, found.certificate) == (float(limit["llc"][0]), "certified")
    assert found.component == name and found.setting == ""
    at_one_place = ls.phase(rung(10), "bowl", component=name, loss=0.5)
    assert at_one_place.setting == "nβ 1000, γ 100"
    said = ls.crossing(at_one_place, ls.Phase("lower", loss=0.4, llc=3)).attrs["notes"]
    assert "phases of the local posterior" in said
    with pytest.raises(ValueError, match="component must be one of"):
        ls.phase(limit, "bowl", component="L9H9", loss=0.5)


def test_a_negative_coefficient_is_no_phase():
    below = rung(10)
    below["llc"] = -below["llc"]
    name = str(below["component"].values[0])
    with pytest.raises(ValueError, match="is negative.*no critical point"):
        ls.phase(below, "slope", component=name, loss=1.0)


def test_draws_of_a_function_do_not_know_its_loss():
    few = ls.Settings(n_beta=10, gamma=1, chains=2, draws=8, steps_per_draw=1)
    draws = ls.sample_function(lambda w: w.square().sum(-1), torch.zeros(2), settings=few)
    with pytest.raises(ValueError, match="loss is missing"):
        ls.phase(ls.refined_llc(draws), "bowl")
