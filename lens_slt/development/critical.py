"""Critical checkpoints: where observables change fastest, and which of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from lens_slt.arguments import integer, number, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.development.corners import CornerPosterior, sample_corners
from lens_slt.development.labelled import labelled_steps, observables, one_interval
from lens_slt.development.noise import Curve, checked_curve
from lens_slt.development.peaks import PER_CHECKPOINT, basins, fine_places
from lens_slt.development.transitions import observed_errors
from lens_slt.schema import stamped

STILL = 2.0  # standard errors of a curve's ends: what ranges over less does not move
NEAR = 0.98  # of the largest speed: places that count as the fastest


@dataclass(frozen=True)
class Critical:
    """Critical checkpoints, ``c`` of them; intervals are ``[3, ...]``: median, lower, upper end."""

    at: FloatArray  # [3, c] steps
    share: FloatArray  # [3, c, o] of every observable in the squared speed there
    speed: FloatArray  # [3, n] at the checkpoints, per unit of log(step + 1)
    moves: BoolArray  # [o] observables whose range is clear of their noise


def find_critical(curves: list[Curve], *, level: float = 0.95, seed: int = 0) -> Critical:
    """Critical checkpoints of checked curves over the same steps; see the function on results."""
    at = fine_places(curves[0].x)
    posteriors = [sample_corners(curve, seed=seed + i) for i, curve in enumerate(curves)]
    scales = np.array([_range(one) for one in posteriors])
    moves = scales > 0
    squared = [
        (one.slopes(at) / scale) ** 2 if scale else np.zeros((len(one.line), len(at)))
        for one, scale in zip(posteriors, scales, strict=True)
    ]
    parts = np.stack(squared) / max(1, moves.sum())
    speed = np.sqrt(parts.sum(0))
    tail = (1 - level) / 2
    ends = [0.5, tail, 1 - tail]
    places, shares = [], []
    for inside in basins(speed.mean(0)):
        found, share = _fastest(speed[:, inside], parts[:, :, inside], at[inside])
        places.append(np.quantile(found, ends))
        shares.append(np.quantile(share, ends, axis=0))
    shape = (0, 3, len(curves))
    return Critical(
        np.expm1(np.array(places).reshape(-1, 3).T),
        np.moveaxis(np.array(shares).reshape(-1, *shape[1:]), 1, 0),
        np.quantile(speed[:, ::PER_CHECKPOINT], ends, axis=0),
        moves,
    )


def _range(posterior: CornerPosterior) -> float:
    """Range of a curve without noise; 0 where its samples do not agree that there is one."""
    values = posterior.values(posterior.x)
    middle = values.mean(0)
    low, high = middle.argmin(), middle.argmax()
    between = values[:, high] - values[:, low]
    least = STILL * between.std()
    return float(between.mean()) if between.mean() > max(least, 0) else 0.0


def _fastest(speed: FloatArray, parts: FloatArray, at: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Of every sample the middle of its fastest places ``[s]``, and shares there ``[s, o]``."""
    fast = speed >= NEAR * speed.max(1, keepdims=True)
    place = (fast * at).sum(1) / fast.sum(1)
    there = np.where(fast, parts, 0.0).sum(2)
    return place, (there / np.maximum(there.sum(0), np.finfo(float).tiny)).T


@typed
def critical_checkpoints(
    curves: xr.Dataset | xr.DataArray,
    *,
    se: xr.Dataset | xr.DataArray | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Checkpoints where observables change fastest, with intervals, and which observables.

    The speed at a step is the root mean square, over the observables, of their slopes over
    log(step + 1), each divided by its range: curves without noise, as :func:`stages` describes
    them. A critical checkpoint is a peak of it that stands out by a quarter of the largest.

    Args:
        curves: observables: a Dataset of curves, or an array with the dimension ``checkpoint``,
            whose coordinate is the training step, and at most one other.
        se: standard errors, of the same form. Without them the noise is read off each curve.
        level: of intervals.
        seed: of the sampler; the global random state is not touched.

    Returns:
        Dataset over ``critical``, in order of time: ``at_step`` with interval (``at_step_low``,
        ``at_step_high``); over ``critical`` and ``observable``: ``share`` of the squared speed
        there, with interval; over ``step``: ``speed`` with interval; over ``observable``:
        ``moves``, False where a curve's range is not clear of its noise (it is left out).

    Raises ValueError as :func:`stages` does.

    Example:
        >>> import numpy as np, xarray as xr, lens_slt as ls
        >>> steps = np.unique(np.geomspace(1, 20_000, 40).astype(int))
        >>> rise = 1 / (1 + np.exp(-6 * (np.log1p(steps) - 6)))
        >>> curve = xr.DataArray(rise, coords={"checkpoint": steps}, name="prefix_matching")
        >>> found = ls.critical_checkpoints(curve)
        >>> bool(abs(np.log(found["at_step"].item()) - 6) < 0.2)
        True
    """
    number("level", level, above=0.0, below=1.0)
    integer("seed", seed, at_least=0, at_most=2**32 - 1)
    steps = labelled_steps(curves, "curves")
    errors = observed_errors(curves, se, steps)
    named = observables(curves, "curves")
    made = find_critical(
        [
            checked_curve(steps, values, se=errors.get(name), name=f"curves {name}")
            for name, values in named.items()
        ],
        level=level, seed=seed,
    )  # fmt: skip
    data = {
        **one_interval("at_step", ("critical",), made.at),
        **one_interval("share", ("critical", "observable"), made.share),
        **one_interval("speed", ("step",), made.speed),
        "moves": ("observable", made.moves),
    }
    coords = {"observable": list(named), "step": steps}
    attrs = dict(level=level, seed=seed)
    return stamped(xr.Dataset(data, coords=coords, attrs=attrs), "critical_checkpoints")
