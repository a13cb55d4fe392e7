"""Settings refuse what makes no sense, in words."""

from __future__ import annotations

import pytest

import lens_slt as ls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(gamma=0.0), "gamma must be a finite number above 0; got 0.0"),
        (dict(gamma=-1.0), "gamma must be a finite number above 0; got -1.0"),
        (dict(n_beta=-2.0), "n_beta must be a finite number at least 0; got -2.0"),
        (dict(n_beta=float("nan")), "n_beta must be a finite number at least 0; got nan"),
        (dict(step_size=0.0), "step_size must be a finite number above 0; got 0.0"),
        (dict(step_size="big"), "step_size must be a finite number above 0; got 'big'"),
        (dict(sampler="smgld"), "sampler must be one of .*; got 'smgld'; did you mean 'sgld'"),
        (dict(chains=0), "chains must be an integer of at least 1; got 0"),
        (dict(chains=3), "chains must be even when antithetic=True.*; got 3"),
        (dict(draws=2.5), "draws must be an integer of at least 1; got 2.5"),
        (dict(burn_in=-1), "burn_in must be an integer of at least 0; got -1"),
        (dict(thin=300), "thin must be at most the 200 draws that every component gets; got 300"),
        (dict(thin=60, draws=400, target_se=0.03), "at most the 50 draws that every component"),
        (dict(batch_size=True), "batch_size must be an integer of at least 1; got True"),
        (dict(seed=-1), "seed must be an integer of at least 0; got -1"),
        (dict(drift_dtype="float16"), "drift_dtype must be one of float32, bfloat16"),
    ],
)
def test_messages(options, message):
    with pytest.raises(ValueError, match=message):
        ls.Settings(**options)


def test_the_step_size_follows_gamma():
    assert ls.Settings(gamma=200.0).epsilon == pytest.approx(4e-3)
    assert ls.Settings(gamma=100.0).epsilon == pytest.approx(8e-3)
    assert ls.Settings(sampler="sgld").epsilon == 1e-3
    assert ls.Settings(step_size=1e-4).epsilon == 1e-4


def test_burn_in_follows_the_step_size():
    assert ls.Settings().burn_in_steps == 8  # chains start at the prior
    assert ls.Settings(sampler="sgld").burn_in_steps == 80
    assert ls.Settings(sampler="importance").burn_in_steps == 0
    assert ls.Settings(burn_in=7).burn_in_steps == 7


def test_presets_cite_their_papers():
    for name, (settings, source) in ls.PRESETS.items():
        assert ls.preset(name) is settings
        assert name == "default" or "arXiv" in source
