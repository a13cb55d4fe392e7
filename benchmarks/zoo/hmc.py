"""Function-space Hamiltonian Monte Carlo: an exact sampler whose cost does not grow with weights.

The target exp(−nβ·L(u) − γ/2·‖u‖²) is written as exp(−Ψ(u)) on the Gaussian N(0, C) with
C = (γ + nβ·H)⁻¹, H a low-rank positive part of the Hessian, so Ψ(u) = nβ·L(u) − nβ/2·uᵀHu. A step
of size h is half a kick, velocity − (h/2)·C·∇Ψ, an exact rotation of (u, velocity) by the angle h,
and half a kick; the trajectory is accepted on its exact change of energy. C decides the speed,
never the distribution.

Beskos, Pinski, Sanz-Serna & Stuart 2011, Hybrid Monte Carlo on Hilbert spaces (Stochastic Processes
and their Applications 121).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

Potential = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Displacements ``u [row, parameter]`` to paired losses ``[row]`` (float64) and gradients."""

RANK = 16
DIFFERENCE = 3e-3  # displacement of a gradient difference
TURN = 1.4  # length of a trajectory; π/2 forgets where it began if the target is N(0, C)
MOST_STEPS = 24
WANTED_ACCEPTANCE = 0.75
FIRST_STEP = 0.2
DESCENT = 30  # steps


@dataclass(frozen=True)
class Reference:
    """N(0, C), C⁻¹ = γ + basis·diag(stiffness)·basisᵀ."""

    gamma: float
    basis: Tensor  # [parameter, rank], orthonormal
    stiffness: Tensor  # [rank] nβ·curvature, ≥ 0

    def covariance_times(self, x: Tensor) -> Tensor:
        """C·x of every row."""
        share = self.stiffness / (self.gamma + self.stiffness)
        return (x - ((x @ self.basis) * share) @ self.basis.T) / self.gamma

    def stiff_part(self, u: Tensor) -> Tensor:
        """nβ·H·u of every row."""
        return ((u @ self.basis) * self.stiffness) @ self.basis.T

    def draw(self, like: Tensor, generator: Generator) -> Tensor:
        """Independent draws of N(0, C), shaped like ``like [row, parameter]``."""
        z = torch.randn(like.shape, generator=generator, dtype=like.dtype)
        lost = 1 - (self.gamma / (self.gamma + self.stiffness)).sqrt()
        return (z - ((z @ self.basis) * lost) @ self.basis.T) / self.gamma**0.5


@dataclass(frozen=True)
class State:
    """Where the chains are: displacement, paired loss, gradient of the loss."""

    u: Tensor  # [chain, parameter]
    loss: Tensor  # [chain], float64
    gradient: Tensor  # [chain, parameter]


@dataclass(frozen=True)
class Sampler:
    """Everything but the state."""

    potential: Potential
    n_beta: float
    reference: Reference
    step: float = FIRST_STEP

    @property
    def n_steps(self) -> int:
        return max(1, min(MOST_STEPS, round(TURN / self.step)))


def start(potential: Potential, u: Tensor) -> State:
    """Chains at ``u``."""
    return State(u, *potential(u))


def descend(potential: Potential, u: Tensor, n_beta: float, gamma: float) -> Tensor:
    """Where chains get from ``u`` by a few steps of Adam towards the top of the distribution.

    Draws of the prior can lie so far up a wall that is flat there and steep below that exact
    sampling takes hundreds of trajectories to come down; each still sees its own valley.
    """
    mean, square = torch.zeros_like(u), torch.zeros_like(u)
    for i in range(DESCENT):
        gradient = n_beta * potential(u)[1] + gamma * u
        mean, square = 0.8 * mean + 0.2 * gradient, 0.9 * square + 0.1 * gradient.square()
        along = mean / (1 - 0.8 ** (i + 1)) / (square / (1 - 0.9 ** (i + 1))).sqrt().clamp(1e-12)
        u = u - 0.2 / gamma**0.5 * (1 - i / DESCENT) * along
    return u


def curvature(
    potential: Potential,
    state: State,
    n_beta: float,
    gamma: float,
    *,
    basis: Tensor | None = None,
    iterations: int = 5,
    seed: int = 0,
) -> Reference:
    """The stiffest directions of the Hessian averaged over the chains, by block power iteration
    on gradient differences with a final Rayleigh–Ritz step."""
    chains, n_parameters = state.u.shape
    rank = min(RANK, n_parameters)
    if basis is None:
        generator = Generator().manual_seed(seed)
        basis = torch.randn(n_parameters, rank, generator=generator, dtype=state.u.dtype)
    basis = torch.linalg.qr(basis)[0]
    for i in range(iterations):
        moved = (state.u[:, None] + DIFFERENCE * basis.T).flatten(0, 1)
        gradients = potential(moved)[1].view(chains, rank, n_parameters)
        product = ((gradients - state.gradient[:, None]) / DIFFERENCE).mean(0).T
        if not product.isfinite().all():
            raise FloatingPointError("a gradient is not finite where the chains are")
        if i < iterations - 1:
            basis = torch.linalg.qr(product)[0]
    inner = basis.T @ product
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    return Reference(gamma, basis @ vectors, (n_beta * values).clamp(min=0))


def advance(sampler: Sampler, state: State, generator: Generator) -> tuple[State, Tensor]:
    """One trajectory of every chain; also the probabilities of acceptance ``[chain]``."""
    reference, n_beta = sampler.reference, sampler.n_beta
    h = sampler.step * (0.8 + 0.4 * float(torch.rand(1, generator=generator)))
    cos, sin = math.cos(h), math.sin(h)
    velocity = reference.draw(state.u, generator)
    force, psi = _psi(reference, state, n_beta)
    now, energy = state, -psi
    for _ in range(sampler.n_steps):
        velocity, gained = _kick(reference, velocity, force, h)
        energy = energy + gained
        u = now.u * cos + velocity * sin
        velocity = velocity * cos - now.u * sin
        now = start(sampler.potential, u)
        force, psi = _psi(reference, now, n_beta)
        velocity, gained = _kick(reference, velocity, force, h)
        energy = energy + gained
    energy = (energy + psi).nan_to_num(nan=float("inf"))
    probability = (-energy).clamp(max=0).exp()
    taken = torch.rand(len(energy), generator=generator, dtype=torch.float64) < probability
    return _choose(taken[:, None], now, state), probability


def settle(
    potential: Potential,
    state: State,
    reference: Reference,
    n_beta: float,
    *,
    iterations: int,
    rounds: int,
    deadline: float,
    generator: Generator,
) -> tuple[Sampler, State]:
    """Rounds of adaptation, each with the curvature where the last one ended, until the step no
    longer grows and the chains, which begin at different places, see like losses; or until the
    ``deadline`` of this process's CPU time.
    """
    sampler = Sampler(potential, n_beta, reference)
    for i in range(rounds):
        before = sampler.step
        sampler, state, level = adapt(sampler, state, iterations, generator)
        apart = n_beta * float(level.max() - level.min())
        alike = apart < max(1.0, n_beta * abs(float(level.median())))
        settled = i and alike and sampler.step < 1.3 * before
        if settled or i == rounds - 1 or time.process_time() > deadline:
            break
        basis = sampler.reference.basis
        reference = curvature(potential, state, n_beta, reference.gamma, basis=basis, iterations=2)
        sampler = replace(sampler, reference=reference)
    return sampler, state


def adapt(
    sampler: Sampler, state: State, iterations: int, generator: Generator
) -> tuple[Sampler, State, Tensor]:
    """Advance while the step adapts (Robbins–Monro) until *both* halves of the chains are accepted
    often enough; also the mean loss of every chain in the second half of the iterations."""
    half, losses = len(state.u) // 2, []
    for i in range(iterations):
        state, probability = advance(sampler, state, generator)
        losses.append(state.loss)
        accepted = min(float(probability[:half].mean()), float(probability[half:].mean()))
        change = 1.5 * (i + 1) ** -0.6 * (accepted - WANTED_ACCEPTANCE)
        sampler = replace(sampler, step=min(max(sampler.step * math.exp(change), 1e-3), TURN))
    return sampler, state, torch.stack(losses[iterations // 2 :]).mean(0)


def _choose(first: Tensor, a: State, b: State) -> State:
    """The state ``a`` of the chains that are marked ``[chain, 1]``, ``b`` of the others."""
    loss = torch.where(first[:, 0], a.loss, b.loss)
    return State(torch.where(first, a.u, b.u), loss, torch.where(first, a.gradient, b.gradient))


def _psi(reference: Reference, state: State, n_beta: float) -> tuple[Tensor, Tensor]:
    """∇Ψ ``[chain, parameter]`` and Ψ ``[chain]``."""
    stiff = reference.stiff_part(state.u)
    psi = n_beta * state.loss - _dot(state.u, stiff) / 2
    return n_beta * state.gradient - stiff, psi


def _kick(reference: Reference, velocity: Tensor, force: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """Half a kick, and what it adds to the kinetic energy ½·velocityᵀC⁻¹velocity."""
    pull = reference.covariance_times(force)
    gained = -(h / 2) * _dot(velocity, force) + h**2 / 8 * _dot(force, pull)
    return velocity - (h / 2) * pull, gained


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, dtype=torch.float64)
