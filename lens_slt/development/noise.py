"""The noise of a curve over checkpoints: checked steps and values, and the covariance of errors.

Training steps are looked at on the scale log(step + 1), as in the literature on developmental
stages (Hoogland et al., arXiv 2402.02364). Checkpoints that share the randomness of their sampling
have correlated errors, most of all neighbours: :func:`curve_noise` takes their covariance as it is,
or reads it off values of blocks of draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular, toeplitz

from lens_slt.arrays import FloatArray

FEWEST = 20  # checkpoints: with fewer, a stage has too few to tell it from its neighbours
FEWEST_BLOCKS = 4
SMALLEST_EIGENVALUE = 0.02  # of correlations read off blocks: more they cannot tell
NEIGHBOURS = (1.0, 2.0, 3.0, 2.0, 1.0)  # weights of standard errors around a checkpoint
ALLOWED_ASYMMETRY = 1e-6


@dataclass(frozen=True)
class Curve:
    """A curve that :func:`checked_curve` has passed."""

    steps: FloatArray  # [n], strictly increasing
    values: FloatArray  # [n]
    covariance: FloatArray | None  # [n, n]; None: independent errors of unknown size

    @property
    def x(self) -> FloatArray:
        """log(step + 1)."""
        return np.log1p(self.steps)

    def whiten(self, columns: FloatArray) -> FloatArray:
        """``[n, ...]`` such that the errors of whitened values are independent, of variance 1."""
        if self.covariance is None:
            return columns
        lower = np.linalg.cholesky(self.covariance)
        return solve_triangular(lower, columns, lower=True)


def checked_curve(
    steps: FloatArray,
    values: FloatArray,
    *,
    se: FloatArray | None = None,
    covariance: FloatArray | None = None,
    blocks: FloatArray | None = None,
    name: str = "values",
) -> Curve:
    """A curve and the covariance of its errors.

    Args:
        steps: ``[n]`` training steps, strictly increasing.
        values: ``[n]``.
        se: ``[n]`` standard errors of the values.
        covariance: ``[n, n]`` of the errors of the values; instead of ``se`` and ``blocks``.
        blocks: ``[b, n]`` the same values from blocks of draws, the same draws of randomness for
            all checkpoints; correlations are taken from them, and the standard errors, too, where
            ``se`` is not given. Standard errors are averaged over neighbours then.
        name: of the values, for messages.

    Raises:
        ValueError: fewer than 20 checkpoints, steps that repeat or run backwards, values that are
            not finite, standard errors that are not positive, shapes that do not match, a
            covariance that is none.
    """
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    check_steps(steps)
    _check_shape(name, values, (len(steps),))
    if not np.isfinite(values).all():
        first = steps[~np.isfinite(values)][0]
        raise ValueError(
            f"{name} must be finite; at step {first:g} it is not: leave that checkpoint out, "
            "as curve.dropna('checkpoint') does, or measure it again"
        )
    return Curve(steps, values, _covariance(len(steps), se, covariance, blocks))


def check_steps(steps: FloatArray) -> None:
    """Refuse steps that are no training steps, repeat, run backwards, or are too few."""
    if steps.ndim != 1:
        raise ValueError(f"steps must have one dimension; got {steps.ndim}")
    if not np.isfinite(steps).all() or (steps < 0).any():
        raise ValueError(f"steps must be finite and at least 0; got {steps.tolist()}")
    wrong = np.flatnonzero(np.diff(steps) <= 0)
    if len(wrong):
        before, after = steps[wrong[0]], steps[wrong[0] + 1]
        what = "repeats" if before == after else f"comes after {before:g}"
        raise ValueError(f"steps must be strictly increasing; step {after:g} {what}")
    if len(steps) < FEWEST:
        raise ValueError(
            f"stages and transitions need at least {FEWEST} checkpoints, got {len(steps)}: with "
            "fewer, a change cannot be told from noise. Measure more of them, spread evenly over "
            "log(step) and denser where the loss bends"
        )


def _check_shape(name: str, array: FloatArray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, as steps have; got {array.shape}")


def _covariance(
    n: int, se: FloatArray | None, covariance: FloatArray | None, blocks: FloatArray | None
) -> FloatArray | None:
    if covariance is not None:
        if se is not None or blocks is not None:
            raise ValueError("covariance holds all that se and blocks say: pass it alone")
        return _checked_covariance(n, np.asarray(covariance, dtype=float))
    if se is not None:
        se = np.asarray(se, dtype=float)
        _check_shape("se", se, (n,))
        if not (np.isfinite(se) & (se > 0)).all():
            raise ValueError(f"se must be finite and above 0; got {se.tolist()}")
    if blocks is None:
        return None if se is None else np.diag(se**2)
    blocks = np.asarray(blocks, dtype=float)
    if blocks.ndim != 2 or blocks.shape[1] != n or len(blocks) < FEWEST_BLOCKS:
        raise ValueError(
            f"blocks must have the shape (at least {FEWEST_BLOCKS}, {n}); got {blocks.shape}. "
            "Blocks are of consecutive draws: more draws, or a smaller thin, make more of them"
        )
    if not np.isfinite(blocks).all():
        raise ValueError("blocks must be finite")
    spread = blocks.std(0, ddof=1)
    if not (spread > 0).all():
        raise ValueError("blocks must differ from one another at every checkpoint")
    errors = steadied(spread / np.sqrt(len(blocks)) if se is None else se)
    return block_correlation(blocks) * np.outer(errors, errors)


def _checked_covariance(n: int, covariance: FloatArray) -> FloatArray:
    _check_shape("covariance", covariance, (n, n))
    largest = np.abs(covariance).max()
    lopsided = np.abs(covariance - covariance.T).max() > ALLOWED_ASYMMETRY * largest
    if not np.isfinite(covariance).all() or lopsided:
        raise ValueError("covariance must be finite and symmetric")
    if np.linalg.eigvalsh(covariance)[0] <= 0:
        raise ValueError(
            "covariance must be positive definite; one of fewer blocks than checkpoints is not: "
            "pass the blocks instead"
        )
    return covariance


def steadied(se: FloatArray) -> FloatArray:
    """Standard errors averaged over neighbouring checkpoints, geometrically.

    Those of a few blocks are themselves uncertain (16 blocks: by 18 %), and one that came out too
    small would bend the curve to its checkpoint.
    """
    half = len(NEIGHBOURS) // 2
    log = np.log(se)
    sums = np.convolve(log, NEIGHBOURS)[half:-half]
    return np.exp(sums / np.convolve(np.ones_like(log), NEIGHBOURS)[half:-half])


def block_correlation(blocks: FloatArray) -> FloatArray:
    """Correlations ``[n, n]`` of the errors of checkpoints from values of blocks ``[b, n]``.

    There are fewer blocks than checkpoints, so a sample covariance would be singular. Instead, the
    correlation of two checkpoints is taken to depend on how many lie between them: sample
    correlations are summed over all pairs of a distance and divided by the number of checkpoints,
    as for the autocovariance of a series, which keeps the matrix positive; eigenvalues below 0.02
    are raised to it.
    """
    n = blocks.shape[1]
    sample = np.corrcoef(blocks.T)
    by_lag = np.array([np.diagonal(sample, lag).sum() / n for lag in range(n)])
    values, vectors = np.linalg.eigh(toeplitz(by_lag))
    made = (vectors * np.maximum(values, SMALLEST_EIGENVALUE)) @ vectors.T
    scale = np.sqrt(np.diagonal(made))
    return made / np.outer(scale, scale)
