"""Peaks of a speed over training, the valleys beside them, and what is done on the way."""

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


def valleys(speed: FloatArray, inside: slice) -> tuple[int, int, int]:
    """Places of the valley before the peak of a basin, of the peak, and of the valley after it."""
    peak = inside.start + int(speed[inside].argmax())
    before = inside.start + int(speed[inside.start : peak + 1].argmin())
    return before, peak, peak + int(speed[peak : inside.stop].argmin())


def first_reached(share: FloatArray, level: float, at: FloatArray) -> FloatArray:
    """``[s]``: where curves ``[s, g]`` from 0 to 1 first reach a level, between places."""
    there = np.maximum((share >= level).argmax(1), 1)
    row = np.arange(len(share))
    low, high = share[row, there - 1], share[row, there]
    part = np.clip((level - low) / np.where(high > low, high - low, 1.0), 0, 1)
    return at[there - 1] + part * (at[there] - at[there - 1])
