"""Peaks of a speed over training: where they are, and where each begins and ends."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.signal import find_peaks

from lens_slt.arrays import FloatArray

PER_CHECKPOINT = 8  # places between two checkpoints at which speeds are compared
PROMINENCE = 0.25  # of the largest speed: how much a peak has to stand out


def fine_places(x: FloatArray) -> FloatArray:
    """Eight places for every checkpoint, evenly between them."""
    n = len(x)
    return np.interp(np.arange((n - 1) * PER_CHECKPOINT + 1) / PER_CHECKPOINT, np.arange(n), x)


def basins(speed: FloatArray) -> list[slice]:
    """Peaks of a speed ``[g]`` that stand out, each with the places up to the next valley."""
    if not speed.max() > 0 or np.ptp(speed) < PROMINENCE * speed.max():
        return []
    walled = np.concatenate([[0.0], speed, [0.0]])  # a peak at the end is one, too
    peaks = find_peaks(walled, prominence=PROMINENCE * speed.max())[0] - 1
    valleys = [int(a + speed[a : b + 1].argmin()) for a, b in pairwise(peaks)]
    return [slice(a, b) for a, b in pairwise([0, *valleys, len(speed)])]


def half_heights(slope: FloatArray, at: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Where slopes ``[s, g]`` with one peak pass half-way from either valley to it: ``[s]`` each.

    NaN on a side where the slope nowhere falls below half of its peak.
    """
    return _half_height(slope, at), -_half_height(slope[:, ::-1], -at[::-1])


def _half_height(slope: FloatArray, at: FloatArray) -> FloatArray:
    """Before the peak."""
    g = slope.shape[1]
    top, place = slope.max(1), slope.argmax(1)
    before = np.arange(g) <= place[:, None]
    valley = np.where(before, slope, np.inf).min(1)
    half = (top + valley) / 2
    under = before & (slope < half[:, None])
    last = g - 1 - under[:, ::-1].argmax(1)
    row, after = np.arange(len(slope)), np.minimum(last + 1, g - 1)
    low, high = slope[row, last], slope[row, after]
    share = (half - low) / np.where(high > low, high - low, 1.0)
    found = at[last] + np.clip(share, 0, 1) * (at[after] - at[last])
    return np.where(under.any(1) & (valley < top / 2), found, np.nan)
