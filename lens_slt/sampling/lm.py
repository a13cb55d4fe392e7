"""Leimkuhler–Matthews Langevin sampling.

    u ← u − (ε/2)·M(nβ·g + γ·u) + √ε·M^½(ξ_t + ξ_{t+1})/2,    u = v − v*

One gradient a step like SGLD, but the noise is the mean of two consecutive normals. The rule is
second-order accurate in ε and exact for a Gaussian target. M is a fixed low-rank preconditioner
(:mod:`lens_slt.sampling.metric`) where ε is chosen by lens_slt, else the identity. Chains and their
prior chains start at the given weights: draws of the prior can lie on a cliff from which a chain
takes long to come down. What both still lack of the prior's spread cancels in the defect.

Leimkuhler & Matthews 2013, Rational construction of stochastic numerical methods for molecular
sampling (arXiv 1203.5428).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lens_slt.arrays import FloatArray
from lens_slt.sampling.sampler import Chains, Losses, Seen, coupled_virial

EXACT = False
INDEPENDENT = False
CHOOSES_STEP = True
NO_CERTIFICATE = ""
PRIOR_DISTANCE = True
STEP_TIMES_GAMMA = 0.8
BURN_IN_RELAXATIONS = 3.2  # e-foldings of the prior: 0.2 % of its variance are missing then


@dataclass(frozen=True)
class State:
    """Chains, their prior chains, and the normals that the next step uses again."""

    u: Tensor
    z: Tensor
    noise: Tensor


def init(star: Tensor, chains: Chains, step: int) -> State:
    nothing = star.new_zeros(len(star), chains.n_chains, star.shape[1])
    return State(nothing, nothing.clone(), chains.noise(step))


def step(state: State, losses: Losses, chains: Chains, step: int) -> tuple[State, Seen]:
    loss, grad = losses.minibatch(state.u)
    virial, defect = coupled_virial(state.u, state.z, grad, chains.n_beta, chains.gamma)
    seen = Seen(state.u, loss, virial, defect)
    following = chains.noise(step + 1)
    kick = (state.noise + following) * (chains.step_size.sqrt() / 2)
    force = chains.n_beta * grad + chains.gamma * state.u
    u = state.u - chains.metric.apply(force) * (chains.step_size / 2)
    u += chains.metric.apply(kick, 0.5)
    # The prior chain is M^-½ times a chain on the Gaussian that M is made for: that one is close
    # to u in the stiff directions too, and its virial is γ|z|².
    z = state.z * (1 - chains.step_size * (chains.gamma / 2)) + kick
    return State(u, z, following), seen


def default_step_size(gamma: float) -> float:
    return STEP_TIMES_GAMMA / gamma


def default_burn_in(gamma: float, step_size: float, draws: int) -> int:
    return math.ceil(BURN_IN_RELAXATIONS / (step_size * gamma / 2))


def prior_inflation(gamma: float, step_size: float) -> float:
    return 0.0


def draw_weights(paired_loss: FloatArray, n_beta: float) -> None:
    return None
