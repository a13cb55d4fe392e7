"""Closed-form learning coefficients, and ``lm`` on singular potentials."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import lens_slt as ls
from benchmarks.common import llc_of
from benchmarks.potentials import normal_crossing_exact
from lens_slt.phases.toys.known import (
    deep_linear,
    deep_linear_llc,
    normal_crossing,
    reduced_rank_llc,
)
from lens_slt.sampling.settings import Settings


def test_the_two_theorems_agree_on_two_layers():
    for m, h, n in itertools.product(range(1, 6), repeat=3):
        for rank in range(min(m, h, n) + 1):
            deep, _ = deep_linear_llc((m, h, n), rank)
            assert deep == pytest.approx(reduced_rank_llc(m, h, n, rank))


def test_product_of_scalars_has_the_llc_of_its_normal_crossing():
    assert deep_linear_llc((1, 1, 1, 1), 0) == pytest.approx((0.5, 3))


def test_quadrature_tends_to_the_learning_coefficient():
    assert normal_crossing_exact((1,), 1e6, 1.0) == pytest.approx(0.5, abs=1e-5)
    assert normal_crossing_exact((1, 2), 1e12, 1.0) == pytest.approx(0.25, abs=1e-3)


def test_quadrature_of_a_product_equals_its_closed_form():
    """For k = (1, 1) the law of w_2 given w_1 is Gaussian with precision 2·nβ·w_1² + γ."""
    w = np.linspace(1e-6, 9, 200001)
    marginal = np.exp(-(w**2) / 2) / np.sqrt(200 * w**2 + 1)
    expected = (marginal * 100 * w**2 / (200 * w**2 + 1)).sum() / marginal.sum()
    assert normal_crossing_exact((1, 1), 100.0, 1.0) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("exponents", "step_size"), [((1,), 0.02), ((2,), 5e-3), ((1, 1), 3e-3)])
def test_lm_matches_quadrature(exponents, step_size):
    case = normal_crossing(exponents)
    settings = Settings(
        n_beta=30, gamma=2, step_size=step_size, chains=256, draws=2500, burn_in=2000,
        antithetic=False, seed=1,
    )  # fmt: skip
    exact = normal_crossing_exact(exponents, 30.0, 2.0)
    got = llc_of(ls.sample_function(case.loss, case.point, settings=settings))
    assert got.se < 0.03 * exact
    assert abs(got.value - exact) < 4 * got.se


@pytest.mark.slow
def test_lm_finds_the_llc_of_reduced_rank_regression():
    case = deep_linear((2, 2, 6), rank=1, seed=0)
    settings = Settings(
        n_beta=1000, gamma=1, step_size=1.5e-4, chains=64, draws=3000, burn_in=3000,
        antithetic=False, seed=1,
    )  # fmt: skip
    got = llc_of(ls.sample_function(case.loss, case.point, settings=settings))
    assert got.se < 0.02 * case.llc
    assert got.value == pytest.approx(case.llc, rel=0.07)
