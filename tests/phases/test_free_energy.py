"""Crossings: published numbers, closed forms, all roots, intervals that cover, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import lambertw
from scipy.stats import norm

import lens_slt as ls
from lens_slt.phases.free_energy import Difference, crossing
from lens_slt.phases.losses import losses_of
from lens_slt.report.tables_phases import crossing_table
from tests.phases.made_phases import FIVE, SIX


def cells(table):
    """Of its first row."""
    return [str(next(iter(column.cells))) for column in table.columns]


def test_the_published_crossing_of_pentagon_and_hexagon():
    found = ls.crossing(FIVE, SIX)
    assert found["n"].values == pytest.approx([601], abs=1)
    assert found["favoured"].values.tolist() == ["6"]
    assert ls.crossing(SIX, FIVE)["favoured"].values.tolist() == ["6"]
    at = float(found["n"][0])
    assert FIVE.free_energy(at) == pytest.approx(SIX.free_energy(at))


def test_without_constants_both_branches_of_lambert_w_solve_it():
    """n·ΔL + Δλ·log n = 0 has the solutions n = −(Δλ/ΔL)·W(−ΔL/Δλ…), of two branches."""
    loss, llc = 0.3, -1.0
    found = Difference(loss, llc).roots()
    branches = [lambertw(loss / llc, k).real for k in (0, -1)]
    exact = [n for w in branches if (n := llc / loss * w) > np.e]
    assert np.exp(found) == pytest.approx(sorted(exact))


def test_all_three_roots_are_found():
    """With Δ(m − 1) ≠ 0 there can be three."""
    x = np.array([1.5, 3.0, 6.0])
    rows = np.stack([np.exp(x), x, -np.log(x)], 1)
    loss, llc, logs = np.linalg.solve(rows, -np.ones(3))
    roots = Difference(loss, llc, logs, 1.0).roots()
    assert roots == pytest.approx(x)


def test_the_shift_per_constant_is_a_finite_difference():
    step = 1e-4
    found = ls.crossing(FIVE, SIX)
    moved = ls.crossing(FIVE, replace(SIX, constant=SIX.constant + step))
    slope = (np.log(moved["n"]) - np.log(found["n"])).values / step
    assert found["shift_per_constant"].values == pytest.approx(slope, rel=1e-3)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(120):
        one = replace(FIVE, llc=7 + 0.2 * rng.standard_normal(), llc_se=0.2)
        other = replace(
            SIX, llc=8.5 + 0.2 * rng.standard_normal(), llc_se=0.2,
            loss=0.04819 + 5e-4 * rng.standard_normal(), loss_se=5e-4,
        )  # fmt: skip
        found = crossing(one, other, level=0.9)
        ends = [(found["n_low"].values, found["n_high"].values),
                (found["from_n"].values, found["to_n"].values)]  # fmt: skip
        inside.append(any(((low <= 601.04) & (high >= 601.04)).any() for low, high in ends))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.07)  # 2.6 standard errors


def test_losses_that_cannot_be_told_apart_leave_the_interval_open():
    found = ls.crossing(replace(FIVE, loss_se=0.01), replace(SIX, loss_se=0.01))
    assert found["n_high"].values.tolist() == [np.inf]
    assert found["n_low"].values < 601


def test_one_phase_may_be_better_at_every_n():
    found = ls.crossing(FIVE, ls.Phase("worse", loss=0.1, llc=9, constant=4))
    assert found.sizes["crossing"] == 0
    assert (found["difference"] > 0).all()
    assert cells(crossing_table(found))[1::2] == ["none", "5 at all n"]


def test_phases_that_may_cross_are_not_said_to_be_better_at_every_n():
    found = ls.crossing(FIVE, SIX).isel(crossing=[])
    found = found.assign(from_n=("undecided", [100.0]), to_n=("undecided", [900.0]))
    assert cells(crossing_table(found)) == ["5, 6", "–", "100 to 900", "undecided"]


def test_shared_blocks_of_data_sharpen_the_difference():
    rng = np.random.default_rng(1)
    common, own = rng.standard_normal(20), rng.standard_normal((2, 20))
    blocks = [tuple(1 + common + 0.1 * noise) for noise in own]
    phases = [
        ls.Phase(name, float(np.mean(row)), 1.0, loss_se=0.22, blocks=row)
        for name, row in zip("ab", blocks, strict=True)
    ]
    _, covariance = losses_of(phases)
    step = np.array([1, -1])
    expected = np.std(np.subtract(*map(np.array, blocks)), ddof=1) / np.sqrt(20)
    assert np.sqrt(step @ covariance @ step) == pytest.approx(expected)
    _, apart = losses_of([replace(one, blocks=()) for one in phases])
    assert np.sqrt(step @ apart @ step) == pytest.approx(0.22 * np.sqrt(2))


def test_the_loss_at_another_share_of_a_pattern():
    part = ls.Subloss(3.0, share=0.25, se=0.1)
    one = ls.Phase("a", loss=1.5, llc=1, loss_se=0.05, sublosses={"x": part})  # the rest: 1.0
    for share, expected in ((0.0, 1.0), (0.25, 1.5), (1.0, 3.0)):
        assert losses_of([one], "x", share)[0] == pytest.approx([expected])
    assert losses_of([one], "x", 0.25)[1].item() == pytest.approx(0.05**2)
    assert losses_of([one], "x", 1.0)[1].item() == pytest.approx(0.1**2)


def test_a_crossing_on_a_pattern_is_that_of_its_losses():
    one = replace(FIVE, sublosses={"x": ls.Subloss(0.5, 0.1)})
    other = replace(SIX, sublosses={"x": ls.Subloss(0.3, 0.1)})
    plain = ls.crossing(replace(FIVE, loss=0.5), replace(SIX, loss=0.3))
    assert ls.crossing(one, other, pattern="x")["n"].values == pytest.approx(plain["n"].values)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "b"}, "phases must have the same data; '5' has 'a', '6' 'b'"),
        ({"architecture": "9 weights"}, "phases must have the same architecture"),
        ({"component": "L1H0"}, "phases must have the same component"),
        ({"setting": "nβ 10, γ 200"}, "the same setting; '5' has 'nβ 30, γ 200', '6' 'nβ 10, γ"),
        ({"name": "5"}, "phases must have different names"),
        ({"certificate": "not certified"}, "λ̂ must be certified; '6' is not certified.*trust=True"),
    ],
)
def test_phases_that_cannot_be_compared(changes, said):
    one = replace(
        FIVE, data="a", architecture="18 weights", component="full", setting="nβ 30, γ 200"
    )
    with pytest.raises(ValueError, match=said):
        ls.crossing(one, replace(SIX, **changes))


def test_what_is_not_known_is_said():
    bare = [replace(one, constant=None, certificate="biased") for one in (FIVE, SIX)]
    found = ls.crossing(*bare, trust=True)
    for words in ("constant terms are not known", "multiplicities are not", "λ̂ of 5 is biased"):
        assert words in found.attrs["notes"]
    wide = ls.crossing(*bare, trust=True, constant_se=1.0)
    assert (wide["n_low"] < found["n_low"]).all() and (wide["n_high"] > found["n_high"]).all()
    with pytest.raises(ValueError, match="the same free energy at every n"):
        ls.crossing(FIVE, replace(FIVE, name="copy"))


def test_bad_arguments():
    with pytest.raises(ValueError, match="level must be"):
        ls.crossing(FIVE, SIX, level=1)
    with pytest.raises(ValueError, match="pattern: '5' has no sublosses"):
        ls.crossing(FIVE, SIX, pattern="x")
    with pytest.raises(ValueError, match="shares are missing"):
        ls.phase_diagram([FIVE, SIX], [10], pattern="x")
    with pytest.raises(ValueError, match="phases must be at least two"):
        ls.phase_diagram([FIVE], [10])
    with pytest.raises(ValueError, match="multiplicity must be an integer of at least 1"):
        ls.Phase("a", 1, 1, multiplicity=0)


def test_the_diagram_changes_where_the_phases_cross():
    n = [595, 608]
    found = ls.phase_diagram([FIVE, SIX], n)
    assert found["lowest"].values.tolist() == [["5", "6"]]
    gap = abs(FIVE.free_energy(595) - SIX.free_energy(595))
    assert float(found["free_energy"].sel(phase="6")[0, 0]) == pytest.approx(gap)
    assert found["probability"].values[0].tolist() == [[1, 0], [0, 1]]


def test_probabilities_are_those_of_a_normal_difference():
    one, other = replace(FIVE, llc_se=0.3), replace(SIX, llc_se=0.4)
    found = ls.phase_diagram([one, other], [500])
    gap = float(SIX.free_energy(500) - FIVE.free_energy(500))
    expected = norm.cdf(gap / (0.5 * np.log(500)))
    assert float(found["probability"][0, 0, 0]) == pytest.approx(expected, abs=0.025)


def test_over_the_share_of_a_pattern_the_phase_that_knows_it_wins():
    one = replace(FIVE, sublosses={"x": ls.Subloss(0.4, 0.1)})
    other = replace(SIX, sublosses={"x": ls.Subloss(0.05, 0.1)})
    found = ls.phase_diagram([one, other], [200], pattern="x", shares=[0.0, 0.1, 0.5])
    assert found["lowest"].values[:, 0].tolist() == ["5", "5", "6"]
