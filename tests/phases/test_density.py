"""Free energies and volumes against closed forms; ladders that skip."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import lens_slt as ls
from tests.phases.made_spectrum import FLAT, SETTINGS, STIFF, quadratic_draws, rungs

pytest.importorskip("pymbar", reason="pymbar is not installed (extra: mbar)")
SPREAD = np.array([5.0, 1.0, 1.0, 0.1])
LADDER = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@pytest.fixture(scope="module")
def made():
    return rungs(LADDER, curvatures=(SPREAD, np.full(3, 2.0)))


def test_free_energies_of_a_quadratic(made):
    found = ls.density_of_states(made, "L0H0")
    exact = 0.5 * np.log(np.array(LADDER)[:, None] * SPREAD + 1).sum(1)
    exact -= exact[0]
    for key in ("free_energy", "integrated"):
        z = (found[key].values - exact)[1:] / found[f"{key}_se"].values[1:]
        assert (abs(z) < 4).all()
    assert (abs(found["difference"] / found["difference_se"])[1:] < 4).all()
    assert float(found["free_energy_se"][-1]) < 0.04 * exact[-1]
    assert (found["overlap"][1:] > 0.5).all()


def test_errors_know_that_chains_differ():
    made = rungs([1.0, 2.0, 4.0], curvatures=[SPREAD])
    apart = [one.copy(deep=True) for one in made]
    for one in apart:
        one["posterior"]["full_loss"] *= np.array([0.7, 1, 1, 1.3])[:, None]
    wide, narrow = (
        float(ls.density_of_states(r, trust=True)["free_energy_se"][-1]) for r in (apart, made)
    )
    assert wide > 2 * narrow


def test_volumes_of_a_ball(made):
    """K = |w|² under N(0, 1) in three dimensions: V(ε) is a χ² distribution."""
    levels = [0.1, 0.3, 1.0, 3.0]
    found = ls.density_of_states(made, "L0H1", levels=levels)
    exact = chi2.logcdf(levels, 3)
    z = (found["log_volume"].values - exact) / found["log_volume_se"].values
    assert (abs(z) < 4).all()
    assert (found["log_volume_se"] < 0.4).all()


def test_volumes_far_from_the_prior_are_not_known():
    cold = rungs([30.0, 60.0, 120.0], curvatures=[np.full(60, 1.0)])
    assert np.isnan(ls.density_of_states(cold)["log_volume"]).all()


def test_a_ladder_that_skips_says_which_rungs_to_add(made):
    sparse = rungs([1.0, 1000.0], curvatures=[STIFF, FLAT])
    with pytest.raises(ValueError, match=r"nβ 1 and 1000 overlap by 0\.0\d+: add nβ ") as said:
        ls.density_of_states(sparse, "L0H0")
    with pytest.raises(ValueError, match="the ladder skips"):
        ls.density_of_states(rungs([0.01, 1e5], curvatures=[FLAT * 1000]))
    added = [float(n) for n in str(said.value).rsplit("add nβ ", 1)[1].split(", ")]
    assert 2 < len(added) < 12 and all(1 < n < 1000 for n in added)
    full = rungs([1.0, *added, 1000.0], curvatures=[STIFF, FLAT])
    assert (ls.density_of_states(full, "L0H0")["overlap"][1:] > 0.3).all()


def test_the_control_may_be_a_rung():
    with_control = [
        quadratic_draws(SETTINGS.but(n_beta=n, gamma=1.0, seed=int(10 * n)), [SPREAD])
        for n in (0.0, 0.3, 1.0, 3.0)
    ]
    found = ls.density_of_states(with_control, trust=True)
    exact = 0.5 * np.log(3.0 * SPREAD + 1).sum()
    assert abs(float(found["free_energy"][-1]) - exact) < 4 * float(found["free_energy_se"][-1])


def test_what_cannot_be_pooled(made, monkeypatch):
    with pytest.raises(ValueError, match="component must be one of L0H0, L0H1"):
        ls.density_of_states(made)
    several = rungs([1.0, 3.0], (1.0, 4.0), [SPREAD])
    with pytest.raises(ValueError, match="gamma is missing: choose one of 1, 4"):
        ls.density_of_states(several)
    assert ls.density_of_states(several, gamma=4).attrs["gamma"] == 4
    weighted = [
        ls.sample_function(
            lambda w: w.square().sum(-1), torch.zeros(2),
            settings=one.but(sampler="importance", draws=8),
        )
        for one in ls.ladder([1, 3], [1])
    ]  # fmt: skip
    with pytest.raises(ValueError, match="draws of 'importance' are weighted"):
        ls.density_of_states(weighted)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'lens-slt\[mbar\]'"):
        ls.density_of_states(made, "L0H0")
