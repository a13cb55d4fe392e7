"""What components hold on patterns, against plain means, and over checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

import lens_slt as ls
from lens_slt.development.pattern_curves import holders, taken_up
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


def test_the_head_that_takes_a_pattern_up_is_found_with_its_time():
    found = held_curves(3 / (1 + (300 / np.array(HELD_STEPS)) ** 6))
    assert holders(found)["first"] == "L0H2"
    late = taken_up(found, 0).sel(observable="first in L0H2").isel(transition=0)
    error = np.log(float(late["midpoint_high"]) / float(late["midpoint_low"])) / 4
    assert abs(np.log(float(late["midpoint"]) / 300)) < 4 * error < 0.3
    assert float(late["change"]) == pytest.approx(3, abs=0.3)


def test_patterns_that_are_not_known_at_the_end_have_no_holder():
    found = held_curves(np.linspace(0, 3, len(HELD_STEPS)))
    assert {"first", "chance"} <= set(found["pattern"].values)
    found["contrast"].loc[{"checkpoint": HELD_STEPS[-1], "pattern": "chance"}] = np.nan
    assert holders(found) == {"first": "L0H2"}
    found["contrast"].loc[{"checkpoint": HELD_STEPS[-1]}] = np.nan
    assert holders(found) == {}
    with pytest.raises(ValueError, match="no component holds a pattern"):
        taken_up(found, 0)


def test_a_pattern_that_nobody_holds_has_a_holder_as_often_as_the_level_says():
    alarms = []
    for seed in range(200):
        matrix, patterns = grown(0.0, seed)
        one = ls.pattern_llc(matrix, patterns).sel(pattern=["chance"])
        alarms.append(bool(holders(one.expand_dims(checkpoint=[0, 1]))))
    assert abs(np.mean(alarms) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 200)


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
