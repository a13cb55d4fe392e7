"""Closed forms of localised posteriors: λ̂ at finite nβ and γ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.signal import fftconvolve
from torch import Tensor

from lens_slt.phases.toys.known import Loss

STEP, LEAST_LOG = 0.02, -240.0  # of a grid of log K


def normal_crossing_exact(exponents: Sequence[int], n_beta: float, gamma: float) -> float:
    """nβ·E[K] under exp(−nβ·K − γ/2·‖w‖²): log K is a sum, and its density a convolution."""
    total, start = np.ones(1), 0.0
    for k in exponents:
        ends = -LEAST_LOG / STEP, 2 * k * math.log(9 / gamma**0.5) / STEP  # |w| below nine spreads
        y = STEP * np.arange(-int(ends[0]), int(ends[1]) + 1)
        size = np.exp(y / (2 * k))
        density = size * np.exp(-gamma / 2 * size**2)  # of y = log w^{2k}
        total, start = fftconvolve(total, density / density.sum()), start + y[0]
    loss = n_beta * np.exp(start + STEP * np.arange(len(total)))
    weight = np.maximum(total, 0) * np.exp(-loss)
    return float((loss * weight).sum() / weight.sum())


def quadratic(curvatures: Tensor) -> Loss:
    """½ Σ h_i w_i²."""
    return lambda w: (w.square() * curvatures).sum(-1) / 2


def quadratic_exact(curvatures: Tensor, n_beta: float, gamma: float) -> float:
    """nβ·E[½ Σ h_i w_i²] under exp(−nβ·L − γ/2·‖w‖²)."""
    return float((n_beta * curvatures / (n_beta * curvatures + gamma)).sum() / 2)
