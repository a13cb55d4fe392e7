"""Bounds on numbers of directions hold the truth; what no spectrum gives is said."""

from __future__ import annotations

import numpy as np
import pytest

import lens_slt as ls
from tests.phases.made_spectrum import FLAT, STIFF, rungs


def test_bounds_hold_the_truth_and_are_tight_where_the_ladder_tells():
    spread = np.geomspace(0.01, 30, 12)
    shapes = (STIFF, FLAT, spread)
    found = ls.curvatures(ls.spectrum(rungs(curvatures=shapes)), above=[0.1, 1, 5])
    for c, h in enumerate(shapes):
        for i, least in enumerate((0.1, 1, 5)):
            one = found.isel(curvature=i, component=c)
            low, high = float(one["directions_low"]), float(one["directions_high"])
            assert low - 1e-6 <= (h >= least).sum() <= high + 1e-6
    stiff, flat = (found.sel(curvature=1).isel(component=c) for c in (0, 1))
    assert float(stiff["directions_low"]) > 2 and float(stiff["directions_high"]) < 3.01
    assert float(flat["directions_high"]) < 2


def test_stiff_and_flat_directions_are_told_apart():
    found = ls.curvatures(ls.spectrum(rungs([0.3, 1, 3])))
    assert found["verdict"].values.tolist() == ["stiff directions", "flat directions"]
    assert found["finest"].values.tolist() == [1 / 3, 1 / 3]
    s = 3 * STIFF / (3 * STIFF + 1)
    error = float(found["stiffness_se"][0])
    assert abs(float(found["stiffness"][0]) - s.mean()) < 4 * error < 0.8
    many = found["effective_directions"]
    assert abs(float(many[1]) - 60) < 4 * float(found["effective_directions_se"][1])
    np.testing.assert_allclose(found["resolution"], [1 / 3, 1, 1 / 0.3])


def test_what_is_not_quadratic_is_said():
    spectrum = ls.spectrum(rungs())
    falling = spectrum["llc"].values.copy()
    falling[:, 0, 0] = np.linspace(3, 1, len(falling))  # a count of directions never falls
    found = ls.curvatures(spectrum.assign(llc=(spectrum["llc"].dims, falling)))
    assert found["verdict"].values.tolist() == ["not quadratic", "stiff directions"]
    assert np.isnan(found["directions_low"][:, 0]).all()


def test_without_a_certified_rung():
    spectrum = ls.spectrum(rungs())
    none = spectrum["llc"].where(spectrum["component"] != "L0H0")
    found = ls.curvatures(spectrum.assign(llc=none.transpose(*spectrum["llc"].dims)))
    assert found["verdict"].values[0] == "no certified rung"
    assert np.isfinite(found["finest"][1])
    with pytest.raises(ValueError, match="level must be a finite number"):
        ls.curvatures(spectrum, level=1)
    with pytest.raises(ValueError, match=r"above\[0\] must be a finite number above 0"):
        ls.curvatures(spectrum, above=[-1])
