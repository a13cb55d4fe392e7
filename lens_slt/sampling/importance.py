"""Importance sampling from the Gaussian prior: exact, gradient-free, independent draws.

Draws come from N(v*, 1/γ) and get the weight exp(−nβ·ΔL). Weights are Pareto-smoothed; where the
shape k̂ of their tail exceeds 0.7 the estimate has no reliable error and is refused.

Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto smoothed importance sampling (arXiv 1507.02646).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lens_slt.arrays import FloatArray
from lens_slt.sampling.sampler import Chains, Losses, Seen

EXACT = True
INDEPENDENT = True
CHOOSES_STEP = False
NO_CERTIFICATE = ""
PRIOR_DISTANCE = False  # draws are the prior's, whatever their weights are
LARGEST_K_HAT = 0.7


@dataclass(frozen=True)
class State:
    """The last draws."""

    u: Tensor


def init(star: Tensor, chains: Chains, step: int) -> State:
    return State(star.new_zeros(len(star), chains.n_chains, star.shape[1]))


def step(state: State, losses: Losses, chains: Chains, step: int) -> tuple[State, Seen]:
    u = chains.noise(step) / chains.gamma**0.5
    return State(u), Seen(u, losses.everything(u))


def default_step_size(gamma: float) -> float:
    return 1.0


def default_burn_in(gamma: float, step_size: float, draws: int) -> int:
    return 0


def prior_inflation(gamma: float, step_size: float) -> float:
    return 0.0


def draw_weights(paired_loss: FloatArray, n_beta: float) -> tuple[FloatArray, str]:
    """Normalised Pareto-smoothed weights of prior draws ``[draw]``, refused where k̂ > 0.7."""
    if n_beta == 0:
        return np.full(len(paired_loss), 1 / len(paired_loss)), ""
    weights, k_hat = pareto_smoothed(-n_beta * paired_loss)
    heavy = not k_hat <= LARGEST_K_HAT
    return weights, f"importance weights too heavy (k̂ = {k_hat:.2f})" if heavy else ""


def pareto_smoothed(log_weights: FloatArray) -> tuple[FloatArray, float]:
    """Normalised Pareto-smoothed weights ``[draw]``, and the shape k̂ of their tail."""
    import arviz as az  # on use: it takes seconds to load

    with np.errstate(over="ignore"):  # of candidates for k̂ that are far off
        smoothed, k_hat = az.psislw(log_weights.astype(np.float64))
    return np.exp(np.asarray(smoothed)), float(k_hat)
