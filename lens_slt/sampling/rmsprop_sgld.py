"""SGLD with an RMSProp preconditioner, as published for LLC estimation.

    V ← α·V + (1 − α)·g²,    G = 1/(√V + δ)
    u ← u − (ε/2)·G·(nβ·g + γ·u) + √(ε·G)·ξ,    u = v − v*

with α = 0.99, δ = 0.1, V = 0 at the start, the raw minibatch gradient in V and no bias or
Γ-correction: the rule and the defaults of devinterp 2.0.1, after Li et al. 2016, Preconditioned
SGLD (arXiv 1512.07666). G multiplies the localization too, and where gradients are far below δ it
is 1/δ: the effective step size is then ten times ``step_size``.
"""

from __future__ import annotations

from torch import Tensor

ALPHA = 0.99
DELTA = 0.1


def step(
    u: Tensor, v: Tensor, grad: Tensor, noise: Tensor, *,
    step_size: float, n_beta: float, gamma: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step of every chain; returns the new u and the new running square of the gradient."""
    v = ALPHA * v + (1 - ALPHA) * grad.square()
    g = 1 / (v.sqrt() + DELTA)
    drift = (step_size / 2) * g * (n_beta * grad + gamma * u)
    return u - drift + noise * (step_size * g).sqrt(), v
