"""Stochastic gradient Langevin dynamics, as published for LLC estimation.

    u ← u − (ε/2)·(nβ·g + γ·u) + √ε·ξ,    u = v − v*

Welling & Teh 2011; with the localizing prior: Lau et al. 2023, The Local Learning Coefficient
(arXiv 2308.12108). First-order accurate: at the published step size its bias on refined LLCs is
several percent (see ``benchmarks/sampler_bias.py``).
"""

from __future__ import annotations

from torch import Tensor


def step(
    u: Tensor, grad: Tensor, noise: Tensor, *, step_size: float, n_beta: float, gamma: float
) -> Tensor:
    """One step of every chain; all tensors ``[component, chain, parameter]``."""
    return u - (step_size / 2) * (n_beta * grad + gamma * u) + noise * step_size**0.5
