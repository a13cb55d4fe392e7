"""A line through the origin where both coordinates have errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.common import WithError

FIRST_SPREAD = 16.0  # slopes are looked for between 1/16 and 16 of either sign
STEPS = 4001


@dataclass(frozen=True)
class Points:
    """Pairs with standard errors; points of one ``group`` share draws, so their errors do, too."""

    x: np.ndarray
    x_se: np.ndarray
    y: np.ndarray
    y_se: np.ndarray
    group: np.ndarray

    def where(self, kept: np.ndarray) -> Points:
        return Points(*(values[kept] for values in vars(self).values()))

    @property
    def signal(self) -> float:
        """Root mean square of x over its errors."""
        return float(np.sqrt(np.mean((self.x / self.x_se) ** 2)))


def slope(points: Points) -> WithError:
    """The slope b of y = b·x that minimises Σ (y − b·x)²/(y_se² + b²·x_se²), with its error.

    Every point counts by its own errors, so that components of different scale can be pooled;
    because the error of x is in the denominator, noisy x does not pull the slope to zero. The
    standard error is the jackknife's over groups, which share draws. NaN with fewer than three.
    """
    groups = np.unique(points.group)
    if len(groups) < 3:
        return WithError(float("nan"), float("nan"))
    without = np.array([_minimiser(points.where(points.group != one)) for one in groups])
    n = len(groups)
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return WithError(_minimiser(points), float(error))


def _minimiser(points: Points) -> float:
    """The best slope on a grid of angles, refined on a finer one."""
    # Angles treat x and y alike: a slope and its inverse are as far from 1.
    angle = np.arctan(np.linspace(-FIRST_SPREAD, FIRST_SPREAD, STEPS))
    for _ in range(3):
        best = angle[np.argmin([_misfit(points, np.tan(a)) for a in angle])]
        step = angle[1] - angle[0]
        angle = np.linspace(best - step, best + step, 201)
    return float(np.tan(best))


def _misfit(points: Points, b: float) -> float:
    variance = points.y_se**2 + (b * points.x_se) ** 2
    return float(((points.y - b * points.x) ** 2 / variance).sum())
