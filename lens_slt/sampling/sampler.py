"""What a sampler is.

Every sampler is a module with the members of :class:`Sampler`, in one order: its state, ``init``,
``step``, and what the rest of the package has to know about it. Nothing outside its module asks for
a sampler's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from lens_slt.arrays import FloatArray
from lens_slt.sampling.metric import Metric

Noise = Callable[[int | str], Tensor]  # standard normals [component, chain, parameter] by step
Uniform = Callable[[int], Tensor]  # uniform numbers [component, chain] by step


@dataclass(frozen=True)
class Chains:
    """What all samplers know about the chains of one group of components."""

    n_beta: float
    gamma: float
    n_chains: int
    step_size: Tensor  # [component, 1, 1]
    metric: Metric
    burning_in: Tensor  # [component], bool
    noise: Noise
    uniform: Uniform


class Losses(Protocol):
    """The loss of one group of components, relative to the given weights."""

    def minibatch(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Paired losses ``[component, chain]`` and gradients on the minibatch of this step."""
        ...

    def everything(self, u: Tensor) -> Tensor:
        """Paired losses ``[component, chain]`` on the whole set."""
        ...


@dataclass(frozen=True)
class Seen:
    """What one step tells; all tensors begin ``[component, chain]``."""

    u: Tensor  # weights, relative to the given ones, that the rest belongs to
    loss: Tensor  # paired
    virial: Tensor | None = None  # nβ·u·g
    defect: Tensor | None = None  # of the coupled virial: zero on average if nothing is biased


class Sampler(Protocol):
    """The members of a sampler's module."""

    State: type[Any]  # frozen dataclass of tensors that begin [component, chain]
    EXACT: bool  # evaluates all sequences at every step, and has no step-size bias
    INDEPENDENT: bool  # whether draws do not depend on each other, and traces mean nothing
    CHOOSES_STEP: bool  # a step_size of None is chosen for every component
    NO_CERTIFICATE: str  # why the coupled virial does not hold; "" if it does
    PRIOR_DISTANCE: bool  # whether chains are as far from the given weights as the prior at most

    def init(self, star: Tensor, chains: Chains, step: int) -> Any:
        """A first state, to begin at ``step``, of components with weights ``star``."""
        ...

    def step(self, state: Any, losses: Losses, chains: Chains, step: int) -> tuple[Any, Seen]:
        """Advance every chain of a group by one step."""
        ...

    def default_step_size(self, gamma: float) -> float:
        """The step size where none is given, or the largest that is tried."""
        ...

    def default_burn_in(self, gamma: float, step_size: float, draws: int) -> int:
        """Steps of burn-in where none are given."""
        ...

    def prior_inflation(self, gamma: float, step_size: float) -> float:
        """By how much the prior chain's variance exceeds 1/γ, as a share."""
        ...

    def draw_weights(self, paired_loss: FloatArray, n_beta: float) -> tuple[FloatArray, str] | None:
        """Weights of pooled draws and, if they cannot be used, why; None if all count alike."""
        ...


def tensors(state: Any) -> dict[str, Tensor]:
    """The tensors of a state by name."""
    return {f.name: getattr(state, f.name) for f in fields(state)}


def join(first: Any, kept: list[int], fresh: Any | None) -> Any:
    """Rows ``kept`` of one state, followed by those of another."""
    parts = {name: values[kept] for name, values in tensors(first).items()}
    if fresh is not None:
        parts = {name: torch.cat([values, tensors(fresh)[name]]) for name, values in parts.items()}
    return replace(first, **parts)


def coupled_virial(
    u: Tensor, z: Tensor, grad: Tensor, n_beta: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """nβ·u·g and the defect nβ·u·g + γ(|u|² − |z|²), both ``[component, chain]``.

    For the posterior of P weights integration by parts gives E[u·(nβ·g + γu)] = P. A prior chain z
    that is driven by the same noise has E[γ|z|²] = P, and its fluctuations cancel those of γ|u|².
    The squares are subtracted factor by factor: their difference is far below P.
    """
    virial = n_beta * torch.linalg.vecdot(u, grad)
    return virial, virial + gamma * torch.linalg.vecdot(u - z, u + z)
