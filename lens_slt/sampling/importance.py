"""Importance sampling from the Gaussian prior: exact, gradient-free, independent draws.

Draws come from N(v*, 1/γ) and get the weight exp(−nβ·ΔL). Weights are Pareto-smoothed; where the
shape k̂ of their tail exceeds 0.7 the estimate has no reliable error and is refused.

Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto smoothed importance sampling (arXiv 1507.02646).
"""

from __future__ import annotations

import numpy as np

from lens_slt.arrays import FloatArray

LARGEST_K_HAT = 0.7


def smoothed_weights(paired_loss: FloatArray, n_beta: float) -> tuple[FloatArray, float]:
    """Normalised Pareto-smoothed weights of prior draws ``[draw]`` and their k̂."""
    if n_beta == 0:
        return np.full(len(paired_loss), 1 / len(paired_loss)), float("-inf")
    import arviz as az  # on use: it takes seconds to load

    log_weights, k_hat = az.psislw(-n_beta * paired_loss.astype(np.float64))
    return np.exp(np.asarray(log_weights)), float(k_hat)


def weighted_mean(weights: FloatArray, values: FloatArray) -> tuple[float, float, float]:
    """Mean, standard error (delta method) and effective number of draws."""
    mean = float(weights @ values)
    error = float(np.sqrt((weights**2) @ (values - mean) ** 2))
    return mean, error, float(1 / (weights**2).sum())
