"""Leimkuhler–Matthews Langevin sampling.

    u ← u − (ε/2)·(nβ·g + γ·u) + √ε·(ξ_t + ξ_{t+1})/2,    u = v − v*

One gradient a step like SGLD, but the noise is the mean of two consecutive normals. The rule is
second-order accurate in ε and exact for a Gaussian target, so ε can be tied to the localization:
with ε = 0.8/γ no step size is left to tune.

Leimkuhler & Matthews 2013, Rational construction of stochastic numerical methods for molecular
sampling (arXiv 1203.5428).
"""

from __future__ import annotations

from torch import Tensor


def step(
    u: Tensor, grad: Tensor, noise: Tensor, next_noise: Tensor, *,
    step_size: float, n_beta: float, gamma: float,
) -> Tensor:  # fmt: skip
    """One step of every chain; all tensors ``[component, chain, parameter]``."""
    drift = (step_size / 2) * (n_beta * grad + gamma * u)
    return u - drift + (noise + next_noise) * (step_size**0.5 / 2)
