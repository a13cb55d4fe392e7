"""A low-rank preconditioner for the few directions that are stiffer than the prior.

Along an eigenvector of the loss with curvature nβ·h the local posterior is γ/(γ + nβ·h) times as
wide as the prior. Where that is narrow, a step that fits the prior is too large for Langevin
dynamics. :class:`Metric` is the matrix

    M = I + Σ_r (γ/(γ + k_r) − 1)·v_r v_rᵀ,    k_r = max(nβ·h_r, 0)

of the leading eigenpairs at the given weights. Drift and noise multiplied by M and M^½ sample the
same distribution for every fixed positive M, so a rough M costs accuracy nothing. Every component
has its own.

Cui, Law & Marzouk 2016, Dimension-independent likelihood-informed MCMC (arXiv 1411.3688).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RANK = 8
LANCZOS_STEPS = 12  # gradients; the leading eigenvalues of a loss stand far apart and come first
LEAST_STIFFNESS = 0.5  # nβ·h over γ of a direction that is kept
LOST = 1e-4  # share of a product of which nothing but rounding is left
DIFFERENCE = 0.02  # length of the step of gradient differences, in standard deviations of the prior

Gradient = Callable[[Tensor], Tensor]  # u [component, n, parameter] -> gradient of the mean loss


@dataclass(frozen=True)
class Metric:
    """M of every component of a group; rank 0 is the identity."""

    scale: Tensor  # [component, rank], γ/(γ + k)
    vectors: Tensor  # [component, rank, parameter], orthonormal

    def apply(self, x: Tensor, power: float = 1.0) -> Tensor:
        """M^power times every row of ``x [component, chain, parameter]``."""
        if not self.scale.shape[1]:
            return x
        along = x @ self.vectors.mT * (self.scale[:, None] ** power - 1)
        return x + along @ self.vectors

    def rows(self, index: list[int]) -> Metric:
        """M of some of the components."""
        return Metric(self.scale[index], self.vectors[index])


def identity(star: Tensor) -> Metric:
    """No preconditioner, for a group with given weights ``star [component, parameter]``."""
    n, p = star.shape
    return Metric(star.new_ones(n, 0), star.new_zeros(n, 0, p))


def metric_at_star(curvature: tuple[Tensor, Tensor], gamma: float) -> Metric:
    """The metric of the leading eigenpairs ``nβ·h [component, rank]`` and their vectors."""
    values, vectors = curvature
    stiff = values > LEAST_STIFFNESS * gamma
    rank = int(stiff.any(0).nonzero().max()) + 1 if stiff.any() else 0
    # Where only others of the group have that many stiff directions, 1 leaves x as it is.
    scale = torch.where(stiff, gamma / (gamma + values), 1.0)
    return Metric(scale[:, :rank], vectors[:, :rank].contiguous())


def leading_curvature(
    gradient: Gradient, at: Tensor, start: Tensor, gamma: float, n_beta: float
) -> tuple[Tensor, Tensor]:
    """Leading eigenpairs of nβ times the Hessian at ``at [component, parameter]``, largest first.

    Lanczos on gradient differences with full reorthogonalisation, for all components at once.

    Args:
        gradient: of the mean loss, on the same data at every call.
        at: displacement from the given weights.
        start: a random vector per component, same shape.
        gamma: localization; sets the length of a difference.
        n_beta: inverse temperature.

    Returns:
        nβ·h ``[component, rank]`` and orthonormal vectors ``[component, rank, parameter]``.
    """
    n, p = at.shape
    steps = min(LANCZOS_STEPS, p)
    length = DIFFERENCE / gamma**0.5
    basis = start.new_zeros(n, steps, p)
    matrix = start.new_zeros(n, steps, steps, dtype=torch.float64)
    here = gradient(at[:, None])[:, 0]
    vector = start / start.norm(dim=-1, keepdim=True)
    for i in range(steps):
        basis[:, i] = vector
        product = (gradient((at + length * vector)[:, None])[:, 0] - here) * (n_beta / length)
        product = torch.where(product.isfinite().all(-1, keepdim=True), product, 0)
        known = basis[:, : i + 1]
        along = (known @ product[..., None])[..., 0]
        matrix[:, i, : i + 1] = along
        matrix[:, : i + 1, i] = along
        product = _across(known, product)
        # Where eigenvalues coincide what is left is rounding noise: another direction is as good.
        size, noise = product.norm(dim=-1, keepdim=True), LOST * along.norm(dim=-1, keepdim=True)
        vector = torch.where(size > noise, product, _across(known, start.roll(i + 1, -1)))
        vector = vector / vector.norm(dim=-1, keepdim=True)
    values, mixing = torch.linalg.eigh(matrix)
    rank = min(RANK, steps)
    values, mixing = values.flip(-1)[:, :rank], mixing.flip(-1)[..., :rank]
    vectors = mixing.mT.to(basis) @ basis
    return values.to(at), vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _across(known: Tensor, vector: Tensor) -> Tensor:
    """What ``vector [component, parameter]`` has across rows of ``known``."""
    for _ in range(2):  # once leaves what rounding puts back
        vector = vector - ((known @ vector[..., None])[..., 0][:, None] @ known)[:, 0]
    return vector
