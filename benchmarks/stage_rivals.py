"""Other ways to boundaries of stages, on the same curves: Gaussian processes and ruptures."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from benchmarks.staged_runs import Run
from lens_slt.arrays import FloatArray

THRESHOLD = 0.25  # of |dλ̂/d log step|, Hoogland et al. 2024
FLAT = 0.05  # of the largest value, as lens_slt
PLACES = 300
PENALTY = 3.0  # of ruptures, times log n, on values in standard errors: the usual choice
LENGTHS = (0.2, 20.0)


def published(run: Run) -> FloatArray:
    """Edges of plateaus |dλ̂/dx| < 0.25 of a Gaussian process without a noise term: ``[3, k]``."""
    at, mean, _ = gp_slope(run, np.full(len(run.steps), 1e-6 * run.llc.var()))
    return _edges(at, (np.abs(mean) > THRESHOLD).astype(int))


def gp_intervals(run: Run) -> FloatArray:
    """The same with the noise of λ̂ and 95 % intervals of the slope against ±δ, ``[3, k]``.

    A stage rises, falls or is flat where the interval says so; between two stages that differ, a
    boundary's interval is the stretch where it does not.
    """
    at, mean, sd = gp_slope(run, run.se**2)
    delta = FLAT * np.abs(run.llc).max()
    low, high = mean - 1.96 * sd, mean + 1.96 * sd
    trend = np.zeros(len(at), dtype=int)
    trend[low > delta], trend[high < -delta], trend[(low > -delta) & (high < delta)] = 1, 2, 3
    return _edges(at, trend, unclear=0)


def by_ruptures(run: Run) -> FloatArray:
    """PELT with continuous line segments on values in standard errors, ``[3, k]``."""
    import ruptures

    signal = run.llc / run.se.mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ruptures.Pelt(model="clinear", min_size=3, jump=1).fit(signal)
        ends = found.predict(pen=PENALTY * np.log(len(signal)))[:-1]
    return np.repeat(np.log1p(run.steps)[ends][None], 3, 0)


def gp_slope(run: Run, noise: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Places, and mean and standard deviation of a Gaussian process's derivative there.

    Constant × RBF on log(step + 1), fitted by scikit-learn; the derivative's posterior in closed
    form.
    """
    x = np.log1p(run.steps)
    spread, centre = run.llc.std(), run.llc.mean()
    kernel = ConstantKernel(1.0, (1e-2, 1e4)) * RBF(1.0, LENGTHS)
    process = GaussianProcessRegressor(kernel, alpha=noise / spread**2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bounds that are reached
        process.fit(x[:, None], (run.llc - centre) / spread)
    amplitude, length = process.kernel_.k1.constant_value, process.kernel_.k2.length_scale
    at = np.linspace(x[0], x[-1], PLACES)
    apart = at[:, None] - x
    cross = -amplitude * apart / length**2 * np.exp(-0.5 * (apart / length) ** 2)
    gram = process.kernel_(x[:, None]) + np.diag(noise / spread**2)
    solved = cho_solve(cho_factor(gram, lower=True), cross.T)
    variance = amplitude / length**2 - (cross * solved.T).sum(1)
    mean = cross @ process.alpha_
    return at, spread * mean, spread * np.sqrt(np.maximum(variance, 0))


def _edges(at: FloatArray, kind: FloatArray, unclear: int = -1) -> FloatArray:
    """Where one kind follows another, leaving out stretches of none."""
    known = np.flatnonzero(kind != unclear)
    change = np.flatnonzero(np.diff(kind[known]) != 0)
    low, high = at[known[change]], at[known[change + 1]]
    return np.stack([(low + high) / 2, low, high])
