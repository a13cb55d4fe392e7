"""Preconditioned Crank–Nicolson: exact, gradient-free sampling on a fixed likelihood set.

    u' = ρ·u + √(1 − ρ²)·ξ/√γ,    accept with probability min(1, exp(−nβ·(ΔL(u') − ΔL(u))))

The proposal leaves the prior N(0, 1/γ) invariant, so only the likelihood decides and the acceptance
rate does not vanish with the number of weights. There is no step-size bias. The step √(1 − ρ²) of
each chain adapts towards 30 % acceptance during burn-in only.

Cotter, Roberts, Stuart & White 2013, MCMC methods for functions (arXiv 1202.0709).
"""

from __future__ import annotations

from torch import Tensor

TARGET_ACCEPTANCE = 0.3
FIRST_SCALE = 0.3


def propose(u: Tensor, scale: Tensor, noise: Tensor, gamma: float) -> Tensor:
    """Proposal of every chain; ``scale [component, chain]`` is √(1 − ρ²)."""
    s = scale[..., None]
    return u * (1 - s.square()).sqrt() + noise * (s / gamma**0.5)


def accept(loss: Tensor, proposed_loss: Tensor, uniform: Tensor, n_beta: float) -> Tensor:
    """Which proposals are taken ``[component, chain]``; a non-finite loss never is."""
    log_ratio = -n_beta * (proposed_loss - loss)
    return uniform.log() < log_ratio.nan_to_num(nan=float("-inf"))


def adapt(scale: Tensor, accepted: Tensor, step: int) -> Tensor:
    """Robbins–Monro step of the proposal scale; used during burn-in only."""
    rate = (step + 1) ** -0.6
    log_scale = scale.log() + rate * (accepted.to(scale.dtype) - TARGET_ACCEPTANCE)
    return log_scale.exp().clamp(1e-3, 0.999)
