"""Joining results over checkpoints, and comparing any two of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import lens_slt as ls
from lens_slt.development.sublosses import sublosses
from tests.made_draws import SETTINGS, labelled

RECORD = {"model": "made", "model_hash": "m", "tokens_hash": "t", "weight_processing": ""}


def made(mean, noise, own=0, tokens="t", settings=SETTINGS):
    """A refined LLC of two components; the noise of the draws is given."""
    rng = np.random.default_rng(own)
    loss = mean + 0.02 * noise + 0.002 * rng.normal(size=noise.shape)
    draws = labelled(loss, ["L0H0", "L0H1"], settings)
    draws.attrs["tokens_hash"] = tokens
    return ls.refined_llc(draws)


NOISE = np.random.default_rng(5).normal(size=(2, SETTINGS.chains, 100))
OTHER = np.random.default_rng(6).normal(size=(2, SETTINGS.chains, 100))


def test_joined():
    curves = ls.join_checkpoints({50: made(0.3, NOISE), 0: made(0.2, NOISE)})
    assert curves["llc"].dims == ("checkpoint", "component")
    assert curves["checkpoint"].values.tolist() == [0, 50]
    np.testing.assert_allclose(curves["llc"].mean("component"), [6, 9], atol=0.2)


@pytest.mark.parametrize(
    ("results", "error", "said"),
    [
        ({0: made(0.2, NOISE)}, ValueError, "at least two"),
        ({0: made(0.2, NOISE), 1: made(0.2, NOISE, tokens="u")}, ValueError, "other tokens"),
        (
            {0: made(0.2, NOISE), 1: made(0.2, NOISE, settings=SETTINGS.but(gamma=100))},
            ValueError, "gamma 200 and 100",
        ),
        (
            {0: made(0.2, NOISE), 1: made(0.2, NOISE).isel(component=[0])},
            ValueError, "differ in 'component'",
        ),
        ({0: made(0.2, NOISE), 1: xr.Dataset()}, TypeError, r"results\[1\]"),
        ({0.5: made(0.2, NOISE), 1: made(0.2, NOISE)}, ValueError, "a step of results"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together(results, error, said):
    with pytest.raises(error, match=said):
        ls.join_checkpoints(results)


def test_paired_differences_have_the_error_of_their_own_noise():
    """Runs that share their noise: the error of the difference is that of the rest."""
    one, other = made(0.2, NOISE, own=1), made(0.25, NOISE, own=2)
    paired = ls.compare(one, other)
    assert paired["paired"].all()
    truth = 30 * 0.05
    assert (abs(paired["llc"] - truth) < 4 * paired["llc_se"]).all()
    alone = (one["se"] ** 2 + other["se"] ** 2) ** 0.5
    assert (paired["llc_se"] < 0.3 * alone).all()
    expected = 30 * 0.002 * 2**0.5 / 400**0.5
    np.testing.assert_allclose(paired["llc_se"], expected, rtol=0.6)


def test_other_seeds_are_independent():
    one, other = made(0.2, NOISE), made(0.2, OTHER, settings=SETTINGS.but(seed=1))
    found = ls.compare(one, other)
    assert not found["paired"].any()
    assert json.loads(found.attrs["differs"]) == ["seed 0 and 1"]
    np.testing.assert_allclose(found["llc_se"], (one["se"] ** 2 + other["se"] ** 2) ** 0.5)
    assert (found["llc_p"] > 1e-3).all()


def test_a_pattern_in_few_sequences_changes_no_more_surely_than_they_say():
    """Four of 64 sequences: a paired t-test of these, the jackknife being a little wider."""
    rng = np.random.default_rng(0)
    labels = xr.DataArray(
        np.zeros((1, 64, 12), bool), dims=("pattern", "sequence", "position"),
        coords={"pattern": ["rare"]},
    )  # fmt: skip
    labels[:, ::16, :6] = True
    before = rng.normal(3, 1, (64, 12))
    after = before + 0.3 * rng.normal(size=(64, 1)) - 0.2
    found, rows = [], []
    for loss in (before, after):
        found.append(sublosses({"x": loss}, {"x": np.ones((64, 12))}, {"x": labels}, "h"))
        rows.append(loss[::16, :6].mean(1))
    assert found[0]["n_blocks"].sel(pattern="rare") == 4
    exact = stats.ttest_rel(*rows)
    change = ls.compare(*found).sel(pattern="rare", probe="x")
    wider = np.sqrt(31 / 32 * 4 / 3)
    assert float(change["loss_p"]) == pytest.approx(2 * stats.t.sf(abs(exact.statistic) / wider, 3))
    half = float(change["loss_high"] - change["loss"])
    assert half == pytest.approx(wider * stats.t.ppf(0.975, 3) * stats.sem(rows[1] - rows[0]))
    joined = ls.join_checkpoints({0: found[0], 9: found[1]})
    over = ls.compare(found[0], joined).sel(pattern="rare", probe="x", checkpoint=9)
    assert float(over["loss_p"]) == pytest.approx(float(change["loss_p"]))


def test_curves_with_one_checkpoint():
    curves = ls.join_checkpoints({0: made(0.2, NOISE), 50: made(0.3, NOISE)})
    found = ls.compare(made(0.2, NOISE), curves)
    assert found["llc"].dims == ("checkpoint", "component")
    np.testing.assert_allclose(found["llc"].sel(checkpoint=0), 0, atol=1e-6)


def test_compare_is_for_results_of_the_same_kind():
    with pytest.raises(ValueError, match="different tokens"):
        ls.compare(made(0.2, NOISE), made(0.2, NOISE, tokens="u"))
    with pytest.raises(TypeError, match="other is missing"):
        ls.compare(made(0.2, NOISE))
    with pytest.raises(ValueError, match="must come from"):
        ls.compare(made(0.2, NOISE), xr.Dataset())
