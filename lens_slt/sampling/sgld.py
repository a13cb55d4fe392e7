"""Stochastic gradient Langevin dynamics, as published for LLC estimation.

    u ← u − (ε/2)·(nβ·g + γ·u) + √ε·ξ,    u = v − v*,    u = 0 at the start

Welling & Teh 2011; with the localizing prior: Lau et al. 2023, The Local Learning Coefficient
(arXiv 2308.12108). First-order accurate: even without a loss its variance is 1/(1 − εγ/4) times the
prior's, and at the published step size its bias on refined LLCs is several percent (see
``benchmarks/sampler_bias.py``). The certificate's prior chain moves by the same rule, so that
inflation is added to what the coupled virial tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lens_slt.arrays import FloatArray
from lens_slt.sampling.sampler import Chains, Losses, Seen, coupled_virial

EXACT = False
INDEPENDENT = False
CHOOSES_STEP = False
NO_CERTIFICATE = ""
PRIOR_DISTANCE = True
STEP_SIZE = 1e-3
BURN_IN_RELAXATIONS = 8  # e-foldings of the prior; chains start at the given weights


@dataclass(frozen=True)
class State:
    """Chains and their prior chains."""

    u: Tensor
    z: Tensor


def init(star: Tensor, chains: Chains, step: int) -> State:
    nothing = star.new_zeros(len(star), chains.n_chains, star.shape[1])
    return State(nothing, nothing.clone())


def step(state: State, losses: Losses, chains: Chains, step: int) -> tuple[State, Seen]:
    loss, grad = losses.minibatch(state.u)
    virial, defect = coupled_virial(state.u, state.z, grad, chains.n_beta, chains.gamma)
    half, kick = chains.step_size / 2, chains.noise(step) * chains.step_size.sqrt()
    u = state.u - half * (chains.n_beta * grad + chains.gamma * state.u) + kick
    z = state.z - half * (chains.gamma * state.z) + kick
    return State(u, z), Seen(state.u, loss, virial, defect)


def default_step_size(gamma: float) -> float:
    return STEP_SIZE


def default_burn_in(gamma: float, step_size: float, draws: int) -> int:
    return math.ceil(BURN_IN_RELAXATIONS / (step_size * gamma / 2))


def prior_inflation(gamma: float, step_size: float) -> float:
    heat = step_size * gamma / 4
    return heat / (1 - heat) if heat < 1 else float("inf")


def draw_weights(paired_loss: FloatArray, n_beta: float) -> None:
    return None
