"""Losses of several phases on the same data, or on data with another share of a pattern."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lens_slt.arguments import choice, number
from lens_slt.arrays import FloatArray
from lens_slt.development.head_curves import LEAST_BLOCKS
from lens_slt.phases.phase import Phase


def check_pattern(phases: Sequence[Phase], pattern: str, share: float) -> None:
    """Refuse a pattern that not all phases know, and a share that is none."""
    number("share", share, at_least=0, at_most=1)
    for one in phases:
        if not one.sublosses:
            raise ValueError(f"pattern: {one.name!r} has no sublosses; give Phase(…, sublosses=…)")
        choice("pattern", pattern, one.sublosses)
        if one.sublosses[pattern].se is None:
            raise ValueError(
                f"pattern: the loss of {one.name!r} on {pattern!r} has no standard error: it is in "
                "too few sequences; measure a probe with more"
            )


def losses_of(
    phases: Sequence[Phase], pattern: str | None = None, share: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Losses ``[phase]`` and their covariance ``[phase, phase]``.

    With a pattern p these are the losses on data of which ``share`` is of the pattern and the rest
    as it was, at the same weights: share·L_p + (1 − share)·(L − s_p·L_p)/(1 − s_p), s_p the
    pattern's share of the data.

    Errors are those of the blocks of data that phases share, where all have them; elsewhere they
    are independent, which is too wide for losses on the same data.
    """
    weights = [_weights(one, pattern, share) for one in phases]
    means = np.array([_mixed(one, pattern, w) for one, w in zip(phases, weights, strict=True)])
    blocks = [_mixed_blocks(one, pattern, w) for one, w in zip(phases, weights, strict=True)]
    sizes = {len(one) for one in blocks}
    if len(sizes) == 1 and min(sizes) >= LEAST_BLOCKS:
        return means, np.atleast_2d(np.cov(np.array(blocks), ddof=1)) / min(sizes)
    return means, np.diag([_variance(one, pattern, share) for one in phases])


def _weights(one: Phase, pattern: str | None, share: float) -> tuple[float, float]:
    """How much the whole loss and the pattern's count."""
    if pattern is None:
        return 1.0, 0.0
    own = one.sublosses[pattern].share
    rest = (1 - share) / (1 - own)
    return rest, share - rest * own


def _mixed(one: Phase, pattern: str | None, weights: tuple[float, float]) -> float:
    part = one.sublosses[pattern].loss if pattern is not None else 0.0
    return weights[0] * one.loss + weights[1] * part


def _mixed_blocks(one: Phase, pattern: str | None, weights: tuple[float, float]) -> FloatArray:
    whole = np.array(one.blocks)
    if pattern is None:
        return whole
    part = np.array(one.sublosses[pattern].blocks)
    if len(part) != len(whole):
        return np.empty(0)
    return weights[0] * whole + weights[1] * part


def _variance(one: Phase, pattern: str | None, share: float) -> float:
    """Of the mixed loss, where the pattern's data and the rest are independent."""
    if pattern is None:
        return one.loss_se**2
    part = one.sublosses[pattern]
    error = part.se or 0.0  # those that are not known were refused
    rest = max(one.loss_se**2 - (part.share * error) ** 2, 0.0) / (1 - part.share) ** 2
    return (share * error) ** 2 + (1 - share) ** 2 * rest
