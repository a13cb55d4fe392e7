"""When heads differentiate: planted times, bands of quartiles, and noise that leaves nothing."""

from __future__ import annotations

import numpy as np
import pytest

import lens_slt as ls
from lens_slt.development.differentiation import (
    DIFFERENTIATES,
    FROM_START,
    RETURNS,
    STAYS,
    find_differentiation,
)
from lens_slt.development.head_curves import HeadCurves
from tests.made_curves import STEPS, as_result, curves_of, part_of_run

ONSET = 12  # index of the first checkpoint after the jump
U = part_of_run()


def planted(noise: float = 0.1, n_blocks: int = 0, seed: int = 0) -> HeadCurves:
    """In layer 1 H2 leaves for good, H3 for a while, H4 is apart from the start; the rest is alike.

    In the second refinement nothing leaves.
    """
    own = np.linspace(-0.5, 0.5, 8)
    values = np.repeat(np.tile(own, 2)[None, :, None] + 2 * U, 2, 0)
    values[0, 10, ONSET:] += 6
    values[0, 11, 6:9] -= 6
    values[0, 12] += 6
    return curves_of(values, noise, refinements=("llc", "code"), n_blocks=n_blocks, seed=seed)


@pytest.mark.parametrize("n_blocks", [0, 12])
def test_planted_times_are_found(n_blocks: int) -> None:
    curves = planted(n_blocks=n_blocks)
    found = ls.differentiation(as_result(curves))
    words = found["verdict"].sel(refinement="llc").to_series()
    assert words["L1H2"] == DIFFERENTIATES
    assert words["L1H3"] == RETURNS
    assert words["L1H4"] == FROM_START
    assert (words.drop(["L1H2", "L1H3", "L1H4"]) == STAYS).all()
    assert (found["verdict"].sel(refinement="code") == STAYS).all()
    head = found.sel(component="L1H2", refinement="llc")
    assert head["step"] == STEPS[ONSET]
    assert head["step_low"] == STEPS[ONSET - 1]
    assert head["step_high"] == STEPS[ONSET]
    assert head["side"] == "above"
    assert found["side"].sel(component="L1H3", refinement="llc") == "below"
    assert found["first_refinement"].sel(component="L1H2") == "llc"
    assert (found["first_refinement"] == "").sum() == 15
    assert np.isnan(found["step"].sel(component="L0H0")).all()


def test_the_interval_holds_the_time_of_a_slow_change() -> None:
    """One that crosses the fence between two checkpoints, at noise that blurs it."""
    held = 0
    for seed in range(10):
        own = np.linspace(-0.5, 0.5, 8)
        values = own[:, None] + np.zeros_like(U)
        values[3] += 8 * U
        curves = curves_of(values[None], 0.3, seed=seed)
        others = np.delete(own, 3)
        lower, upper = np.quantile(others, [0.25, 0.75])
        truth = np.interp(upper + 1.5 * (upper - lower), values[3], U)
        found = find_differentiation(curves, n_bootstrap=100)
        low, high = U[found.low[0, 3]], U[found.high[0, 3]]
        assert high - low < 0.7
        held += low <= truth <= high
    assert held >= 8


@pytest.mark.parametrize("n_blocks", [0, 12])
def test_noise_leaves_no_band(n_blocks: int) -> None:
    said = 0
    for seed in range(20):
        curves = curves_of(np.zeros((2, 16, 20)), 0.3, refinements=("llc", "a"), seed=seed,
                           n_blocks=n_blocks)  # fmt: skip
        found = find_differentiation(curves, n_bootstrap=100, seed=seed)
        said += bool((found.verdict != STAYS).any())
    assert said <= 3


def test_the_band_is_tukeys() -> None:
    curves = planted()
    found = find_differentiation(curves)
    others = np.delete(curves.values[0, :8, 5], 2)
    lower, upper = np.percentile(others, [25, 75])
    assert found.band[0, 0, 2, 5] == pytest.approx(lower - 1.5 * (upper - lower))
    assert found.band[1, 0, 2, 5] == pytest.approx(upper + 1.5 * (upper - lower))


def test_against_its_own_start_what_does_not_move_stays() -> None:
    values = np.zeros((1, 8, 20))
    values[0, 5, ONSET:] = 3
    values[0, 6] = 3  # apart from the others, but it never moves
    found = ls.differentiation(as_result(curves_of(values, 0.05)), against="start")
    assert found["verdict"].sel(component="L0H5").item() == DIFFERENTIATES
    assert found["step"].sel(component="L0H5").item() == STEPS[ONSET]
    assert (found["verdict"].drop_sel(component="L0H5") == STAYS).all()
    assert found.attrs["against"] == "start"


def test_a_curve_that_crosses_the_band_is_outside_on_its_last_side() -> None:
    values = np.linspace(-0.5, 0.5, 8)[:, None] + np.zeros_like(U)
    values[3] = np.where(np.arange(20) < ONSET, -6, 6)
    found = ls.differentiation(as_result(curves_of(values[None], 0.1))).sel(component="L0H3")
    assert found["step"].item() == found["step_high"].item() == STEPS[ONSET]
    assert found["step_low"].item() == STEPS[ONSET - 1]


def test_bad_arguments() -> None:
    result = as_result(planted())
    with pytest.raises(ValueError, match="layer 0 has 4 heads here"):
        ls.differentiation(result.isel(component=slice(0, 4)))
    assert ls.differentiation(result.isel(component=slice(0, 4)), against="start").sizes
    with pytest.raises(ValueError, match="against must be one of layer, start"):
        ls.differentiation(result, against="layers")
    with pytest.raises(ValueError, match="margin"):
        ls.differentiation(result, margin=-1.0)
