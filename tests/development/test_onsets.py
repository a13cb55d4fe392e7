"""Onsets with intervals: from arrays whose onset is known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from lens_slt.development.onsets import boundaries_of, one_sided, onsets

STEPS = [0, 10, 30, 100, 300, 1000, 3000]


def found(values, se, *, n=16, least=0.05, level=0.95):
    values = np.array(values, dtype=float).reshape(len(STEPS), -1)
    p = one_sided(values, np.broadcast_to(se, values.shape), least, n)
    return onsets(STEPS, values >= least, *p, level)


def test_p_values_are_those_of_a_t_test():
    sample = np.random.default_rng(0).normal(0.1, 0.3, 20)
    se = sample.std(ddof=1) / np.sqrt(20)
    above, below = one_sided(sample.mean(), se, 0.05, 20)
    for p, side in ((above, "greater"), (below, "less")):
        assert p == pytest.approx(stats.ttest_1samp(sample, 0.05, alternative=side).pvalue)
    each = one_sided(np.full(2, sample.mean()), np.full(2, se), 0.05, np.array([20, 5]))
    np.testing.assert_allclose(each[0], [above, one_sided(sample.mean(), se, 0.05, 5)[0]])
    exact = one_sided(np.array([0.0, 0.05, 0.2]), np.zeros(3), 0.05, 20)
    np.testing.assert_array_equal(exact, [[1, 0, 0], [0, 1, 1]])
    assert np.isnan(one_sided(np.array(np.nan), np.array(np.nan), 0.05, 20)).all()


def test_the_interval_reaches_from_the_last_clear_no_to_the_first_lasting_yes():
    clear = found([0, 0, 0, 0, 1, 1, 1], 0.01)
    np.testing.assert_array_equal(clear[:, 0], [300, 100, 300])
    # At 100 it cannot be told, at 300 it is above but not clearly.
    vague = found([0, 0, 0, 0.04, 0.08, 1, 1], 0.02)
    np.testing.assert_array_equal(vague[:, 0], [300, np.nan, 1000])
    surer = found([0, 0, 0, 0.04, 0.08, 1, 1], [[0.001]] * 3 + [[0.02]] * 4)
    np.testing.assert_array_equal(surer[:, 0], [300, 30, 1000])


def test_what_comes_and_goes_is_there_only_for_good():
    np.testing.assert_array_equal(found([0, 1, 1, 0, 1, 1, 1], 0.01)[:, 0], [300, 100, 300])
    gone = found([0, 0, 1, 1, 1, 1, 0], 0.01)[:, 0]
    np.testing.assert_array_equal(gone, [np.nan, 3000, np.nan])
    np.testing.assert_array_equal(found([1] * 7, 0.01)[:, 0], [0, np.nan, 0])
    np.testing.assert_array_equal(found([np.nan] * 7, np.nan)[:, 0], [np.nan] * 3)


def test_all_intervals_hold_together():
    """At the margin, where errors are likeliest: the true value is the least one until step 300."""
    generator = np.random.default_rng(1)
    n, k, wrong = 16, 6, 0
    truth = np.where(np.array(STEPS) < 300, 0.05, 0.4)[:, None]
    for _ in range(300):
        noise = generator.normal(0, 0.2, (len(STEPS), k, n))
        p = one_sided(truth + noise.mean(-1), noise.std(-1, ddof=1) / np.sqrt(n), 0.05, n)
        _, low, high = onsets(STEPS, np.ones((len(STEPS), k), bool), *p)
        # Being exactly at the least value it is neither above nor below: any clear word is wrong.
        wrong += bool((low >= 0).any() or (high < 300).any())
    assert wrong / 300 < 0.08
    _, low, high = found(np.repeat(truth - 0.05 * (truth == 0.05), k, 1), 0.01)
    np.testing.assert_array_equal([low, high], [[100] * k, [300] * k])  # and it is no blind test


def test_stages_are_those_that_the_interval_reaches_into():
    bounds = boundaries_of([(50, 40, 60), (500, 200, 800)])
    assert bounds.stage(0, 30) == "1"
    assert bounds.stage(60, 200) == "2"
    assert bounds.stage(100, 300) == "2–3"
    assert bounds.stage(np.nan, 50) == "1–2"
    assert bounds.stage(800, 1000) == "3"
    assert bounds.stage(100, np.nan) == ""
    assert boundaries_of([]).stage(0, 10) == "1"
    assert boundaries_of([100.0]).stage(100, 300) == "2"


def test_boundaries_of_a_result_are_those_of_one_curve():
    three = np.array([[10.0, 100.0], [20.0, np.nan]])
    names = ("boundary_step", "boundary_step_low", "boundary_step_high")
    dims = ("component", "boundary")
    result = xr.Dataset({n: (dims, three + s) for n, s in zip(names, (0, -1, 1), strict=True)})
    result = result.assign_coords(component=["L0H1", "full"])
    assert boundaries_of(result).step.tolist() == [20]
    assert boundaries_of(result.sel(component=["L0H1"])).high.tolist() == [11, 101]
    assert boundaries_of(result.sel(component="L0H1")).low.tolist() == [9, 99]
    with pytest.raises(ValueError, match="stages are of 2 components, choose one"):
        boundaries_of(result.assign_coords(component=["L0H1", "L0H2"]))
    with pytest.raises(TypeError, match="it has no boundary_step"):
        boundaries_of(xr.Dataset())


@pytest.mark.parametrize("wrong", ["x", [[1, 2]], [3, 2], [(5, 6, 7)], [np.nan], {1: 2}])
def test_other_stages_are_refused(wrong):
    with pytest.raises(ValueError, match="stages"):
        boundaries_of(wrong)
