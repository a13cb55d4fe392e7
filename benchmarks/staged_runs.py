"""Synthetic training runs: curves over checkpoints whose stages are known.

They are not made as lens_slt fits them: corners are rounded by other kernels and widths, some
transitions are logistic, slopes drift within stages. A boundary is where the slope is half-way
between those of the stages on its sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.linalg import solve_triangular
from scipy.signal import find_peaks
from scipy.special import erf

from lens_slt.arrays import FloatArray

BLOCKS = 16
LEVEL = 40.0  # of λ̂
FINE = 4000  # places at which a curve is integrated
RELATIVE_SE, CORRELATION = 0.03, 0.5
ALTERNATIVES = (-1.0, -0.5, -0.25, 0.25, 0.5)  # powers of the step
FEATURELESS = ("constant", "power law up", "power law down", "two power laws", "line")


@dataclass(frozen=True)
class Run:
    """One training run and its truth."""

    kind: str  # staged, or one of FEATURELESS
    steps: FloatArray  # [n]
    boundaries: FloatArray  # [k] on log(step + 1)
    types: tuple[str, ...]  # [k + 1]
    truth: FloatArray  # [n] λ̂ without noise
    llc: FloatArray  # [n]
    se: FloatArray  # [n]
    blocks: FloatArray  # [BLOCKS, n]
    covariance: FloatArray  # [n, n] true
    loss: FloatArray  # [n]
    worth: FloatArray  # [k] of each boundary: χ² that the truth loses without its corner


def staged_run(rng: np.random.Generator, relative_se: float = RELATIVE_SE) -> Run:
    """A run of two to five stages."""
    x = _checkpoints(rng)
    boundaries = _boundaries(x, rng)
    trends = _trends(len(boundaries) + 1, rng)
    at = np.linspace(x[0], x[-1], FINE)
    slopes, level = _slopes(x, boundaries, trends, rng)
    fine = level + _integral(at, _profile(at, boundaries, slopes, rng))
    loss_slopes = np.where(np.array(trends) == "flat", -0.05, -rng.uniform(0.3, 1.0, len(trends)))
    loss = 8 + _integral(at, _profile(at, boundaries, loss_slopes, rng))
    names = {"rise": "A", "fall": "B", "flat": "plateau"}
    types = [names[trend] for trend in trends]
    if trends[:2] == ["flat", "rise"] and rng.random() < 0.4:
        types[0] = "below start"
        fine = fine - fine[0] - 0.15 * LEVEL
    truth = np.interp(x, at, fine)
    return _observed("staged", x, boundaries, tuple(types), truth, np.interp(x, at, loss),
                     relative_se, rng)  # fmt: skip


def featureless_run(kind: str, rng: np.random.Generator, relative_se: float = RELATIVE_SE) -> Run:
    """A run that has one stage only."""
    x = _checkpoints(rng)
    at = (x - x[0]) / (x[-1] - x[0])
    power, other = rng.uniform(0.1, 0.8, 2)
    falling = [np.exp(-p * x) for p in (power, other)]
    shapes = {
        "constant": 0 * x,
        "line": at,
        "power law up": _unit(np.exp(rng.uniform(0.05, 0.5) * x)),
        "power law down": _unit(falling[0]),
        "two power laws": _unit(falling[0] + rng.uniform(0.2, 1) * falling[1]),
    }
    sign = rng.choice([-1.0, 1.0])
    if kind == "power law up":
        sign = 1.0
    truth = LEVEL * (1 + sign * rng.uniform(0.2, 0.8) * shapes[kind])
    loss = 3 + 5 * np.exp(-0.3 * x)
    return _observed(kind, x, np.array([]), ("",), truth, loss, relative_se, rng)


def _unit(values: FloatArray) -> FloatArray:
    """From 0 to 1 or back."""
    return (values - values.min()) / np.ptp(values)


def _checkpoints(rng: np.random.Generator) -> FloatArray:
    """log(step + 1) of 24 to 48 checkpoints, evenly or denser in the middle; step 0 is one."""
    n, last = int(rng.integers(24, 49)), rng.uniform(np.log(5e3), np.log(1e5))
    even = np.linspace(0, 1, n)
    bent = even + rng.uniform(0, 0.1) * np.sin(2 * np.pi * even)
    steps = np.unique(np.round(np.expm1(last * bent)))
    return np.log1p(steps)


def _boundaries(x: FloatArray, rng: np.random.Generator) -> FloatArray:
    """One to four, a share of the training and four checkpoints apart."""
    while True:
        found = np.sort(rng.uniform(x[0], x[-1], rng.integers(1, 5)))
        edges = np.concatenate([[x[0]], found, [x[-1]]])
        inside = np.histogram(x, edges)[0]
        if (np.diff(edges) > 1.0).all() and (inside >= 4).all():
            return found


def _trends(n: int, rng: np.random.Generator) -> list[str]:
    """Neighbours differ; the first stage does not fall."""
    trends = [str(rng.choice(["rise", "flat"]))]
    while len(trends) < n:
        trends.append(str(rng.choice([t for t in ("rise", "fall", "flat") if t != trends[-1]])))
    return trends


def _slopes(
    x: FloatArray, boundaries: FloatArray, trends: list[str], rng: np.random.Generator
) -> tuple[FloatArray, float]:
    """Slopes of stages and the level at the start: rises by 0.4 to 1.2 levels, falls by a third."""
    lengths = np.diff(np.concatenate([[x[0]], boundaries, [x[-1]]]))
    level = start = LEVEL * rng.uniform(0.3, 0.8)
    slopes = []
    for trend, length in zip(trends, lengths, strict=True):
        change = 0.0
        if trend == "rise":
            change = LEVEL * rng.uniform(0.4, 1.2)
        elif trend == "fall":
            change = -level * rng.uniform(0.3, 0.5)
        slopes.append(change / length)
        level += change
    return np.array(slopes), float(start)


def _profile(
    at: FloatArray, boundaries: FloatArray, slopes: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """The slope over training: steps rounded by error functions, or logistic bumps; drifting."""
    edges = np.concatenate([[at[0]], boundaries, [at[-1]]])
    lengths = np.diff(edges)
    on = [np.ones(len(at))]
    on += [0.5 * (1 + erf((at - b) / rng.uniform(0.02, 0.25))) for b in boundaries]
    on += [np.zeros(len(at))]
    made = np.zeros(len(at))
    for k, slope in enumerate(slopes):
        pulse = on[k] - on[k + 1]
        inner = 0 < k < len(slopes) - 1
        if inner and rng.random() < 0.5:
            beside = slopes[[k - 1, k + 1]]
            room = lengths[[k - 1, k + 1]].min() > 0.8 * lengths[k]
            if room and (np.abs(beside) < 0.05 * abs(slope)).all():
                scale = lengths[k] / (4 * np.arccosh(np.sqrt(2)))  # half of its peak at the edges
                pulse = 1 / np.cosh((at - edges[k : k + 2].mean()) / (2 * scale)) ** 2
        made = made + slope * pulse
    middle = (at - at[0]) / (at[-1] - at[0]) - 0.5
    return made * (1 + rng.uniform(-0.3, 0.3) * middle)


def _integral(at: FloatArray, slope: FloatArray) -> FloatArray:
    steps = np.diff(at) * (slope[1:] + slope[:-1]) / 2
    return np.concatenate([[0.0], np.cumsum(steps)])


def _observed(
    kind: str, x: FloatArray, boundaries: FloatArray, types: tuple[str, ...], truth: FloatArray,
    loss: FloatArray, relative_se: float, rng: np.random.Generator,
) -> Run:  # fmt: skip
    """With the noise of sampling: blocks of draws whose mean is λ̂, neighbours correlated."""
    n = len(x)
    error = relative_se * np.maximum(np.abs(truth), 0.2 * LEVEL)
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    covariance = CORRELATION**lag * np.outer(error, error)
    blocks = truth + rng.multivariate_normal(np.zeros(n), BLOCKS * covariance, BLOCKS)
    se = blocks.std(0, ddof=1) / np.sqrt(BLOCKS)
    worth = np.array([_worth(x, boundaries, k, truth, covariance) for k in range(len(boundaries))])
    wiggle = 0.01 * rng.standard_normal(n)  # training itself is noisy
    return Run(kind, np.expm1(x), boundaries, types, truth, blocks.mean(0), se, blocks,
               covariance, loss + wiggle, worth)  # fmt: skip


def _worth(
    x: FloatArray, boundaries: FloatArray, k: int, truth: FloatArray, covariance: FloatArray
) -> float:
    """χ² of the best fit to the truth without one corner, less that of the best with it."""
    lower = np.linalg.cholesky(covariance)

    def rest(corners: FloatArray) -> float:
        hinges = np.maximum(x[:, None] - corners, 0)
        smallest = np.inf
        for power in (0.0, *ALTERNATIVES):
            more = [np.exp(power * (x - x[-1] * (power > 0)))] if power else []
            columns = np.column_stack([np.ones(len(x)), x, hinges, *more])
            both = solve_triangular(lower, np.column_stack([columns, truth]), lower=True)
            off = both[:, -1] - both[:, :-1] @ np.linalg.lstsq(both[:, :-1], both[:, -1])[0]
            smallest = min(smallest, float(off @ off))
        return smallest

    return rest(np.delete(boundaries, k)) - rest(boundaries)


def logistic_curves(
    n: int, rng: np.random.Generator
) -> tuple[xr.DataArray, tuple[FloatArray, FloatArray, FloatArray], FloatArray]:
    """Observables that each change once, their begins, midpoints and ends, and peaks of speed.

    Begin and end are where a tenth and nine tenths of the change are done. Of three, the first two
    change together. The noise is 2 % of the range, and no standard error is given.
    """
    x = _checkpoints(rng)
    inside = x[0] + (x[-1] - x[0]) * rng.uniform(0.3, 0.7, n)
    if n > 1:
        inside = x[0] + (x[-1] - x[0]) * np.array([0.3, 0.3, 0.7]) + rng.uniform(-0.4, 0.4, n)
    scale = rng.uniform(0.15, 0.4, n)
    values = np.tanh((x - inside[:, None]) / (2 * scale[:, None])) / 2
    at = np.linspace(x[0], x[-1], FINE)
    slopes = np.cosh((at - inside[:, None]) / (2 * scale[:, None])) ** -2 / (4 * scale[:, None])
    speed = np.sqrt((slopes**2).mean(0))
    peaks = at[find_peaks(speed, prominence=0.25 * speed.max())[0]]
    half = np.log(9) * scale  # from a tenth to a half
    curves = xr.DataArray(
        values + 0.02 * rng.standard_normal(values.shape),
        coords={"observable": [f"observable {i}" for i in range(n)],
                "checkpoint": np.expm1(x).round().astype(int)},
        dims=("observable", "checkpoint"),
    )  # fmt: skip
    return curves, (inside - half, inside, inside + half), peaks
