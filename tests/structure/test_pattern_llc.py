"""What components hold on patterns, against plain means, and over checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.development.pattern_curves import (
    Holder,
    held_at_first,
    holders,
    rise_of,
    taken_up,
)
from tests.made_matrices import HELD_STEPS, grown, held_curves


def test_contrasts_are_means_on_a_pattern_minus_means_elsewhere():
    matrix, patterns = grown(2.0, 0)
    found = ls.pattern_llc(matrix, patterns)
    first = patterns.values[0].ravel()
    llc = matrix["llc"].values
    np.testing.assert_allclose(found["llc"].sel(pattern="first"), llc[:, first].mean(1))
    wanted = llc[:, first].mean(1) - llc[:, ~first].mean(1)
    np.testing.assert_allclose(found["contrast"].sel(pattern="first"), wanted)
    assert found["n_tokens"].values.tolist() == patterns.values.sum((1, 2)).tolist()


def test_errors_are_those_of_independent_draws():
    """Of tokens with independent noise of 0.3 in each of 8 blocks, in closed form."""
    errors, contrasts = [], []
    for seed in range(200):
        matrix, patterns = grown(0.0, seed)
        found = ls.pattern_llc(matrix, patterns).sel(pattern="first", component="L0H3")
        errors.append(float(found["contrast_se"]))
        contrasts.append(float(found["contrast"]))
    n = int(patterns.values[0].sum())
    true = 0.3 / 8**0.5 * np.sqrt(1 / n + 1 / (patterns[0].size - n))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(true, rel=0.1)
    assert np.std(contrasts) == pytest.approx(true, rel=0.15)


STEPS = np.array(HELD_STEPS, dtype=float)
TAKEN_UP = 3 / (1 + (300 / STEPS) ** 6)


def test_the_head_that_takes_a_pattern_up_is_found_with_its_time():
    found = held_curves(TAKEN_UP)
    assert holders(found)["first"] == Holder("L0H2", most=True)
    late = taken_up(found, 0).sel(observable="first in L0H2").isel(transition=0)
    error = np.log(float(late["midpoint_high"]) / float(late["midpoint_low"])) / 4
    assert abs(np.log(float(late["midpoint"]) / 300)) < 4 * error < 0.3
    assert float(late["change"]) == pytest.approx(3, abs=0.3)


def test_patterns_that_are_not_known_at_the_end_have_no_holder():
    found = held_curves(np.linspace(0, 3, len(HELD_STEPS)))
    assert {"first", "chance"} <= set(found["pattern"].values)
    found["contrast"].loc[{"checkpoint": HELD_STEPS[-1], "pattern": "chance"}] = np.nan
    assert {name: one.component for name, one in holders(found).items()} == {"first": "L0H2"}
    found["contrast"].loc[{"checkpoint": HELD_STEPS[-1]}] = np.nan
    assert holders(found) == {}
    with pytest.raises(ValueError, match="no head or MLP holds"):
        taken_up(found, 0)


def test_of_two_that_hold_as_much_none_holds_most():
    found = held_curves(TAKEN_UP)
    twin = found.sel(component=["L0H3"])
    blocks = found["blocks"].sel(component=["L0H2"]).values + 0.2 * twin["blocks"].values
    twin = twin.assign(
        blocks=(twin["blocks"].dims, blocks), contrast=(twin["contrast"].dims, blocks.mean(1)),
    )  # fmt: skip
    both = xr.concat([found.drop_sel(component="L0H3"), twin], "component", data_vars="all")
    one = holders(both)["first"]
    assert one.component in ("L0H2", "L0H3") and not one.most


def test_only_heads_and_mlps_hold():
    found = held_curves(TAKEN_UP)
    whole = found.sel(component=["L0H2"]).assign_coords(component=["full"])
    both = xr.concat(
        [found, whole.assign(contrast=3 * whole["contrast"])], "component", data_vars="all"
    )
    assert holders(both) == holders(found)
    assert holders(both.sel(component=["full"])) == {}
    with pytest.raises(ValueError, match="no head or MLP holds"):
        taken_up(both.sel(component=["full"]), 0)


def test_what_is_not_known_at_the_end_is_not_held():
    found = held_curves(TAKEN_UP).copy(deep=True)
    found["contrast"].loc[{"checkpoint": HELD_STEPS[-1], "component": "L0H2"}] = np.nan
    assert "L0H2" not in {one.component for one in holders(found).values()}
    found["contrast"][-1] = np.nan
    assert holders(found) == {}


@pytest.mark.parametrize("n_patterns", [1, 20])
def test_patterns_that_nobody_holds_have_a_holder_as_often_as_the_level_says(n_patterns):
    """Over all components and patterns together."""
    alarms = []
    for seed in range(200):
        matrix, patterns = grown(0.0, seed)
        drawn = np.random.default_rng(seed).random((n_patterns, *patterns.shape[1:])) < 0.2
        many = xr.DataArray(drawn, dims=patterns.dims, attrs=patterns.attrs,
                            coords={"pattern": [f"p{i}" for i in range(n_patterns)]})  # fmt: skip
        alarms.append(bool(holders(ls.pattern_llc(matrix, many).expand_dims(checkpoint=[0, 1]))))
    assert abs(np.mean(alarms) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 200)


def rising(middle: float, size: float) -> np.ndarray:
    return size / (1 + np.exp(-8 * (np.log1p(STEPS) - np.log1p(middle))))


@pytest.mark.parametrize(
    ("sizes", "at_first", "step"),
    [
        (rising(300, 3.0), False, 300),
        (rising(200, 5.0) - rising(1500, 3.0), False, 200),  # half of it is lost again
        (5 + rising(1500, 0.8), True, None),
        (5 * (1 - (3 / STEPS) ** 0.5) + rising(2000, 0.8), False, None),  # mostly at the start
    ],
)
def test_since_when_a_pattern_is_held(sizes, at_first, step):
    found = held_curves(sizes)
    holder = holders(found)["first"]
    assert held_at_first(found, "first", holder) == at_first
    rise = rise_of(found, taken_up(found, 0), "first", holder)
    assert (rise is None) == (step is None)
    if rise is not None:
        assert abs(np.log(float(rise["midpoint"]) / step)) < 0.1


def test_noise_that_checkpoints_share_is_no_transition():
    """A flat curve whose blocks wander together: its standard errors alone see four rises."""
    x = np.log1p(STEPS)
    shared = np.linalg.cholesky(np.exp(-np.abs(x[:, None] - x) / 1.5))
    rng = np.random.default_rng(6)
    blocks = 1 + 0.3 * (rng.normal(size=(16, len(x))) @ shared.T)
    blocks += 0.05 * rng.normal(size=blocks.shape)
    dims = ("checkpoint", "component", "pattern")
    curves = xr.Dataset(
        {
            "contrast": (dims, blocks.mean(0)[:, None, None]),
            "contrast_se": (dims, blocks.std(0, ddof=1)[:, None, None] / 4),
            "blocks": (("block", *dims), blocks[..., None, None]),
        },
        {"checkpoint": HELD_STEPS, "component": ["L0H0"], "pattern": ["some"]},
    )
    one = curves.isel(component=0, pattern=0)
    assert ls.transitions(one["contrast"], se=one["contrast_se"])["n_transitions"].item() > 0
    assert taken_up(curves, 0)["n_transitions"].item() == 0


def test_a_holder_without_a_contrast_somewhere_is_left_out():
    found = held_curves(TAKEN_UP)
    other = found.sel(pattern=["first"]).assign_coords(pattern=["gap"])
    contrast = other["contrast"].values.copy()
    contrast[0, 2] = np.nan
    both = xr.concat([found, other.assign(contrast=(other["contrast"].dims, contrast))], "pattern")
    assert {"first", "gap"} <= set(holders(both))
    assert taken_up(both, 0)["observable"].values.tolist() == ["first in L0H2"]
    assert rise_of(both, taken_up(both, 0), "gap", holders(both)["gap"]) is None
    with pytest.raises(ValueError, match="a contrast at every checkpoint"):
        taken_up(both.sel(pattern=["gap"]), 0)


def test_trajectories_of_contrasts_are_clustered():
    """Five heads hold nothing beyond others, one does: it is alone."""
    found = held_curves(np.linspace(0, 8, len(HELD_STEPS)) ** 2)
    together = ls.head_trajectories(found, refinements=["first"], n_clusters=2, n_bootstrap=5)
    label = together["cluster"].values
    assert (label == label[2]).sum() == 1
    assert together["refinement"].values.tolist() == ["first"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda m, p: (m.drop_vars("blocks"), p), "blocks"),
        (lambda m, p: (m, p.copy(data=p.values & False)), "20 tokens"),
        (lambda m, p: (m, p.isel(sequence=slice(3))), "label"),
    ],
)
def test_bad_input_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        ls.pattern_llc(*made(*grown(1.0, 0)))
