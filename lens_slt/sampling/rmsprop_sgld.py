"""SGLD with an RMSProp preconditioner, as published for LLC estimation.

    V ← α·V + (1 − α)·g²,    G = 1/(√V + δ)
    u ← u − (ε/2)·G·(nβ·g + γ·u) + √(ε·G)·ξ,    u = v − v*,    u = 0 at the start

with α = 0.99, δ = 0.1, V = 0 at the start, the raw minibatch gradient in V and no bias or
Γ-correction: the rule and the defaults of devinterp 2.0.1, after Li et al. 2016, Preconditioned
SGLD (arXiv 1512.07666). G multiplies the localization too, and where gradients are far below δ it
is 1/δ: the effective step size is then ten times ``step_size``.

There is no certificate: G follows the gradients and so the chain itself, the Γ-correction that
would make up for it is left out, and no prior chain with a known variance can be driven by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lens_slt.arrays import FloatArray
from lens_slt.sampling.sampler import Chains, Losses, Seen

EXACT = False
INDEPENDENT = False
CHOOSES_STEP = False
NO_CERTIFICATE = "no identity for rmsprop_sgld: its preconditioner follows the chain"
PRIOR_DISTANCE = False
STEP_SIZE = 1e-3
BURN_IN_RELAXATIONS = 8
ALPHA = 0.99
DELTA = 0.1


@dataclass(frozen=True)
class State:
    """Chains and the running square of their gradients."""

    u: Tensor
    square: Tensor


def init(star: Tensor, chains: Chains, step: int) -> State:
    u = star.new_zeros(len(star), chains.n_chains, star.shape[1])
    return State(u, u.clone())


def step(state: State, losses: Losses, chains: Chains, step: int) -> tuple[State, Seen]:
    loss, grad = losses.minibatch(state.u)
    square = ALPHA * state.square + (1 - ALPHA) * grad.square()
    g = chains.step_size / (square.sqrt() + DELTA)
    drift = (g / 2) * (chains.n_beta * grad + chains.gamma * state.u)
    return State(state.u - drift + chains.noise(step) * g.sqrt(), square), Seen(state.u, loss)


def default_step_size(gamma: float) -> float:
    return STEP_SIZE


def default_burn_in(gamma: float, step_size: float, draws: int) -> int:
    return math.ceil(BURN_IN_RELAXATIONS / (step_size * gamma / 2))


def prior_inflation(gamma: float, step_size: float) -> float:
    return 0.0


def draw_weights(paired_loss: FloatArray, n_beta: float) -> None:
    return None
