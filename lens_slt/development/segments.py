"""One curve cut into stages: how many corners the posterior supports, and where they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lens_slt.arrays import FloatArray
from lens_slt.development.corners import MOST_CORNERS, CornerPosterior, sample_corners
from lens_slt.development.noise import Curve

FIRST, FURTHER = 0.9, 0.5  # posterior probability that a first corner, or one more, has to have
SURE = 0.8  # probability of what is said of a stage in words
MARGIN = 0.2  # of a stage, at either end
FEWEST_SAMPLES = 40  # to read an interval off


@dataclass(frozen=True)
class Segments:
    """Stages of one curve as the samples with the supported number of corners have them.

    Places are on log(step + 1); ``s`` samples, ``k`` corners.
    """

    curve: Curve
    posterior: CornerPosterior  # all samples
    chosen: CornerPosterior  # [s] those with k corners
    support: FloatArray  # [k] probability that there are at least that many corners
    level: float

    @property
    def k(self) -> int:
        return len(self.support)

    @property
    def staged(self) -> float:
        """Probability that there is any corner."""
        return float((self.posterior.count > 0).mean())

    @property
    def corners(self) -> FloatArray:
        """``[s, k]``."""
        return self.chosen.corners[:, : self.k]

    @property
    def slopes(self) -> FloatArray:
        """``[s, k + 1]`` slopes of stages within their boundaries, in all samples.

        A fifth of a stage is left out at either end, where a sample may have another stage.
        """
        ends = np.concatenate([self.curve.x[:1], self.boundaries()[0], self.curve.x[-1:]])
        margin = MARGIN * np.diff(ends)
        low, high = ends[:-1] + margin, ends[1:] - margin
        return (self.posterior.values(high) - self.posterior.values(low)) / (high - low)

    def interval(self, samples: FloatArray) -> FloatArray:
        """``[3, ...]``: median, lower and upper end, over the first axis."""
        tail = (1 - self.level) / 2
        return np.quantile(samples, [0.5, tail, 1 - tail], axis=0)

    def boundaries(self) -> FloatArray:
        """``[3, k]`` places of corners with intervals, which reach half a grid step further."""
        found = self.interval(self.corners)
        near = self.chosen.grid_step(found)
        return found + np.array([[0.0], [-0.5], [0.5]]) * near


def cut(curve: Curve, *, level: float, seed: int) -> Segments:
    """Sample the posterior of a curve and choose the number of corners.

    A curve has stages where the probability of a corner is at least 0.9; each further corner needs
    that more corners than it are as likely as not.
    """
    posterior = sample_corners(curve, seed=seed)
    count = posterior.count
    at_least = np.array([(count >= k).mean() for k in range(1, MOST_CORNERS + 1)])
    k = 0
    if at_least[0] >= FIRST:
        k = int((at_least >= FURTHER).sum())
    enough = [c for c in range(MOST_CORNERS + 1) if (count == c).sum() >= FEWEST_SAMPLES]
    k = min(enough, key=lambda c: abs(c - k))
    return Segments(curve, posterior, posterior[count == k], at_least[:k], level)
