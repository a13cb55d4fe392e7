"""Standard errors of chains: autocorrelation, shared minibatches, weights, antithetic pairs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.sampling.settings import Settings

LEAST_DRAWS = 4  # that have a standard error
MOST_BLOCKS = 32  # of consecutive draws; a standard error from 8 is itself a quarter uncertain
SHORTEST_BLOCK = 5  # draws, where there are enough of them


def number_of_blocks(n_draws: int, most: int = MOST_BLOCKS) -> int:
    """Into how many blocks so many draws are divided."""
    return min(most, max(n_draws // SHORTEST_BLOCK, min(4, n_draws // 2), 1))


def blocks_of(n_draws: int, n_blocks: int) -> list[slice]:
    """Blocks of consecutive draws, as equal as they can be."""
    edges = np.linspace(0, n_draws, n_blocks + 1).astype(int)
    return [slice(a, b) for a, b in pairwise(edges)]


def pseudo_values(values: FloatArray, weights: FloatArray, n_blocks: int) -> FloatArray:
    """The jackknife's values of a weighted mean of ``[chain, draw]``, one per block of draws.

    Their mean is that mean, up to the bias that the jackknife removes.
    """
    blocks = blocks_of(values.shape[1], n_blocks)
    sums = np.array([(weights[:, b] * values[:, b]).sum() for b in blocks])
    sizes = np.array([weights[:, b].sum() for b in blocks])
    whole = sums.sum() / sizes.sum()
    if n_blocks == 1:
        return np.array([whole])
    return pseudo_of(whole, (sums.sum() - sums) / (sizes.sum() - sizes))


def pseudo_of(whole: FloatArray | float, left_out: FloatArray) -> FloatArray:
    """The jackknife's values ``[part, …]`` from estimates without one part after the other."""
    return np.asarray(whole + (len(left_out) - 1) * (left_out.mean(0) - left_out))


def jackknife_error(left_out: FloatArray) -> FloatArray:
    """Standard error ``[…]`` from estimates ``[part, …]`` without one part after the other."""
    n = len(left_out)
    return np.asarray(np.sqrt((n - 1) / n * ((left_out - left_out.mean(0)) ** 2).sum(0)))


def standard_error(series: FloatArray) -> float:
    """Autocorrelation-aware standard error of the mean of ``[chain, draw]``.

    The larger of ArviZ's Monte Carlo standard error over the chains and that of their average:
    chains that share minibatches are not independent, and only the second knows.
    """
    import arviz as az  # on use: it takes seconds to load

    if series.shape[1] < LEAST_DRAWS:
        return float("nan")
    if not np.ptp(series):
        return 0.0
    flat = series.mean(0, keepdims=True)
    # Where numba is installed, ArviZ returns an array of one number.
    errors = [np.asarray(az.mcse(x, method="mean")).item() for x in (series, flat)]
    return float(np.nanmax(errors)) if np.isfinite(errors).any() else float("nan")


def independent_units(series: FloatArray, used: BoolArray, antithetic: bool) -> FloatArray:
    """Used chains ``[unit, draw]``; antithetic pairs are averaged into one unit."""
    if not antithetic:
        return series[used]
    units = [
        series[pair : pair + 2][used[pair : pair + 2]].mean(0)
        for pair in range(0, len(series), 2)
        if used[pair : pair + 2].any()
    ]
    return np.array(units) if units else series[:0]


def weighted_mean(
    weights: FloatArray, values: FloatArray, used: BoolArray, antithetic: bool
) -> tuple[float, float, float]:
    """Mean, standard error (delta method) and effective number of independent draws.

    Args:
        weights: of the draws of used chains, which add up to 1; as many as ``values[used]`` has.
        values: ``[chain, draw]``.
        used: chains that count.
        antithetic: chains are pairs, whose two draws at a time count as one.
    """
    w, x = np.zeros_like(values), np.where(used[:, None], values, 0.0)
    w[used] = weights.reshape(-1, values.shape[1])
    mean = float((w * x).sum())
    units = len(values) // 2 if antithetic else len(values)
    shape = (units, -1, values.shape[1])
    apart = (w * (x - mean)).reshape(shape).sum(1)
    error = float(np.sqrt((apart**2).sum()))
    return mean, error, float(1 / (w.reshape(shape).sum(1) ** 2).sum())


def draw_weights(
    trace: FloatArray, sampling_loss: FloatArray, used: BoolArray, settings: Settings
) -> FloatArray:
    """Weights of the draws of used chains ``[chain, draw]``: 1 where the sampler has none.

    ``trace`` may be of every thin-th draw only.
    """
    weighted = _weighted(trace, sampling_loss, used, settings)
    return np.ones_like(trace[used]) if weighted is None else weighted.reshape(trace[used].shape)


def mean_with_error(
    trace: FloatArray, sampling_loss: FloatArray, used: BoolArray, settings: Settings
) -> tuple[float, float, float]:
    """Mean, standard error and effective number of draws of ``trace [chain, draw]``."""
    if not used.any():
        return float("nan"), float("nan"), 0.0
    weighted = _weighted(trace, sampling_loss, used, settings)
    if weighted is not None:
        return weighted_mean(weighted, trace, used, settings.antithetic)
    units = independent_units(trace, used, settings.antithetic)
    error = standard_error(units)
    spread = trace[used].std(ddof=1) if trace[used].size > 1 else float("nan")
    ess = (spread / error) ** 2 if error > 0 else float("nan")
    return float(units.mean()), error, float(ess)


def _weighted(
    trace: FloatArray, sampling_loss: FloatArray, used: BoolArray, settings: Settings
) -> FloatArray | None:
    """Weights of the pooled draws, as the sampler weighs them; None if all count alike."""
    thin = settings.thin if trace.shape != sampling_loss.shape else 1
    found = settings.method.draw_weights(sampling_loss[used][:, ::thin].ravel(), settings.n_beta)
    return None if found is None else found[0]
