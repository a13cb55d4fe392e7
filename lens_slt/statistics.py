"""What statistics share: levels, corrections for many tests, errors over sequences."""

from __future__ import annotations

import numpy as np
from scipy import stats

from lens_slt.arrays import FloatArray

CONFIDENCE = 0.95  # of every interval
ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)  # of an interval, as quantiles
HALF_WIDTH = float(stats.norm.ppf(ENDS[1]))  # of an interval, in standard errors
SIGNIFICANT = 0.05  # of corrected p-values and of ranks among random sets


def error_of_mean(values: FloatArray, axis: int = 0) -> FloatArray:
    """Standard error of the mean of independent values; of one value there is none."""
    return np.asarray(values.std(axis, ddof=1) / np.sqrt(values.shape[axis]))


def ratio_of_sums(total: FloatArray, count: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Σ total / Σ count over sequences and its standard error, whole sequences being the unit.

    ``total [..., sequence]`` and ``count [..., sequence]`` are sums over the tokens of each
    sequence, such as of an effect and of 1: then it is a mean over tokens. NaN where the counts add
    up to 0; sequences without any are no units, and of a single one there is no error.
    """
    n, whole = (count != 0).sum(-1), np.asarray(count.sum(-1), dtype=np.float64)
    whole = np.where(whole == 0, np.nan, whole)
    value = total.sum(-1) / whole
    rest = total - value[..., None] * count
    spread = np.sqrt((rest**2).sum(-1) * np.where(n > 1, n / np.maximum(n - 1, 1), np.nan))
    return value, spread / np.abs(whole)


def mean_over_tokens(values: FloatArray, weight: FloatArray) -> tuple[float, float]:
    """Mean of ``values [sequence, position]`` and its standard error over sequences."""
    value, error = ratio_of_sums((weight * values).sum(1), weight.sum(1))
    return float(value), float(error)


def rank_p(value: float, null: FloatArray) -> float:
    """p-value from a random sample of the null, the tested value counted in (Phipson & Smyth)."""
    return (int((null >= value - 1e-12).sum()) + 1) / (len(null) + 1)


def holm(p: FloatArray) -> FloatArray:
    """p-values corrected by Holm's step-down rule; NaN stays NaN."""
    corrected = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known])]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return corrected


def false_discovery(p: FloatArray) -> FloatArray:
    """p-values of any shape after Benjamini–Hochberg over all that are known; NaN stays NaN."""
    q = np.full_like(p, np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return q
