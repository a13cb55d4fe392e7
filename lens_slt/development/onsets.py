"""From which checkpoint on something is there, and in which stage that lies, with intervals.

A quantity is *there* where its true value is at least a stated least one. At each checkpoint two
one-sided tests ask: is it clearly there, is it clearly not? Its *onset* is the first checkpoint
from which on it is there at all later ones. It lies

- after the last checkpoint at which it clearly is not there, and
- not after the first one from which on, at all later ones, it clearly is.

Nothing is assumed about the course in between. Both ends are corrected, so that all intervals of
one table hold together with the stated probability: of the upper end only over quantities
(checkpoints are tested from the last one back until one fails, and such a fixed sequence needs no
correction), of the lower end over quantities and checkpoints (Holm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.statistics import holm
from lens_slt.text import visible


def one_sided(value: FloatArray, se: FloatArray, least: Any, n: Any) -> tuple[FloatArray, ...]:
    """p-values of "at most ``least``" and of "at least ``least``", from means over ``n`` units,
    which, like ``least``, may differ between values.

    Values without any spread are taken as they are; NaN stays NaN.
    """
    gap = np.asarray(value - least, dtype=np.float64)
    t = np.full(gap.shape, np.nan)
    np.divide(gap, se, out=t, where=np.asarray(se > 0))
    exact = np.asarray(se == 0)
    t[exact] = np.where(gap[exact] >= 0, np.inf, -np.inf)
    return stats.t.sf(t, n - 1), stats.t.cdf(t, n - 1)


def onsets(
    steps: Sequence[int],
    there: BoolArray,
    p_at_most: FloatArray,
    p_at_least: FloatArray,
    level: float = 0.95,
) -> FloatArray:
    """Onsets of ``k`` quantities over ``n`` checkpoints, with intervals.

    Args:
        steps: ``[n]``.
        there: ``[n, k]``, whether the estimate is at least the least value.
        p_at_most, p_at_least: ``[n, k]`` from :func:`one_sided`; NaN where nothing was measured.
        level: of all intervals together.

    Returns:
        ``[3, k]`` steps: the onset by the estimates, and the ends of its interval. NaN: it is not
        there at the last checkpoint; no checkpoint before it at which it clearly is not; at the
        last checkpoint it clearly is not there, or that cannot be told.
    """
    measured = np.isfinite(p_at_most) & np.isfinite(p_at_least)
    n_quantities = max(1, int(measured.any(0).sum()))
    each = (1 - level) / 2
    clear = measured & (np.where(measured, p_at_most, 1.0) * n_quantities <= each)
    corrected = holm(np.where(measured, p_at_least, np.nan).ravel()).reshape(there.shape)
    absent = measured & (np.where(measured, corrected, 1.0) <= each)
    return np.array(
        [_one(steps, *columns) for columns in zip(there.T, absent.T, clear.T, strict=True)]
    ).reshape(-1, 3).T  # fmt: skip


def _one(
    steps: Sequence[int], there: BoolArray, absent: BoolArray, clear: BoolArray
) -> tuple[float, float, float]:
    first, surely = trailing(there), trailing(clear)
    before = np.flatnonzero(absent[:surely])
    return (
        _step(steps, first),
        float(steps[before[-1]]) if len(before) else np.nan,
        _step(steps, surely),
    )


def first_lasting(there: BoolArray) -> NDArray[np.int_]:
    """Index of the first checkpoint ``[..., checkpoint]`` from which on all are true, or −1."""
    lasting = np.flip(np.minimum.accumulate(np.flip(there, -1), -1), -1)
    return np.where(lasting[..., -1], lasting.argmax(-1), -1)


def trailing(holds: BoolArray) -> int:
    """The first place from which on it holds to the end; the length if it does not there."""
    first = int(first_lasting(holds)) if len(holds) else -1
    return len(holds) if first < 0 else first


def _step(steps: Sequence[int], place: int) -> float:
    return float(steps[place]) if place < len(steps) else np.nan


@dataclass(frozen=True)
class Boundaries:
    """Boundaries of stages, ``k`` training steps with intervals."""

    step: FloatArray
    low: FloatArray
    high: FloatArray

    def stage(self, low: float, high: float) -> str:
        """The stages, counted from 1, that something between two steps can belong to.

        "2", or "2–3" where the interval reaches over a boundary, or a boundary's own interval over
        it. ``low`` is not part of it; NaN is the beginning. "" where ``high`` is NaN.
        """
        if np.isnan(high):
            return ""
        first = 1 + int((self.high <= low).sum())
        last = 1 + int((self.low < high).sum())
        return str(first) if last <= first else f"{first}–{last}"


def boundaries_of(stages: Any) -> Boundaries:
    """Boundaries from ``stages(…)`` of one curve, or from steps or (step, low, high) of each.

    Raises TypeError or ValueError, about the argument ``stages``, for anything else.
    """
    if isinstance(stages, xr.Dataset):
        return _of_result(stages)
    try:
        rows = np.array(stages, dtype=np.float64)
    except (TypeError, ValueError):
        rows = np.full((1, 1, 1), np.nan)
    if rows.size == 0:
        rows = rows.reshape(0)
    if rows.ndim == 1:
        rows = np.stack([rows] * 3, -1)
    if rows.ndim != 2 or rows.shape[1] != 3 or not np.isfinite(rows).all():
        raise ValueError(
            "stages must be what stages(…) returned, or a step or (step, low, high) for every "
            f"boundary; got {visible(str(stages))[:80]}"
        )
    step, low, high = rows.T
    if (np.diff(step) <= 0).any() or (low > step).any() or (high < step).any():
        raise ValueError(
            "stages: boundaries must rise, and lie within their intervals (step, low, high); got "
            f"{rows.tolist()}"
        )
    return Boundaries(step, low, high)


def _of_result(stages: xr.Dataset) -> Boundaries:
    names = ("boundary_step", "boundary_step_low", "boundary_step_high")
    if any(name not in stages for name in names):
        raise TypeError("stages must be what stages(…) returned; it has no boundary_step")
    if "component" in stages.dims:
        components = [str(name) for name in stages["component"].values]
        if len(components) > 1 and "full" not in components:
            raise ValueError(
                f"stages are of {len(components)} components, choose one: "
                f"stages.sel(component={components[0]!r})"
            )
        chosen = components.index("full") if "full" in components else 0
        stages = stages.isel(component=chosen)
    known = np.isfinite(stages["boundary_step"].values)
    return Boundaries(*(stages[name].values[known] for name in names))
