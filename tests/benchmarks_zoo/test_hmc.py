"""The exact sampler of the zoo against closed forms, quadrature and an independent sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import lens_slt as ls
from benchmarks.potentials import quadratic, quadratic_exact
from benchmarks.zoo import Effort, FunctionCase, hmc
from benchmarks.zoo.entries import ModelCase, zoo
from benchmarks.zoo.functions import separable_exact
from benchmarks.zoo.potential import (
    check_against_model,
    component_potential,
    function_potential,
)
from benchmarks.zoo.truth import GAMMA, N_BETA, Truth, sampled_truth, truths

EFFORT = Effort(relative_se=0.02, seconds=6.0)


def easy_model() -> ModelCase:
    """A two-layer model after five training steps."""
    entry = next(e for e in zoo(0) if e.shape and e.shape.n_layers == 2 and e.source == "majority")
    case = entry.shortened().build()
    assert isinstance(case, ModelCase)
    return case


def of_function(case: FunctionCase) -> Truth:
    return sampled_truth(
        function_potential(case), torch.zeros_like(case.point.double()), EFFORT, "function"
    )


def test_stiff_gaussian_with_more_stiff_directions_than_the_reference_has() -> None:
    curvatures = torch.logspace(-2, 4, 60)
    found = of_function(FunctionCase(quadratic(curvatures), torch.zeros(60)))
    assert found.converged
    assert found.n_beta_h_max == pytest.approx(3e5, rel=0.01)
    right = quadratic_exact(curvatures, N_BETA, GAMMA)
    assert abs(found.llc - right) < 4 * found.se < 0.1 * right


def test_narrow_minimum_with_flat_walls() -> None:
    case = FunctionCase(lambda v: (1e4 * v.square()).log1p().sum(-1), torch.zeros(8))

    def density(x: float) -> float:
        return float(np.exp(-N_BETA * np.log1p(1e4 * x * x) - GAMMA / 2 * x * x))

    ends = dict(a=-1, b=1, points=[0], limit=200)
    total = quad(density, **ends)[0]
    right = 8 * N_BETA * quad(lambda x: np.log1p(1e4 * x * x) * density(x), **ends)[0] / total
    by_logarithm = 8 * separable_exact(lambda x: np.log1p(1e4 * x * x), N_BETA, GAMMA)
    assert by_logarithm == pytest.approx(right, rel=1e-6)
    found = of_function(case)
    assert found.converged
    assert abs(found.llc - right) < 4 * found.se < 0.1 * right


def test_a_slope_at_the_given_weights_gives_a_negative_number() -> None:
    slope, curvature = 3.0, 20.0
    stiffness = N_BETA * curvature + GAMMA
    mean, variance = -N_BETA * slope / stiffness, 1 / stiffness
    right = N_BETA * (slope * mean + curvature / 2 * (mean**2 + variance))
    found = of_function(
        FunctionCase(lambda v: (slope * v + curvature / 2 * v.square()).sum(-1), torch.zeros(1))
    )
    assert right < -2
    assert abs(found.llc - right) < 4 * found.se < 0.1 * abs(right)


def test_two_wells_are_no_truth() -> None:
    """Far apart, with a high wall: the chains from the prior end in both, those from w* in one."""

    def loss(v: torch.Tensor) -> torch.Tensor:
        return 400 * (v[..., 0].square() * (v[..., 0] - 0.4).square() * 100 + 0.01 * v[..., 0])

    zero = torch.zeros(1, dtype=torch.float64)
    potential = function_potential(FunctionCase(loss, torch.tensor([0.2])))
    found = sampled_truth(potential, zero, Effort(seconds=1.0), "function")
    assert not found.converged


@pytest.mark.slow
def test_agrees_with_crank_nicolson_on_an_easy_head() -> None:
    case = easy_model()
    name = case.components[0]
    of = component_potential(case.model, name, case.tokens, None)
    found = sampled_truth(of.potential, torch.zeros_like(of.star), EFFORT, name)
    settings = ls.Settings(sampler="pcn", draws=1000, burn_in=200, antithetic=False)
    draws = ls.sample(case.model, case.tokens, [name], settings=settings, progress=False)
    other = ls.refined_llc(draws)
    difference = found.llc - float(other.llc[0])
    assert abs(difference) < 4 * np.hypot(found.se, float(other.se[0]))
    assert found.se < 0.1 * abs(found.llc) + 0.02


def test_potential_is_the_models_own_and_a_wrong_one_is_refused() -> None:
    case = easy_model()
    weights = torch.rand(len(case.tokens), case.tokens.shape[1] - 1)
    before = {name: p.clone() for name, p in case.model.named_parameters()}
    for name in ("L0H1", "L1", "embed", "L0H0+L1H1"):
        of = component_potential(case.model, name, case.tokens, weights)
        loss, gradient = check_against_model(of, GAMMA)
        assert loss < 1e-5 and gradient < 1e-3
    other = component_potential(case.model, "L0H0+L1H1", case.tokens, None)
    wrong = type(of)(of.adapted, of.component, of.star, of.tokens, weights, other.potential)
    with pytest.raises(ArithmeticError, match=r"L0H0\+L1H1: not the model's own loss"):
        check_against_model(wrong, GAMMA)
    assert all(torch.equal(before[name], p) for name, p in case.model.named_parameters())


def test_truths_are_kept(tmp_path, monkeypatch) -> None:
    case = FunctionCase(quadratic(torch.tensor([1.0, 10.0])), torch.zeros(2))
    effort = Effort(seconds=0.5, warm_up=5, rounds=2, block=10, least=10)
    first = list(truths(case, tmp_path, effort))
    monkeypatch.setattr(hmc, "advance", None)
    assert list(truths(case, tmp_path, effort)) == first
    assert len(list((tmp_path / "truth").iterdir())) == 1
