"""Toy models: exact losses by quadrature and finite differences, published phases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.phases.critical_points import check_critical_point, find_critical_point
from lens_slt.phases.toys.known import deep_linear
from lens_slt.phases.toys.superposition import Superposition

TOY = Superposition()
PUBLISHED = {  # loss, ½|w|², 2λ: Chen et al. 2023 (arXiv 2310.06301)
    (4, 0): (1 / 9, 2.0, None),
    (4, 1): (0.10417, None, None),
    (4, 2): (0.09722, None, None),
    (5, 0): (0.06874, 3.62417, 14),
    (5, 1): (0.06180, 3.62764, 17),
    (6, 0): (0.04819, 6.37767, 17),
}


def by_quadrature(w, points=4001):
    """The loss by the midpoint rule in ξ, input by input."""
    size = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    rows = torch.eye(6, dtype=torch.float64)[:, None] * size[:, None]
    return TOY.row_loss(w[None], rows.reshape(-1, 6))[0]


@pytest.mark.parametrize("seed", range(4))
def test_the_exact_loss_is_the_integral(seed):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(TOY.n_parameters, generator=generator, dtype=torch.float64)
    assert float(TOY.loss(w[None])[0]) == pytest.approx(float(by_quadrature(w)), rel=1e-5)


def test_its_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(TOY.n_parameters, generator=generator, dtype=torch.float64)
    steps = 1e-5 * torch.eye(TOY.n_parameters, dtype=torch.float64)
    slope = (TOY.loss(w + steps) - TOY.loss(w - steps)) / 2e-5
    exact = torch.func.grad(lambda v: TOY.loss(v[None])[0])(w)
    torch.testing.assert_close(slope, exact, rtol=1e-6, atol=1e-8)


def test_diverged_weights_have_no_loss():
    assert TOY.loss(torch.full((1, TOY.n_parameters), torch.inf)).isnan().all()


@pytest.mark.parametrize("corners", PUBLISHED)
def test_the_published_critical_points(corners):
    loss, norm, rank = PUBLISHED[corners]
    found = TOY.polygon(*corners)
    assert found.loss == pytest.approx(loss, abs=1e-5)
    assert TOY.describe(found.weights) == f"{corners[0]}{'+' * corners[1]}"
    if norm is not None:
        assert TOY.prior_constant(found.weights) == pytest.approx(norm, abs=5e-5)
    if rank is not None:
        assert found.rank == rank and found.downhill == 0


def test_a_random_start_ends_in_a_known_phase():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(TOY.n_parameters, generator=generator, dtype=torch.float64) / 2
    found = find_critical_point(TOY.loss, start)
    losses = [loss for loss, _, _ in PUBLISHED.values()]
    assert min(abs(found.loss - loss) for loss in losses) < 1e-4
    assert (found.eigenvalues > -1e-6).all() or found.downhill


def test_irregular_weights_are_called_so():
    w = TOY.polygon(5).weights.clone()
    w[0] *= 1.3
    assert TOY.describe(w) == "5 irregular"


def test_sublosses_add_up_and_shares_count():
    w = TOY.polygon(5).weights[None]
    parts = TOY.feature_losses(w)[0]
    assert float(parts.mean()) == pytest.approx(float(TOY.loss(w)))
    assert float(parts[5]) == pytest.approx(1 / 3)  # nothing is said about the sixth
    shares = (0.1, 0.1, 0.1, 0.1, 0.1, 0.5)
    skewed = Superposition(probabilities=shares)
    assert float(skewed.loss(w)) == pytest.approx(float(parts @ torch.tensor(shares).double()))
    rows = skewed.draw(4000, seed=0)
    assert float((rows > 0).double().mean(0)[5]) == pytest.approx(0.5, abs=0.03)
    assert ((rows > 0).sum(1) <= 1).all()


def test_weights_that_are_no_critical_point_are_refused():
    w = TOY.polygon(6).weights
    moved = w + 1e-3 * torch.linspace(-1, 1, len(w), dtype=torch.float64)
    with pytest.raises(ValueError, match="no critical point: the gradient's norm is") as refused:
        check_critical_point(TOY.loss, moved)
    # The Newton step says how far: as long as the part of the move that is not flat.
    found = check_critical_point(TOY.loss, moved, tolerance=1.0)
    assert found.distance == pytest.approx(float((moved - w).norm()), rel=0.2)
    assert found.drop == pytest.approx(found.loss - check_critical_point(TOY.loss, w).loss, rel=0.1)
    assert f"{found.distance:.2g} away" in str(refused.value)


def test_weights_without_derivatives_are_refused():
    with pytest.raises(ValueError, match=r"weights must be finite numbers .* got shape \(1, 2\)"):
        check_critical_point(TOY.loss, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="start must be finite"):
        find_critical_point(TOY.loss, torch.full((18,), torch.nan))
    with pytest.raises(ValueError, match="its first two derivatives are not finite"):
        check_critical_point(lambda w: w.abs().sqrt().sum(-1), torch.zeros(2))


def test_a_saddle_is_found_where_it_is_asked_for():
    def loss(w):
        return w[..., 0] ** 2 - w[..., 1] ** 2 + w[..., 1] ** 4

    start = torch.tensor([0.3, 0.1])
    saddle = find_critical_point(loss, start, minimum=False)
    assert saddle.downhill == 1 and saddle.loss == pytest.approx(0, abs=1e-9)
    assert find_critical_point(loss, start).loss == pytest.approx(-0.25)


def test_lambda_of_the_pentagon_at_finite_temperature():
    """Where the loss is nearly quadratic λ̂ is ½Σ nβh/(nβh + γ)."""
    point = TOY.polygon(5)
    h = point.eigenvalues[point.eigenvalues > 1e-6]
    settings = ls.Settings(n_beta=3000, gamma=300, chains=32, draws=20, steps_per_draw=8)
    found = ls.refined_llc(ls.sample_function(TOY.loss, point.weights, settings=settings))
    exact = (3000 * h / (3000 * h + 300)).sum() / 2
    assert float(found["se"][0]) < 0.2
    assert float(found["llc"][0]) == pytest.approx(exact, abs=4 * float(found["se"][0]))


def test_data_of_a_linear_network_have_its_loss():
    toy = deep_linear((3, 2, 3), rank=1, seed=0)
    generator = torch.Generator().manual_seed(1)
    w = toy.point + 0.3 * torch.randn(len(toy.point), generator=generator)
    rows = toy.draw(40_000, 0)
    paired = toy.row_loss(w[None], rows) - toy.row_loss(toy.point[None], rows)
    assert float(paired) == pytest.approx(float(toy.loss(w[None])), rel=0.05)


def test_bad_arguments():
    with pytest.raises(ValueError, match="probabilities must be 6 numbers that add up to 1"):
        Superposition(probabilities=(0.5, 0.5))
    with pytest.raises(ValueError, match="positive must be an integer from 0 to 1"):
        TOY.polygon(5, 2)
    with pytest.raises(ValueError, match="tolerance must be a finite number above 0"):
        find_critical_point(TOY.loss, torch.zeros(18), tolerance=0)
    assert np.isfinite(TOY.polygon(4, 2).loss)


def test_losses_of_another_shape_are_refused():
    words = r"one number for each of the \d+ rows.*\[chain\]; got \(\)"
    with pytest.raises(ValueError, match=words):
        ls.sample_function(lambda w: w.square().sum(), torch.zeros(3))
