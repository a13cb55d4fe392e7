"""Functions to sample: regressions, singular potentials, badly conditioned quadratics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import quad
from torch import Generator, Tensor

from benchmarks.potentials import quadratic, quadratic_exact
from lens_slt.phases.toys.known import deep_linear

Loss = Callable[..., Tensor]
ROWS = 256


@dataclass(frozen=True)
class FunctionCase:
    """What ``lens_slt.sample_function`` takes; ``exact`` is λ̂(nβ, γ) where it is known."""

    loss: Loss
    point: Tensor
    data: Tensor | None = None
    exact: Callable[[float, float], float] | None = None


def make_function(name: str, rng: np.random.Generator) -> FunctionCase:
    """A function of this name, with sizes drawn from ``rng``."""
    return FUNCTIONS[name](rng)


def linear_regression(rng: np.random.Generator) -> FunctionCase:
    """Least squares at its solution; every minibatch of rows has another one."""
    p, generator = int(rng.integers(10, 50)), _generator(rng)
    x = torch.randn(ROWS, p, generator=generator)
    y = float(rng.uniform(0.3, 2)) * torch.randn(ROWS, generator=generator)
    curvatures = torch.linalg.eigvalsh(x.double().T @ x.double() / ROWS)

    def loss(v: Tensor, data: Tensor) -> Tensor:
        return (v @ data[:, :p].T - data[:, p]).square().mean(-1) / 2

    return FunctionCase(
        loss, torch.linalg.lstsq(x, y).solution, torch.cat([x, y[:, None]], 1),
        lambda n_beta, gamma: quadratic_exact(curvatures, n_beta, gamma),
    )  # fmt: skip


def logarithms(rng: np.random.Generator) -> FunctionCase:
    """Σ log(1 + c·v²): a narrow minimum with flat walls."""
    c = 10 ** float(rng.uniform(2, 4.5))
    return _separable(lambda x: np.log1p(c * x * x), lambda v: (c * v.square()).log1p(), rng)


def quartic(rng: np.random.Generator) -> FunctionCase:
    """Σ c·v⁴: no curvature at the minimum."""
    c = 10 ** float(rng.uniform(2, 5))
    return _separable(lambda x: c * x**4, lambda v: c * v**4, rng)


def reduced_rank(rng: np.random.Generator) -> FunctionCase:
    """Reduced-rank regression at its most singular true parameter, ten to a hundred times steep."""
    widths, rank = (int(rng.integers(4, 9)), 4, int(rng.integers(4, 9))), int(rng.integers(1, 4))
    case = deep_linear(widths, rank, int(rng.integers(1000)))
    steep = 10 ** float(rng.uniform(1, 2))
    return FunctionCase(lambda v: steep * case.loss(v), case.point)


def tanh_network(rng: np.random.Generator) -> FunctionCase:
    """A two-layer tanh network with one hidden unit too many, at the truth, on noisy rows."""
    inputs, hidden, generator = int(rng.integers(2, 5)), int(rng.integers(2, 6)), _generator(rng)
    star = float(rng.uniform(1, 3)) * torch.randn(hidden * (inputs + 1), generator=generator)
    star[-1] = 0.0  # the last unit is not read

    def output(v: Tensor, x: Tensor) -> Tensor:
        into = v[..., : hidden * inputs].unflatten(-1, (hidden, inputs))
        return (torch.tanh(x @ into.mT) @ v[..., hidden * inputs :, None]).squeeze(-1)

    x = torch.randn(ROWS, inputs, generator=generator)
    y = output(star, x) + float(rng.uniform(0.1, 1)) * torch.randn(ROWS, generator=generator)
    steep = 10 ** float(rng.uniform(0, 1.5))

    def loss(v: Tensor, data: Tensor) -> Tensor:
        return steep * (output(v, data[:, :inputs]) - data[:, inputs]).square().mean(-1) / 2

    return FunctionCase(loss, star, torch.cat([x, y[:, None]], 1))


def ill_conditioned(rng: np.random.Generator) -> FunctionCase:
    """A quadratic whose curvatures span six orders of magnitude."""
    p, top = int(rng.integers(10, 200)), float(rng.uniform(2, 4))
    curvatures = torch.logspace(top - 6, top, p)
    return FunctionCase(
        quadratic(curvatures), torch.zeros(p), None,
        lambda n_beta, gamma: quadratic_exact(curvatures, n_beta, gamma),
    )  # fmt: skip


FUNCTIONS: dict[str, Callable[[np.random.Generator], FunctionCase]] = {
    f.__name__: f
    for f in (linear_regression, logarithms, quartic, reduced_rank, tanh_network, ill_conditioned)
}


def separable_exact(loss: Callable[[float], float], n_beta: float, gamma: float) -> float:
    """nβ·E[loss(x)] of one even dimension under exp(−nβ·loss(x) − γ/2·x²), by quadrature in log x.

    Narrow minima and flat walls are equally smooth there.
    """

    def density(t: float) -> float:
        x = math.exp(t)
        return math.exp(t - n_beta * loss(x) - gamma / 2 * x * x)

    ends = (-25.0, math.log(12 / gamma**0.5))
    total = quad(density, *ends, limit=500)[0]
    return n_beta * quad(lambda t: loss(math.exp(t)) * density(t), *ends, limit=500)[0] / total


def _separable(
    one: Callable[[float], float], many: Callable[[Tensor], Tensor], rng: np.random.Generator
) -> FunctionCase:
    p = int(rng.integers(3, 13))
    return FunctionCase(
        lambda v: many(v).sum(-1), torch.zeros(p), None,
        lambda n_beta, gamma: p * separable_exact(one, n_beta, gamma),
    )  # fmt: skip


def _generator(rng: np.random.Generator) -> Generator:
    return Generator().manual_seed(int(rng.integers(2**31)))
