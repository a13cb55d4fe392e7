"""The refined LLC that a sampler ought to find: λ̂ = nβ·E[ΔL] to one or two per cent.

Closed forms and quadrature where a function has them, else :mod:`benchmarks.zoo.hmc` on the whole
weighted data set: half of the chains start at the given weights, half below draws of the prior, and
a truth in which they disagree is marked as not converged.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from benchmarks.zoo import hmc
from benchmarks.zoo.entries import Case
from benchmarks.zoo.functions import FunctionCase
from benchmarks.zoo.potential import check_against_model, component_potential, function_potential
from lens_slt.models.adapter import adapt, weights_hash

N_BETA, GAMMA = 30.0, 200.0  # the defaults of lens_slt.Settings
METHOD = "hmc 2"  # changes when kept truths may no longer be used
CHAINS = 4
LARGEST_RHAT = 1.05
LARGEST_Z = 4.0  # between the chains by start
NOISY_SHARE, NOISY = 0.05, 0.1  # a larger standard error is no truth


@dataclass(frozen=True)
class Effort:
    """When to stop: at a standard error (relative or absolute) or after so much CPU time."""

    relative_se: float = 0.015
    absolute_se: float = 0.02
    seconds: float = 25.0
    warm_up: int = 25  # trajectories of a round
    rounds: int = 12  # at most, of adaptation, and at most half of the time
    block: int = 25  # trajectories between looks at the standard error
    least: int = 100  # trajectories

    @classmethod
    def toy(cls) -> Effort:
        """Just enough to run every line."""
        return cls(seconds=1.0, warm_up=4, rounds=2, block=5, least=5)


@dataclass(frozen=True)
class Truth:
    """The exact refined LLC of one component and how well it is known."""

    component: str
    n_parameters: int
    llc: float
    se: float
    rhat: float
    ess: float
    acceptance: float
    n_beta_h_max: float  # at the given weights
    draws: int
    cpu_seconds: float
    how: str
    converged: bool


def truths(case: Case, cache: Path | None, effort: Effort | None = None) -> Iterator[Truth]:
    """The truth of every component, from the cache folder where it is known."""
    effort = effort or Effort()
    for name in ["function"] if isinstance(case, FunctionCase) else case.components:
        file = None if cache is None else cache / "truth" / f"{truth_key(case, name, effort)}.json"
        if file is not None and file.exists():
            yield Truth(**json.loads(file.read_text()))
            continue
        found = _function_truth(case, effort) if isinstance(case, FunctionCase) else None
        if found is None:
            of = component_potential(case.model, name, case.tokens, case.weights)
            check_against_model(of, GAMMA)
            found = sampled_truth(of.potential, torch.zeros_like(of.star), effort, name)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(asdict(found)))
        yield found


def truth_key(
    case: Case, component: str, effort: Effort, n_beta: float = N_BETA, gamma: float = GAMMA
) -> str:
    """Of the weights, tokens, weights per token, component, nβ, γ, the method and its effort."""
    digest = hashlib.sha256(f"{METHOD} {effort} {component} {n_beta} {gamma}".encode())
    if isinstance(case, FunctionCase):
        points = case.point + torch.linspace(0.01, 0.1, 3)[:, None]
        data = () if case.data is None else (case.data,)
        for tensor in (case.point, *data, case.loss(points, *data)):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:32]
    digest.update(weights_hash(adapt(case.model)).encode())
    digest.update(case.tokens.numpy().tobytes())
    if case.weights is not None:
        digest.update(case.weights.numpy().tobytes())
    return digest.hexdigest()[:32]


def sampled_truth(
    potential: hmc.Potential,
    zero: Tensor,
    effort: Effort,
    name: str,
    seed: int = 0,
    *,
    n_beta: float = N_BETA,
    gamma: float = GAMMA,
) -> Truth:
    """λ̂ by exact sampling; ``zero [parameter]`` gives the number and type of the weights."""
    began = time.process_time()
    generator = Generator().manual_seed(seed)
    at_star = hmc.start(potential, zero[None])
    reference = hmc.curvature(potential, at_star, n_beta, gamma)
    stiffest = float(reference.stiffness.max())
    prior = torch.randn(CHAINS // 2, len(zero), generator=generator, dtype=zero.dtype) / gamma**0.5
    prior = hmc.descend(potential, prior, n_beta, gamma)
    state = hmc.start(potential, torch.cat([torch.zeros_like(prior), prior]))
    sampler, state = hmc.settle(
        potential, state, reference, n_beta, iterations=effort.warm_up, rounds=effort.rounds,
        deadline=began + effort.seconds / 2, generator=generator,
    )  # fmt: skip
    trace: list[Tensor] = []
    accepted: list[float] = []
    while True:
        for _ in range(effort.block):
            state, probability = hmc.advance(sampler, state, generator)
            trace.append(n_beta * state.loss)
            accepted.append(float(probability.mean()))
        series = torch.stack(trace, dim=1).numpy()
        mean, se = float(series.mean()), _standard_error(series)
        precise = se <= max(effort.absolute_se, effort.relative_se * abs(mean))
        late = time.process_time() - began > effort.seconds
        if late or (precise and len(trace) >= effort.least):
            break
    return _summary(
        name, series, len(zero), float(np.mean(accepted)), stiffest, time.process_time() - began
    )


def _function_truth(case: FunctionCase, effort: Effort) -> Truth:
    zero = torch.zeros_like(case.point.double())
    if case.exact is None:
        return sampled_truth(function_potential(case), zero, effort, "function")
    potential = function_potential(case)
    at_star = hmc.start(potential, zero[None])
    stiffest = float(hmc.curvature(potential, at_star, N_BETA, GAMMA).stiffness.max())
    exact = case.exact(N_BETA, GAMMA)
    return Truth(
        "function", len(zero), exact, 0.0, 1.0, float("inf"), 1.0, stiffest, 0, 0.0,
        "closed form or quadrature", True,
    )  # fmt: skip


def _summary(
    name: str,
    series: np.ndarray,
    n_parameters: int,
    acceptance: float,
    stiffest: float,
    seconds: float,
) -> Truth:
    import arviz as az  # on use: it takes seconds to load

    half = len(series) // 2
    by_start = [float(part.mean()) for part in (series[:half], series[half:])]
    errors = [_standard_error(part) for part in (series[:half], series[half:])]
    mean, se = float(series.mean()), _standard_error(series)
    rhat = float(np.max([az.rhat(series, method=method) for method in ("rank", "split")]))
    agree = abs(by_start[0] - by_start[1]) <= LARGEST_Z * float(np.hypot(*errors))
    precise = se <= max(NOISY, NOISY_SHARE * abs(mean))
    return Truth(
        name, n_parameters, mean, se, rhat, float(az.ess(series)), acceptance,
        stiffest, series.size, seconds, "hmc", bool(rhat <= LARGEST_RHAT and agree and precise),
    )  # fmt: skip


def _standard_error(series: np.ndarray) -> float:
    """Autocorrelation-aware standard error of the mean of independent chains ``[chain, draw]``."""
    import arviz as az

    return float(np.asarray(az.mcse(series, method="mean")).item())
