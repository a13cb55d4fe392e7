"""Stages of training: from a curve over checkpoints to boundaries with intervals and types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arguments import integer, number, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.development.labelled import (
    check_same_steps,
    component_curves,
    observables,
    padded,
    with_interval,
)
from lens_slt.development.noise import checked_curve
from lens_slt.development.segments import SURE, Segments, cut
from lens_slt.schema import stamped

TRENDS = ("rises", "falls", "flat")


@dataclass(frozen=True)
class Stages:
    """Stages of one curve; intervals are ``[3, ...]``: median, lower and upper end.

    Places of boundaries are training steps; slopes are per unit of log(step + 1).
    """

    boundaries: FloatArray  # [3, k] steps
    support: FloatArray  # [k] probability of a corner within each interval
    staged: float  # probability that there is one
    slopes: FloatArray  # [3, k + 1]
    trends: tuple[str, ...]  # [k + 1] rises, falls, flat or unclear
    probability: FloatArray  # [k + 1] of the most probable trend
    below: FloatArray  # [k + 1] probability that the curve is below zero in its middle
    fit: FloatArray  # [3, n] the curve without noise, all numbers of stages averaged
    noise: float  # standard deviation of the errors over the one that was given (or itself)


def find_stages(
    steps: FloatArray,
    values: FloatArray,
    *,
    se: FloatArray | None = None,
    covariance: FloatArray | None = None,
    blocks: FloatArray | None = None,
    flat: float = 0.05,
    level: float = 0.95,
    seed: int = 0,
) -> Stages:
    """Stages of a curve over ``n`` checkpoints: the function under :func:`stages`, on arrays.

    Args:
        steps: ``[n]`` training steps, strictly increasing, at least 20.
        values: ``[n]``.
        se: ``[n]`` standard errors. Without them, ``covariance`` or ``blocks``, errors are taken
            to be independent and of one size that is read off the curve.
        covariance: ``[n, n]`` of the errors, instead of ``se`` and ``blocks``.
        blocks: ``[b, n]`` values of blocks of draws, for the correlations of errors.
        flat: a stage is flat where its slope is within this share of the curve's largest absolute
            value, per unit of log(step + 1).
        level: of intervals.
        seed: of the sampler.

    Raises ValueError for numbers out of range and for what ``checked_curve`` refuses.
    """
    _check(flat, level, seed)
    curve = checked_curve(steps, values, se=se, covariance=covariance, blocks=blocks)
    return _stages_of(cut(curve, level=level, seed=seed), flat)


def _check(flat: float, level: float, seed: int) -> None:
    number("flat", flat, above=0.0, below=1.0)
    number("level", level, above=0.0, below=1.0)
    integer("seed", seed, at_least=0, at_most=2**32 - 1)


def _stages_of(found: Segments, flat: float) -> Stages:
    fit = found.interval(found.posterior.values(found.curve.x))
    slopes = found.slopes
    bound = flat * np.abs(fit[0]).max()
    chances = np.array([
        (slopes > bound).mean(0), (slopes < -bound).mean(0), (np.abs(slopes) <= bound).mean(0),
    ])  # fmt: skip
    best = chances.argmax(0)
    sure = chances.max(0) >= SURE
    trends = [TRENDS[b] if s else "unclear" for b, s in zip(best, sure, strict=True)]
    edges = found.edges
    middle = found.posterior.values((edges[1:] + edges[:-1]) / 2)
    return Stages(
        np.expm1(found.boundaries()), found.support, found.staged,
        found.interval(slopes), tuple(trends),
        chances.max(0), (middle < 0).mean(0), fit, float(np.median(found.posterior.noise)),
    )  # fmt: skip


@typed
def stages(
    curve: xr.Dataset,
    *,
    loss: xr.DataArray | None = None,
    sublosses: xr.DataArray | None = None,
    flat: float = 0.05,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Stages of training: boundaries with intervals, and the type of every stage.

    A curve is a line and at most one power of the step, as a curve without stages follows them,
    plus corners that change its slope over log(step + 1). The number of corners and their places
    are drawn from their posterior, given the errors of λ̂ and their correlations (shared randomness
    makes neighbours alike); a *boundary* is a corner, where the slope is half-way between those of
    the stages on its sides. Intervals hold what that posterior leaves open: noise, other places of
    the other corners, round corners. What they do not hold is a curve made of anything else, such
    as a wave within a stage.

    Types, after Hoogland et al. 2024 (arXiv 2402.02364): ``A``, the loss falls and λ̂ rises;
    ``B``, both fall; ``plateau``, λ̂ is flat; ``below start``, λ̂ is below zero, so that the
    checkpoint is no minimum and λ̂ no learning coefficient. Without a loss, or where it does not
    clearly fall, ``rises`` and ``falls`` are what λ̂ does. ``unclear``: no trend has a
    probability of 0.8.

    Args:
        curve: with the dimension ``checkpoint``, whose coordinate is the training step: ``llc`` and
            ``se`` (checkpoint, component); if there, ``blocks`` (checkpoint, block, component), λ̂
            of the same blocks of draws everywhere. A curve without ``component`` is that of the
            component ``full``.
        loss: over the same checkpoints. Its noise is read off the curve.
        sublosses: over the same checkpoints and ``pattern``.
        flat: λ̂ is flat where its slope is within this share of its largest absolute value, per
            unit of log(step + 1).
        level: of intervals.
        seed: of the sampler; the global random state is not touched.

    Returns:
        Dataset over ``component``: ``n_stages``; ``staged``, the probability that there is more
        than one; ``noise``, the errors that the curve shows, over those that were given. Over
        ``boundary``: ``boundary_step`` with its interval (``boundary_step_low``,
        ``boundary_step_high``, and so for every interval); ``support``, the probability of a
        corner within it. Over ``stage``: ``start`` and ``end`` (steps); ``slope`` with
        interval, λ̂ per unit of log(step + 1); ``trend`` and its ``probability``; ``type``; with a
        loss, ``loss_change`` with interval. Over ``stage`` and ``pattern``: ``subloss_change`` with
        interval. Over ``step``: ``fit`` with interval, the curve without noise. Components with
        fewer stages than others have NaN, or empty text, for the rest.

    Raises ValueError for fewer than 20 checkpoints, steps that repeat or run backwards, values that
    are not finite, other checkpoints in ``loss`` or ``sublosses``, numbers out of range.

    Example:
        >>> import numpy as np, xarray as xr, lens_slt as ls
        >>> steps = np.unique(np.geomspace(1, 20_000, 40).astype(int))
        >>> x = np.log1p(steps)
        >>> llc = 10 + 12 * (np.clip(x, 4, 6) - 4) + 0.1 * np.sin(50 * x)
        >>> curve = xr.Dataset(
        ...     {"llc": ("checkpoint", llc), "se": ("checkpoint", 0.3 + 0 * x)},
        ...     coords={"checkpoint": steps},
        ... )
        >>> found = ls.stages(curve).sel(component="full")
        >>> " ".join(found["trend"].values)
        'flat rises flat'
    """
    _check(flat, level, seed)
    steps, curves = component_curves(curve)
    losses = _cut_all(loss, "loss", steps, level, seed)
    if len(losses) > 1:
        raise ValueError("loss must have the dimension 'checkpoint' only; sublosses takes several")
    patterns = _cut_all(sublosses, "sublosses", steps, level, seed)
    found = [
        find_stages(steps, **arrays, flat=flat, level=level, seed=seed)
        for arrays in curves.values()
    ]
    bounds = [np.array([steps[0], *one.boundaries[0], steps[-1]]) for one in found]
    data = _boundary_variables(found) | _stage_variables(found, bounds)
    coords: dict[str, Any] = {"component": list(curves), "step": steps}
    falls = [np.zeros(len(one.trends), dtype=bool) for one in found]
    if losses:
        changes = [_changes(next(iter(losses.values())), one) for one in bounds]
        data |= with_interval("loss_change", ("component", "stage"), changes)
        falls = [(change[2] < 0) for change in changes]
    if patterns:
        each = [np.stack([_changes(p, one) for p in patterns.values()], -1) for one in bounds]
        data |= with_interval("subloss_change", ("component", "stage", "pattern"), each)
        coords["pattern"] = list(patterns)
    types = [_types(one, fall) for one, fall in zip(found, falls, strict=True)]
    data["type"] = (("component", "stage"), padded(types, str))
    settings = dict(flat=flat, level=level, seed=seed)
    return stamped(xr.Dataset(data, coords=coords, attrs=settings), "stages")


def _cut_all(
    curves: xr.DataArray | None, argument: str, steps: FloatArray, level: float, seed: int
) -> dict[str, Segments]:
    if curves is None:
        return {}
    check_same_steps(curves, steps, argument, "curve")
    return {
        name: cut(checked_curve(steps, values, name=f"{argument} {name}"), level=level, seed=seed)
        for name, values in observables(curves, argument).items()
    }


def _changes(of: Segments, bounds: FloatArray) -> FloatArray:
    """``[3, stages]``: change of a curve over every stage, with intervals."""
    values = of.posterior.values(np.log1p(bounds))
    return of.interval(np.diff(values, axis=1))


def _types(found: Stages, loss_falls: BoolArray) -> list[str]:
    types = []
    for trend, below, falls in zip(found.trends, found.below, loss_falls, strict=True):
        named = {"rises": "A", "falls": "B"} if falls else {}
        kind = named.get(trend, "plateau" if trend == "flat" else trend)
        types.append("below start" if below >= SURE else kind)
    return types


def _boundary_variables(found: list[Stages]) -> dict[str, Any]:
    dims = ("component", "boundary")
    return {
        **with_interval("boundary_step", dims, [one.boundaries for one in found]),
        "support": (dims, padded([one.support for one in found])),
        "n_stages": ("component", np.array([len(one.trends) for one in found])),
        "staged": ("component", np.array([one.staged for one in found])),
        "noise": ("component", np.array([one.noise for one in found])),
        **with_interval("fit", ("component", "step"), [one.fit for one in found]),
    }


def _stage_variables(found: list[Stages], bounds: list[FloatArray]) -> dict[str, Any]:
    dims = ("component", "stage")
    return {
        "start": (dims, padded([one[:-1] for one in bounds])),
        "end": (dims, padded([one[1:] for one in bounds])),
        **with_interval("slope", dims, [one.slopes for one in found]),
        "trend": (dims, padded([one.trends for one in found], str)),
        "probability": (dims, padded([one.probability for one in found])),
    }
