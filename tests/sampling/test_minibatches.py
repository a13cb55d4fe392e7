"""Minibatches are independent of the past, and their noise is measured, not hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.sampling.randomness import minibatch
from lens_slt.sampling.spread import independent_units, standard_error
from tests.made_targets import PROBE, MadeTarget, quadratic, run

N, BATCH = 40, 10


def batches(keys):
    return np.array([minibatch(N, BATCH, 0, key).numpy() for key in keys])


@pytest.mark.parametrize("lag", [1, 2, 3, 4])  # an epoch of N sequences is four batches
def test_batches_overlap_as_independent_draws_do(lag):
    """The overlap of two independent batches is hypergeometric."""
    found = batches(range(4000 + lag))
    overlap = np.array(
        [len(np.intersect1d(a, b)) for a, b in zip(found, found[lag:], strict=False)]
    )
    share = BATCH / N
    mean = BATCH * share
    variance = mean * (1 - share) * (N - BATCH) / (N - 1)
    assert abs(overlap.mean() - mean) < 4 * np.sqrt(variance / 4000)
    assert overlap.var() == pytest.approx(variance, rel=0.1)


def test_a_batch_has_no_repeats_and_all_sequences_have_the_same_chance():
    found = batches(range(4000))
    assert all(len(set(batch)) == BATCH for batch in found.tolist())
    counts = np.bincount(found.ravel(), minlength=N)
    expected = 4000 * BATCH / N
    chi_square = ((counts - expected) ** 2 / (expected * (1 - BATCH / N))).sum()
    assert chi_square < 80  # 39 degrees of freedom: mean 39, standard deviation 9


def test_the_expected_loss_of_a_batch_is_that_of_all_sequences():
    losses = torch.rand(N, generator=torch.Generator().manual_seed(0)).numpy() ** 4
    means = losses[batches(range(4000))].mean(1)
    assert abs(means.mean() - losses.mean()) < 4 * means.std() / 4000**0.5
    assert means.std() > 0.05


@pytest.mark.parametrize("batch", [N, N + 1, 10 * N])
def test_a_batch_of_everything_is_everything(batch):
    assert minibatch(N, batch, 0, 3).tolist() == list(range(N))


def test_a_batch_depends_on_seed_and_key_alone():
    before = batches([5, "half 5", "prior 0"])
    minibatch(N, BATCH, 1, 4)
    assert np.array_equal(batches([5, "half 5", "prior 0"]), before)
    assert len({tuple(batch) for batch in before.tolist()}) == 3
    assert minibatch(N, BATCH, 1, 5).tolist() != before[0].tolist()


# Linear regression, where everything is known --------------------------------------------------

ROWS, P = 512, 50
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(ROWS, P, generator=GENERATOR)
Y = torch.randn(ROWS, generator=GENERATOR)
STAR = torch.linalg.lstsq(X, Y).solution
CURVATURE = torch.linalg.eigvalsh(X.T.double() @ X.double() / ROWS)


def regression(v, data):
    return 0.5 * (v @ data[:, :P].T - data[:, P]).square().mean(-1)


def sample_regression(**options):
    settings = ls.Settings(**{"chains": 16, "draws": 400, "gamma": 100, "batch_size": 32} | options)
    h = settings.n_beta * CURVATURE
    right = float((h / (h + settings.gamma)).sum() / 2)
    data = torch.cat([X, Y[:, None]], 1)
    return ls.sample_function(regression, STAR, settings=settings, data=data), right


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(gamma=200),
        dict(),
        dict(batch_size=128),
        dict(batch_size=ROWS),
        dict(batch_size=8, gamma=200, chains=8, draws=200),
        dict(sampler="pcn", draws=3000),
    ],
)
def test_linear_regression_has_its_closed_form(options):
    """The step is chosen so that the heat of gradient noise is small, whatever the batch."""
    draws, right = sample_regression(**options)
    found = ls.refined_llc(draws).isel(component=0)
    assert found["certificate"] == "certified" and found["verdict"] == "healthy"
    se = float(found["se"])
    assert se < 0.03 * right
    # Half the largest bias that a certificate allows, and noise.
    assert abs(float(found["llc"]) - right) < 0.05 * right + 3 * se


@pytest.mark.parametrize("batch_size", [8, 32])
def test_too_large_a_step_rings_and_its_bias_is_quoted(batch_size):
    draws, right = sample_regression(batch_size=batch_size, step_size=0.008)
    found = {key: v.values[0] for key, v in ls.refined_llc(draws).data_vars.items()}
    true = found["llc"] / right - 1
    assert true > 4 * found["se"] / right  # the test tells the bias from none
    assert found["defect_share"] - 5 * found["defect_share_se"] > 0.1
    assert found["certificate"].startswith("biased by ")
    assert abs(found["bias"] - true) < 3 * np.hypot(found["bias_se"], found["se"] / right)
    assert found["bias"] > 2 * found["bias_se"]
    assert found["verdict"] != "healthy"


def test_a_chain_sees_the_same_loss_on_its_own_batches_as_on_all_data():
    """Not so for reshuffled epochs, whose batches avoid what the chain has just seen."""
    draws, _ = sample_regression(full_loss=True, step_size=0.004, batch_size=32)
    posterior = draws["posterior"].isel(component=0)
    everyone = np.ones(16, dtype=bool)
    gap = posterior["paired_loss"].values - posterior["full_loss"].values
    units = independent_units(gap.astype(float), everyone, antithetic=True)
    assert abs(units.mean()) < 4 * standard_error(units)
    assert 0 < standard_error(units) < 0.01 * posterior["full_loss"].values.mean()


@pytest.mark.parametrize("sampler", ["lm", "sgld", "pcn"])
def test_full_losses_are_those_of_the_recorded_weights(sampler):
    """The probe knows u²; rows add up to zero, so that only minibatches see them."""
    p = PROBE[0] * PROBE[1]
    h = torch.linspace(1.0, 30.0, p)
    rows = torch.randn(64, p, generator=torch.Generator().manual_seed(0))
    settings = ls.Settings(
        sampler=sampler, draws=40, burn_in=5, chains=2, batch_size=8, full_loss=True
    )  # fmt: skip
    losses = [{"a": quadratic(h), "b": quadratic(5 * h)}]
    draws = run(MadeTarget(losses, p, settings, rows - rows.mean(0), probes=True))
    squares = draws["probes/squares"]["paired_loss"].values.astype(float)
    for i, scale in enumerate((1, 5)):
        direct = (squares[i].reshape(2, 40, p) * (scale * h.numpy())).sum(-1) / 2
        full = draws["posterior"]["full_loss"].values[i]
        np.testing.assert_allclose(full, direct, rtol=1e-4, atol=1e-6)
        batch = draws["posterior"]["paired_loss"].values[i]
        assert (np.abs(batch - full).max() < 1e-6) == settings.method.EXACT
