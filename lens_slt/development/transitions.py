"""Transitions of a curve over checkpoints: where it changes fast, with begin, middle and end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from lens_slt.arguments import integer, number, typed
from lens_slt.arrays import FloatArray
from lens_slt.development.labelled import (
    Labelled,
    check_same_steps,
    labelled_steps,
    observables,
    padded,
    with_interval,
)
from lens_slt.development.noise import checked_curve
from lens_slt.development.peaks import basins, fine_places, first_reached, valleys
from lens_slt.development.segments import Segments, cut
from lens_slt.schema import stamped

DONE = (0.1, 0.5, 0.9)  # of the change: begin, midpoint, end
UNDER_WAY = 0.5  # of the peak's slope, at the first or last checkpoint: no begin, or no end


@dataclass(frozen=True)
class Transitions:
    """Transitions of one curve, ``t`` of them, in training steps; intervals are ``[3, t]``.

    Median, lower and upper end. NaN: a transition under way at the first or the last checkpoint.
    """

    begin: FloatArray  # [3, t]
    midpoint: FloatArray  # [3, t]
    end: FloatArray  # [3, t]
    change: FloatArray  # [3, t] of the curve
    share: FloatArray  # [t] of the curve's range
    staged: float  # probability that the curve has any corner
    fit: FloatArray  # [3, n] the curve without noise


def find_transitions(
    steps: FloatArray,
    values: FloatArray,
    *,
    se: FloatArray | None = None,
    covariance: FloatArray | None = None,
    blocks: FloatArray | None = None,
    least: float = 0.1,
    level: float = 0.95,
    seed: int = 0,
) -> Transitions:
    """Transitions of a curve: the function under :func:`transitions`, on arrays.

    Arguments as of ``find_stages``; ``least`` is the smallest change, as a share of the curve's
    range.
    """
    _check(least, level, seed)
    curve = checked_curve(steps, values, se=se, covariance=covariance, blocks=blocks)
    return _transitions_of(cut(curve, level=level, seed=seed), least)


def _check(least: float, level: float, seed: int) -> None:
    number("least", least, at_least=0.0, below=1.0)
    number("level", level, above=0.0, below=1.0)
    integer("seed", seed, at_least=0, at_most=2**32 - 1)


def _transitions_of(found: Segments, least: float) -> Transitions:
    """Peaks of the slope's size, in all samples."""
    posterior = found.posterior
    fit = found.interval(posterior.values(found.curve.x))
    at = fine_places(found.curve.x)
    slopes, values = posterior.slopes(at), posterior.values(at)
    span, rows = np.ptp(fit[0]), []
    speed = np.abs(slopes.mean(0))
    for inside in basins(speed) if found.k else []:
        before, peak, after = valleys(speed, inside)
        row = _one_peak(found, values[:, before : after + 1], at[before : after + 1])
        if speed[before] >= UNDER_WAY * speed[peak]:
            row[:2] = np.nan
        if speed[after] >= UNDER_WAY * speed[peak]:
            row[1:3] = np.nan
        if abs(row[3, 0]) >= least * span:
            rows.append(row)
    begin, middle, end, change = np.array(rows).reshape(-1, 4, 3).transpose(1, 2, 0)
    return Transitions(
        np.expm1(begin), np.expm1(middle), np.expm1(end), change, np.abs(change[0]) / span,
        found.staged, fit,
    )  # fmt: skip


def _one_peak(found: Segments, values: FloatArray, at: FloatArray) -> FloatArray:
    """``[4, 3]``: begin, midpoint, end and change of curves from one valley to the next."""
    change = values[:, -1] - values[:, 0]
    safe = np.where(change == 0, 1.0, change)
    share = (values - values[:, :1]) / safe[:, None]
    places = [found.interval(first_reached(share, level, at)) for level in DONE]
    return np.stack([*places, found.interval(change)])


@typed
def transitions(
    curves: xr.Dataset | xr.DataArray,
    *,
    se: xr.Dataset | xr.DataArray | None = None,
    blocks: xr.Dataset | xr.DataArray | None = None,
    least: float = 0.1,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Transitions of curves over checkpoints, of sublosses and behaviours, with intervals.

    A transition is a peak of the slope over log(step + 1), of a curve that has stages
    (:func:`stages` says when it has). Its change is that of the curve between the valleys of the
    slope on either side. It begins where a tenth of it is done, has its midpoint at a half, and
    ends at nine tenths.

    Args:
        curves: with the dimension ``checkpoint``, whose coordinate is the training step, and at
            most one other, such as ``pattern``; or a Dataset of such curves.
        se: standard errors, of the same form. Without them the noise is read off each curve.
        blocks: of the same form with the dimension ``block`` more: the same curves from blocks of
            draws, for the correlations of errors. Where checkpoints share their noise, as all of a
            sweep do, flat curves seem to have transitions without them.
        least: the smallest change, as a share of the curve's range.
        level: of intervals.
        seed: of the sampler; the global random state is not touched.

    Returns:
        Dataset over ``observable``: ``n_transitions``, ``staged``, the probability that the curve
        has stages at all; over ``transition``, in order of time: ``begin``, ``midpoint``, ``end``
        (steps), ``change``, each with interval (``begin_low``, ``begin_high``, …), and ``share``,
        the change over the curve's range; over ``step``: ``fit`` with interval. A transition under
        way at the first checkpoint has no begin, one at the last no end, neither a midpoint: NaN.

    Raises ValueError as :func:`stages` does.

    Example:
        >>> import numpy as np, xarray as xr, lens_slt as ls
        >>> steps = np.unique(np.geomspace(1, 20_000, 40).astype(int))
        >>> loss = 3 - 2 / (1 + np.exp(-6 * (np.log1p(steps) - 6)))
        >>> found = ls.transitions(xr.DataArray(loss, coords={"checkpoint": steps}, name="repeats"))
        >>> bool(abs(np.log(found["midpoint"].item()) - 6) < 0.1)
        True
    """
    _check(least, level, seed)
    steps = labelled_steps(curves, "curves")
    errors = observed_errors(curves, se, steps)
    shared = _observed_blocks(curves, blocks, steps)
    found = {}
    for name, values in observables(curves, "curves").items():
        curve = checked_curve(
            steps, values, se=errors.get(name), blocks=shared.get(name), name=f"curves {name}"
        )
        found[name] = _transitions_of(cut(curve, level=level, seed=seed), least)
    each = list(found.values())
    dims = ("observable", "transition")
    data = {
        **with_interval("begin", dims, [one.begin for one in each]),
        **with_interval("midpoint", dims, [one.midpoint for one in each]),
        **with_interval("end", dims, [one.end for one in each]),
        **with_interval("change", dims, [one.change for one in each]),
        "share": (dims, padded([one.share for one in each])),
        "n_transitions": ("observable", np.array([len(one.share) for one in each])),
        "staged": ("observable", np.array([one.staged for one in each])),
        **with_interval("fit", ("observable", "step"), [one.fit for one in each]),
    }
    coords = {"observable": list(found), "step": steps}
    attrs = dict(least=least, level=level, seed=seed)
    return stamped(xr.Dataset(data, coords=coords, attrs=attrs), "transitions")


def observed_errors(
    curves: Labelled, se: Labelled | None, steps: FloatArray, argument: str = "se"
) -> dict[str, FloatArray]:
    """Standard errors by name of the observable; of none, where none are given.

    Raises ValueError for other checkpoints or names than those of the curves.
    """
    if se is None:
        return {}
    check_same_steps(se, steps, argument, "curves")
    errors = observables(se, argument)
    names = list(observables(curves, "curves"))
    if isinstance(curves, xr.DataArray) and len(names) == len(errors) == 1:
        return dict(zip(names, errors.values(), strict=True))
    if set(errors) != set(names):
        raise ValueError(f"{argument} must be of {', '.join(names)}; got {', '.join(errors)}")
    return errors


def _observed_blocks(
    curves: Labelled, blocks: Labelled | None, steps: FloatArray
) -> dict[str, FloatArray]:
    """``[block, checkpoint]`` by name of the observable; of none, where none are given."""
    if blocks is None:
        return {}
    if "block" not in blocks.dims:
        raise ValueError(
            f"blocks must have the dimension 'block'; got {', '.join(map(str, blocks.dims))}"
        )
    each = [
        observed_errors(curves, blocks.isel(block=b), steps, "blocks")
        for b in range(blocks.sizes["block"])
    ]
    return {name: np.stack([one[name] for one in each]) for name in each[0]}
