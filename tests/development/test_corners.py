"""The posterior over corners against exact sums, least squares and finite differences."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from lens_slt.development import corners
from lens_slt.development.corners import sample_corners
from lens_slt.development.noise import block_correlation, checked_curve
from lens_slt.development.segments import cut

STEPS = np.unique(np.geomspace(1, 20_000, 32).astype(int)).astype(float)
X = np.log1p(STEPS)


def bent(*places: float, slopes: tuple[float, ...]) -> np.ndarray:
    made = 10 + slopes[0] * X
    for place, before, after in zip(places, slopes[:-1], slopes[1:], strict=True):
        made = made + (after - before) * np.maximum(X - place, 0)
    return made


def test_slopes_are_the_derivatives_of_values():
    noise = np.random.default_rng(0).standard_normal(len(X))
    found = sample_corners(checked_curve(STEPS, bent(4, 7, slopes=(0, 9, -3)) + noise))
    at, h = np.linspace(X[0], X[-1], 50), 1e-5
    by_differences = (found.values(at + h) - found.values(at - h)) / (2 * h)
    np.testing.assert_allclose(found.slopes(at), by_differences, atol=1e-4)
    assert (found.power != 0).any()  # so that the power's derivative is among them


def test_the_posterior_of_one_corner_is_that_of_summing_over_all_places(monkeypatch):
    """With one kind of corner, no power and at most one corner the posterior is a plain sum."""
    monkeypatch.setattr(corners, "ROUNDINGS", (0.002,))
    monkeypatch.setattr(corners, "NO_POWER", (1.0,))
    monkeypatch.setattr(corners, "MOST_CORNERS", 1)
    se = np.full(len(X), 2.0)
    values = bent(5, slopes=(0, 1.2)) + 2 * np.random.default_rng(3).standard_normal(len(X))
    found = sample_corners(checked_curve(STEPS, values, se=se))
    index = np.arange(12, (len(X) - 2.5) * 8 + 1) / 8
    places = np.interp(index, np.arange(len(X)), X)
    logs = []
    for place in (None, *places):
        columns = [np.ones(len(X)), X] + ([] if place is None else [np.maximum(X - place, 0)])
        design = np.column_stack(columns) / se[:, None]
        rest = values / se - design @ np.linalg.lstsq(design, values / se)[0]
        logs.append(-0.5 * (len(X) - 2 + 8) * np.log(8 + rest @ rest))
    logs = np.array(logs)
    logs[1:] += np.log(corners.ODDS / len(places)) - 0.5 * np.log(len(X))
    chances = np.exp(logs - logs.max())
    chances /= chances.sum()
    assert 0.1 < chances[0] < 0.9  # neither is beyond doubt
    # 384 particles, each in ten snapshots
    assert (found.count == 0).mean() == pytest.approx(chances[0], abs=0.05)
    mean = (chances[1:] * places).sum() / chances[1:].sum()
    sd = np.sqrt((chances[1:] * (places - mean) ** 2).sum() / chances[1:].sum())
    drawn = found.corners[found.count == 1, 0]
    assert drawn.mean() == pytest.approx(mean, abs=5 * sd / np.sqrt(300))
    assert drawn.std() == pytest.approx(sd, rel=0.2)


def test_coefficients_are_those_of_generalised_least_squares():
    """Corners beyond doubt: the slope between them, and its error."""
    rng = np.random.default_rng(1)
    n = len(X)
    covariance = 0.04 * 0.6 ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    values = bent(4, 7, slopes=(0, 30, 0)) + rng.multivariate_normal(np.zeros(n), covariance)
    found = cut(checked_curve(STEPS, values, covariance=covariance), level=0.95, seed=0)
    design = np.column_stack([np.ones(n), X, np.maximum(X - 4, 0), np.maximum(X - 7, 0)])
    inverse = np.linalg.inv(covariance)
    errors = np.linalg.inv(design.T @ inverse @ design)
    both = np.array([0, 1, 1, 0])
    best, error = both @ errors @ design.T @ inverse @ values, np.sqrt(both @ errors @ both)
    assert found.k == 2
    slope = found.slopes[:, 1]
    assert slope.mean() == pytest.approx(best, abs=2 * error)
    assert 0.7 * error < slope.std() < 3 * error  # corners and powers are not known either


def test_intervals_hold_the_corner():
    rng = np.random.default_rng(7)
    held = []
    for _ in range(8):
        place = rng.uniform(3, 6)
        values = bent(place, slopes=(0, 12)) + rng.standard_normal(len(X))
        found = cut(checked_curve(STEPS, values, se=np.ones(len(X))), level=0.9, seed=0)
        assert found.k == 1
        middle, low, high = found.boundaries()[:, 0]
        held.append(low <= place <= high)
        assert high - low < 1.0
        assert low < middle < high
    assert sum(held) >= 5  # 7.2 expected; 4 or fewer have a probability of 0.5 %


def test_noise_that_was_given_too_small_is_found_out():
    values = 20 + 3 * np.random.default_rng(2).standard_normal(len(X))
    found = sample_corners(checked_curve(STEPS, values, se=np.ones(len(X))))
    assert 2.0 < np.median(found.noise) < 4.0


def test_the_global_random_state_is_not_touched_and_a_seed_repeats():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    curve = checked_curve(STEPS, bent(5, slopes=(0, 3)) + np.sin(9 * X), se=np.ones(len(X)))
    first, second = sample_corners(curve, seed=4), sample_corners(curve, seed=4)
    np.testing.assert_array_equal(first.corners, second.corners)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_correlations_of_blocks_are_found():
    rng = np.random.default_rng(5)
    n = 30
    lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    true = 0.5**lags
    found = np.mean(
        [block_correlation(rng.multivariate_normal(np.zeros(n), true, 16)) for _ in range(20)], 0
    )
    for lag in range(4):
        assert np.diagonal(found, lag).mean() == pytest.approx(0.5**lag, abs=0.07)
    once = block_correlation(rng.multivariate_normal(np.zeros(n), true, 5))
    assert np.linalg.eigvalsh(once)[0] > 0
    np.testing.assert_allclose(np.diagonal(once), 1)


def test_pairs_of_corners_keep_apart():
    curve = checked_curve(STEPS, bent(4, 7, slopes=(0, 9, 0)) + np.sin(9 * X), se=np.ones(len(X)))
    found = sample_corners(curve)
    index = np.interp(found.corners, X, np.arange(len(X)))
    for a, b in combinations(range(4), 2):
        both = np.isfinite(index[:, b])
        assert (index[both, b] - index[both, a] >= corners.BETWEEN - 1e-9).all()
