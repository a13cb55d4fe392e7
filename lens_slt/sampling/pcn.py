"""Preconditioned Crank–Nicolson: exact, gradient-free sampling on a fixed likelihood set.

    u' = ρ·u + √(1 − ρ²)·ξ/√γ,    accept with probability min(1, exp(−nβ·(ΔL(u') − ΔL(u))))

The proposal leaves the prior N(0, 1/γ) invariant, so only the likelihood decides and the acceptance
rate does not vanish with the number of weights. There is no step-size bias. The step √(1 − ρ²) of
each chain adapts towards 30 % acceptance during burn-in only.

Cotter, Roberts, Stuart & White 2013, MCMC methods for functions (arXiv 1202.0709).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lens_slt.arrays import FloatArray
from lens_slt.sampling.sampler import Chains, Losses, Seen

EXACT = True
INDEPENDENT = False
CHOOSES_STEP = False
NO_CERTIFICATE = ""
PRIOR_DISTANCE = True
TARGET_ACCEPTANCE = 0.3
FIRST_SCALE = 0.3
LEAST_BURN_IN = 50


@dataclass(frozen=True)
class State:
    """Chains, their losses, and the step √(1 − ρ²) of each."""

    u: Tensor
    loss: Tensor
    scale: Tensor


def init(star: Tensor, chains: Chains, step: int) -> State:
    u = star.new_zeros(len(star), chains.n_chains, star.shape[1])
    return State(u, u.new_zeros(u.shape[:2]), u.new_full(u.shape[:2], FIRST_SCALE))


def step(state: State, losses: Losses, chains: Chains, step: int) -> tuple[State, Seen]:
    s = state.scale[..., None]
    kick = chains.noise(step) * (s / chains.gamma**0.5)
    proposed = state.u * (1 - s.square()).sqrt() + kick
    loss = losses.everything(proposed)
    log_ratio = -chains.n_beta * (loss - state.loss)
    # A non-finite loss is never accepted.
    taken = chains.uniform(step).to(loss).log() < log_ratio.nan_to_num(nan=float("-inf"))
    adapted = _adapted(state.scale, taken, step)
    new = State(
        torch.where(taken[..., None], proposed, state.u),
        torch.where(taken, loss, state.loss),
        torch.where(chains.burning_in[:, None], adapted, state.scale),
    )
    return new, Seen(new.u, new.loss)


def default_step_size(gamma: float) -> float:
    return FIRST_SCALE


def default_burn_in(gamma: float, step_size: float, draws: int) -> int:
    return max(LEAST_BURN_IN, draws // 4)


def prior_inflation(gamma: float, step_size: float) -> float:
    return 0.0


def draw_weights(paired_loss: FloatArray, n_beta: float) -> None:
    return None


def _adapted(scale: Tensor, accepted: Tensor, step: int) -> Tensor:
    """Robbins–Monro step of the proposal scale."""
    rate = (step + 1) ** -0.6
    log_scale = scale.log() + rate * (accepted.to(scale.dtype) - TARGET_ACCEPTANCE)
    return log_scale.exp().clamp(1e-3, 0.999)
