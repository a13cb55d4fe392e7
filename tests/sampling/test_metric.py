"""The preconditioner against dense linear algebra; with any, ``lm`` samples the same Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.sampling import driver
from lens_slt.sampling.metric import (
    LANCZOS_STEPS,
    RANK,
    Metric,
    identity,
    leading_curvature,
    metric_at_star,
)
from lens_slt.sampling.pilot import PRIOR_BATCHES, Pilot, pilot
from lens_slt.sampling.settings import Settings
from tests.made_targets import MadeTarget, quadratic, run

GAMMA, N_BETA, N = 200.0, 30.0, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def orthonormal(n, rank, p, dtype=torch.float64):
    return torch.linalg.qr(torch.randn(n, p, rank, generator=generator(), dtype=dtype))[0].mT


def dense(metric):
    p = metric.vectors.shape[2]
    outer = metric.vectors.mT @ ((metric.scale - 1)[..., None] * metric.vectors)
    return torch.eye(p, dtype=outer.dtype) + outer


@pytest.mark.parametrize("power", [1.0, 0.5, -0.5, -1.0, 2.0])
def test_powers_are_those_of_the_dense_matrix(power):
    metric = Metric(
        torch.tensor([[0.04, 0.5], [1.0, 1.0], [0.9, 1e-3]]).double(), orthonormal(3, 2, 9)
    )
    values, vectors = torch.linalg.eigh(dense(metric))
    matrix = vectors @ (values**power)[..., None].mul(vectors.mT)
    x = torch.randn(3, 5, 9, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(metric.apply(x, power), x @ matrix)


def test_no_rank_is_the_identity():
    x = torch.randn(N, 4, 6, generator=generator())
    assert torch.equal(identity(torch.zeros(N, 6)).apply(x, 0.5), x)


def test_directions_that_curve_down_are_left_alone():
    values = torch.tensor([[600.0, -50.0]])
    metric = metric_at_star((values, torch.eye(4)[None, :2]), GAMMA)
    assert torch.diagonal(dense(metric)[0]).tolist() == pytest.approx([0.25, 1, 1, 1])


def test_directions_that_the_prior_holds_are_left_alone_in_any_company():
    """A component keeps its M beside one with more stiff directions."""
    vectors = torch.eye(5)[None, :3].expand(2, -1, -1)
    soft, stiff = [600.0, 80.0, 3.0], [900.0, 700.0, 500.0]
    together = metric_at_star((torch.tensor([soft, stiff]), vectors), GAMMA)
    alone = metric_at_star((torch.tensor([soft]), vectors[:1]), GAMMA)
    x = torch.randn(1, 4, 5, generator=generator())
    assert torch.equal(together.rows([0]).apply(x, 0.5), alone.apply(x, 0.5))
    assert torch.diagonal(dense(alone)[0]).tolist() == pytest.approx([0.25, 1, 1, 1, 1])


def lanczos(hessians, start=None, dtype=torch.float64):
    """Leading pairs of quadratics ``hessians [component, parameter, parameter]``."""
    n, p, _ = hessians.shape
    start = torch.randn(n, p, generator=generator(), dtype=dtype) if start is None else start

    def gradient(u):
        return u @ hessians.to(dtype)

    return leading_curvature(gradient, torch.zeros(n, p, dtype=dtype), start, GAMMA, N_BETA)


def with_spectrum(spectrum):
    """Random symmetric matrices with these eigenvalues ``[component, parameter]``."""
    n, p = spectrum.shape
    q = torch.linalg.qr(torch.randn(n, p, p, generator=generator(), dtype=torch.float64))[0]
    return q @ (spectrum.double()[..., None] * q.mT)


def test_leading_pairs_are_those_of_eigh():
    """A few large eigenvalues over a bulk of small ones, as losses have them."""
    spectrum = 0.2 * torch.rand(N, 60, generator=generator())
    spectrum[:, :5] = torch.tensor([300.0, 120.0, 50.0, 20.0, 8.0])
    matrices = with_spectrum(spectrum)
    values, vectors = lanczos(matrices)
    assert values.shape == (N, RANK) and vectors.shape == (N, RANK, 60)
    exact = torch.linalg.eigvalsh(matrices).flip(-1)[:, :5]
    torch.testing.assert_close(values[:, :4] / N_BETA, exact[:, :4], rtol=1e-4, atol=0)
    torch.testing.assert_close(values[:, 4] / N_BETA, exact[:, 4], rtol=0.02, atol=0)
    for r in range(4):
        product = (matrices @ vectors[:, r, :, None])[..., 0]
        residual = product - exact[:, r, None] * vectors[:, r]
        assert (residual.norm(dim=-1) < 0.01 * exact[:, r]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_vectors_are_orthonormal(dtype):
    spectrum = torch.logspace(3, -3, 40).expand(N, -1)
    _, vectors = lanczos(with_spectrum(spectrum), dtype=dtype)
    gram = vectors @ vectors.mT
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    assert (gram - torch.eye(RANK, dtype=dtype)).abs().max() < tolerance


def test_coinciding_eigenvalues_do_not_break_off_the_search():
    """A Krylov space of two eigenvalues has two dimensions; the rest is found all the same."""
    spectrum = torch.full((1, 30), 1.0)
    spectrum[:, :6] = 50.0
    values, vectors = lanczos(with_spectrum(spectrum))
    assert torch.isfinite(values).all() and torch.isfinite(vectors).all()
    assert (values[0, :4] / N_BETA).tolist() == pytest.approx([50.0] * 4, rel=0.01)
    gram = vectors @ vectors.mT
    assert (gram - torch.eye(RANK, dtype=gram.dtype)).abs().max() < 1e-6


@pytest.mark.parametrize("p", [1, 2, 5, LANCZOS_STEPS, LANCZOS_STEPS + 1])
def test_few_weights(p):
    spectrum = torch.linspace(100.0, 1.0, p).expand(2, -1)
    matrices = with_spectrum(spectrum)
    values, vectors = lanczos(matrices)
    rank = min(RANK, p)
    assert values.shape == (2, rank) and vectors.shape == (2, rank, p)
    if p <= LANCZOS_STEPS:  # the whole space is searched
        exact = torch.linalg.eigvalsh(matrices).flip(-1)[:, :rank]
        torch.testing.assert_close(values / N_BETA, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("which", ["here", "there"])
def test_a_gradient_that_is_not_finite_leaves_its_component_alone(which):
    p = 20
    calls = []

    def gradient(u):
        calls.append(1)
        found = 10 * u
        if (len(calls) == 1) == (which == "here"):
            found = found.clone()
            found[1, :, 3] = float("inf")
        return found

    start = torch.randn(N, p, generator=generator())
    values, vectors = leading_curvature(gradient, torch.zeros(N, p), start, GAMMA, N_BETA)
    assert torch.isfinite(values).all() and torch.isfinite(vectors).all()
    assert values[1].abs().max() < 1e-3
    assert values[[0, 2], 0].tolist() == pytest.approx([300.0, 300.0], rel=0.01)


def test_a_flat_loss_has_no_curvature():
    values, vectors = lanczos(torch.zeros(2, 20, 20))
    assert (values == 0).all() and torch.isfinite(vectors).all()


# Samples with any metric -------------------------------------------------------------------------

P = 24
H = torch.logspace(-1, 1.3, P)
EXACT = float((N_BETA * H / (N_BETA * H + GAMMA)).sum() / 2)


def fake_metric(kind):
    vectors = orthonormal(1, 5, P).float()
    if kind == "exact":
        return Metric(
            GAMMA / (GAMMA + N_BETA * H.flip(0)[None, :5]), torch.eye(P).flip(0)[None, :5]
        )
    if kind == "unrelated":
        return Metric(torch.tensor([[0.05, 0.2, 0.5, 0.8, 1.0]]), vectors)
    if kind == "too large":  # of a curvature that is not there
        return Metric(torch.tensor([[0.3, 0.3, 0.3, 0.3, 0.3]]), torch.eye(P)[None, :5])
    return identity(torch.zeros(1, P))


@pytest.mark.parametrize("kind", ["none", "exact", "unrelated", "too large"])
def test_lm_samples_the_same_gaussian_with_any_metric(kind, monkeypatch):
    """M multiplies drift and noise; λ̂, the defect and the prior chain's square do not see it."""

    def given(target, settings):
        nothing = torch.full((1,), float("nan"))
        return Pilot([fake_metric(kind)], [nothing], [torch.zeros(1, 4)])

    monkeypatch.setattr(driver, "pilot", given)
    settings = Settings(
        n_beta=N_BETA, gamma=GAMMA, step_size=0.002, chains=64, draws=500, burn_in=100
    )  # fmt: skip
    draws = run(MadeTarget([{"a": quadratic(H)}], P, settings))
    found = ls.refined_llc(draws).isel(component=0)
    assert abs(float(found["llc"]) - EXACT) < 4 * float(found["se"])
    assert float(found["se"]) < 0.015 * EXACT
    assert abs(float(found["defect"])) < 4 * float(found["defect_se"])
    distance = draws["posterior"]["squared_distance"].values[0].mean(1)
    expected = float((1 / (N_BETA * H + GAMMA)).sum())
    assert abs(distance.mean() - expected) < 4 * distance.std() / 64**0.5


def test_the_exact_metric_quietens_the_coupled_virial(monkeypatch):
    """Its prior chain is then close to the chain in the stiff directions too."""
    errors = {}
    for kind in ("none", "exact"):
        made = Pilot([fake_metric(kind)], [torch.zeros(1)], [torch.zeros(1, 4)])
        monkeypatch.setattr(driver, "pilot", lambda target, settings, made=made: made)
        settings = Settings(step_size=0.002, chains=64, draws=300, burn_in=50)
        found = ls.refined_llc(run(MadeTarget([{"a": quadratic(H)}], P, settings)))
        errors[kind] = float(found["defect_se"][0])
    assert errors["exact"] < 0.6 * errors["none"]


def test_the_pilot_finds_the_curvature_and_the_loss_of_the_prior():
    settings = Settings(n_beta=N_BETA, gamma=GAMMA, chains=64)
    target = MadeTarget(
        [{"a": quadratic(H), "b": quadratic(2 * H)}, {"c": quadratic(H)}], P, settings
    )
    found = pilot(target, settings)
    assert found.curvature[0].tolist() == pytest.approx([N_BETA * 20, N_BETA * 40], rel=0.01)
    for losses, factor in ((found.prior[0][0], 1), (found.prior[0][1], 2), (found.prior[1][0], 1)):
        assert len(losses) == PRIOR_BATCHES * 32  # antithetic pairs are one
        expected = factor * float(H.sum()) / (2 * GAMMA)
        assert abs(float(losses.mean()) - expected) < 4 * float(losses.std()) / len(losses) ** 0.5
    np.testing.assert_array_equal(
        Pilot.of(found.tensors(), target.groups).metrics[0].vectors, found.metrics[0].vectors
    )


@pytest.mark.parametrize("settings", [Settings(step_size=0.004), Settings(n_beta=0.0)])
def test_a_given_step_and_the_control_have_no_preconditioner(settings):
    found = pilot(MadeTarget([{"a": quadratic(H)}], P, settings), settings)
    assert found.metrics[0].scale.shape == (1, 0)
    assert torch.isnan(found.curvature[0]).all()
