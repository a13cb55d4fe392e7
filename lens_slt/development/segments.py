"""One curve cut into stages: which corners the posterior supports, and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lens_slt.arrays import FloatArray
from lens_slt.development.corners import MOST_CORNERS, CornerPosterior, sample_corners
from lens_slt.development.noise import Curve

FIRST, FURTHER = 0.9, 0.5  # posterior probability that a first corner, or one more, has to have
SURE = 0.8  # probability of what is said of a stage in words
HELD = 0.8  # of the samples that have one more corner: what its place has to hold
EVERY = 6  # samples to look for places in
MARGIN = 0.2  # of a stage, at either end


@dataclass(frozen=True)
class Segments:
    """Stages of one curve. Places are on log(step + 1); ``s`` samples, ``k`` boundaries."""

    curve: Curve
    posterior: CornerPosterior
    corners: FloatArray  # [t, k] of the samples that have as many
    level: float

    @property
    def k(self) -> int:
        return self.corners.shape[1]

    @property
    def staged(self) -> float:
        """Probability that there is any corner."""
        return float((self.posterior.count > 0).mean())

    @property
    def slopes(self) -> FloatArray:
        """``[s, k + 1]`` slopes of stages within their boundaries, in all samples.

        A fifth of a stage is left out at either end, where a sample may have another stage.
        """
        ends = self.edges
        margin = MARGIN * np.diff(ends)
        low, high = ends[:-1] + margin, ends[1:] - margin
        return (self.posterior.values(high) - self.posterior.values(low)) / (high - low)

    @property
    def edges(self) -> FloatArray:
        """``[k + 2]``: the first checkpoint, boundaries, the last checkpoint."""
        x = self.curve.x
        return np.concatenate([x[:1], self.boundaries()[0], x[-1:]])

    @property
    def support(self) -> FloatArray:
        """``[k]``: probability of a corner within the interval of each boundary."""
        _, low, high = self.boundaries()
        corners = self.posterior.corners[:, :, None]
        return ((corners >= low) & (corners <= high)).any(1).mean(0)

    def interval(self, samples: FloatArray) -> FloatArray:
        """``[3, ...]``: median, lower and upper end, over the first axis."""
        tail = (1 - self.level) / 2
        return np.quantile(samples, [0.5, tail, 1 - tail], axis=0)

    def boundaries(self) -> FloatArray:
        """``[3, k]`` places of corners with intervals, which reach half a grid step further."""
        found = self.interval(self.corners)
        near = self.posterior.grid_step(found)
        return found + np.array([[0.0], [-0.5], [0.5]]) * near


def cut(curve: Curve, *, level: float, seed: int) -> Segments:
    """Sample the posterior of a curve and find the boundaries that it supports.

    A curve has stages where the probability of a corner is at least 0.9. Places of corners are
    found one after another, the surest first: the shortest stretch that holds a corner in 80 % of
    the samples that have one left. It ends where fewer than half of the samples have, or where the
    stretch reaches over a boundary found before: a corner that could be in any of several stages
    bounds none. A boundary's interval is that of the corners that belong to it, in order, in all
    samples that have as many.
    """
    posterior = sample_corners(curve, seed=seed)
    centres: FloatArray = np.empty(0)
    if (posterior.count > 0).mean() >= FIRST:
        centres = _centres(posterior.corners[::EVERY])
    return Segments(curve, posterior, _belonging(posterior.corners, centres), level)


def _centres(corners: FloatArray) -> FloatArray:
    """Places of corners that samples ``[s, MOST_CORNERS]`` agree on, in rising order."""
    left = corners.copy()
    found: list[float] = []
    for _ in range(MOST_CORNERS):
        some = np.isfinite(left).any(1).mean()
        if some < FURTHER:
            break
        low, high = _shortest(left, HELD * some)
        if any(low <= other <= high for other in found):
            break
        centre = float(np.median(left[(left >= low) & (left <= high)]))
        found.append(centre)
        off = np.where(np.isfinite(left), np.abs(left - centre), np.inf)
        nearest, row = off.argmin(1), np.arange(len(left))
        taken = off[row, nearest] <= 2 * max(high - centre, centre - low)
        left[row[taken], nearest[taken]] = np.nan
    return np.sort(found)


def _shortest(corners: FloatArray, share: float) -> tuple[float, float]:
    """The shortest stretch that holds a corner in a share of the samples."""
    best = (-np.inf, np.inf)
    held = int(np.ceil(share * len(corners))) - 1
    filled = np.where(np.isfinite(corners), corners, np.inf)
    for low in np.unique(corners[np.isfinite(corners)]):
        first = np.where(filled >= low, filled, np.inf).min(1)
        high = np.partition(first, held)[held]
        if high - low < best[1] - best[0]:
            best = (float(low), float(high))
    return best


def _belonging(corners: FloatArray, centres: FloatArray) -> FloatArray:
    """``[t, k]``: of every sample with as many corners, those nearest to the centres, in order."""
    k = len(centres)
    enough = corners[np.isfinite(corners).sum(1) >= k]
    if k == 0:
        return enough[:, :0]
    choices = np.array(list(combinations(range(MOST_CORNERS), k)))
    off = np.abs(enough[:, choices] - centres).sum(2)
    best = choices[np.where(np.isfinite(off), off, np.inf).argmin(1)]
    return np.take_along_axis(enough, best, 1)
