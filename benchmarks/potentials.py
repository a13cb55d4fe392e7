"""Closed forms of localised posteriors: λ̂ at finite nβ and γ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lens_slt.phases.toys.known import Loss


def normal_crossing_exact(exponents: Sequence[int], n_beta: float, gamma: float) -> float:
    """nβ·E[K] under exp(−nβ·K − γ/2·‖w‖²), by the trapezoid rule in log |w_i|."""
    points = {1: 20001, 2: 3001, 3: 401}[len(exponents)]
    t = np.linspace(-40.0 if len(exponents) == 1 else -25.0, math.log(9 / gamma**0.5), points)
    log_density = np.zeros((1,) * len(exponents))
    log_k = np.zeros((1,) * len(exponents))
    for axis, k in enumerate(exponents):
        shape = [1] * len(exponents)
        shape[axis] = points
        log_density = log_density + (t - gamma / 2 * np.exp(2 * t)).reshape(shape)
        log_k = log_k + (2 * k * t).reshape(shape)
    loss = n_beta * np.exp(log_k)
    density = np.exp(log_density - loss)
    return float((loss * density).sum() / density.sum())


def quadratic(curvatures: Tensor) -> Loss:
    """½ Σ h_i w_i²."""
    return lambda w: (w.square() * curvatures).sum(-1) / 2


def quadratic_exact(curvatures: Tensor, n_beta: float, gamma: float) -> float:
    """nβ·E[½ Σ h_i w_i²] under exp(−nβ·L − γ/2·‖w‖²)."""
    return float((n_beta * curvatures / (n_beta * curvatures + gamma)).sum() / 2)
