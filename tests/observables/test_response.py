"""Responses against tilted normal distributions, and on draws whose data do not move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import lens_slt as ls
from lens_slt.observables.response import _estimates
from tests.made_draws import labelled
from tests.tiny_models import native

SETTINGS = ls.Settings(draws=40, burn_in=10, chains=4, batch_size=4, step_size=2e-3, full_loss=True)


def some_tokens(n: int = 8, length: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(1, 49, (n, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def draws() -> xr.DataTree:
    probes = {
        "same": some_tokens(),
        "other": ls.Probe(some_tokens(seed=1), observables=[ls.Accuracy(), ls.Probability()]),
    }
    return ls.sample(
        native(), some_tokens(), "L0H1,L1H2", settings=SETTINGS, probes=probes, progress=False
    )


def test_orders_and_reweighting_are_exact_for_a_tilted_normal() -> None:
    """v ~ N(0, 1), φ = a·v + v², ΔL = b·v: the tilt by s moves E[φ] by −a·b·s + (b·s)²."""
    v = np.random.default_rng(0).normal(size=(4, 100_000))
    a, b, s = 1.5, 0.7, np.array([-0.2, 0.1, 0.4])
    values, ess = _estimates(a * v + v**2, b * v, np.ones_like(v), np.ones(100_000, dtype=bool), s)
    # Standard errors of the covariance and of the third cumulant are below 0.006 and 0.02.
    np.testing.assert_allclose(values[0], -a * b * s, atol=0.012 * np.abs(s).max())
    np.testing.assert_allclose(values[1], (b * s) ** 2, atol=0.02 * (s**2).max())
    np.testing.assert_allclose(values[3], -a * b * s + (b * s) ** 2, atol=0.02)
    np.testing.assert_allclose(ess / v.size, np.exp(-((b * s) ** 2)), rtol=0.02)


def test_data_that_stay_the_same_move_nothing(draws: xr.DataTree) -> None:
    found = ls.response(draws, "same", observable="accuracy", probe="other")
    assert found["predicted"].dims == ("component", "strength")
    np.testing.assert_allclose(found["predicted"], 0, atol=1e-6)
    np.testing.assert_allclose(found["reweighted"], 0, atol=1e-6)


def test_first_order_is_the_covariance_of_the_draws(draws: xr.DataTree) -> None:
    weights = np.zeros((8, 11))
    weights[2, 3:], weights[5] = 1, 0.5
    strength = 0.05
    found = ls.response(
        draws, ls.Shift("other", weights, "some"), observable="probability", strengths=strength
    )
    assert found.attrs["shift"] == "some"
    probe, posterior = draws["probes/other"], draws["posterior"]
    used = draws["health"]["used"].values.astype(bool)
    for i in range(2):
        moved = (probe["paired_loss"].values[i] * weights).sum((-1, -2)) / weights.sum()
        delta = (moved - posterior["full_loss"].values[i])[used[i]].ravel()
        phi = probe["probability"].values[i].mean(-1)[used[i]].ravel()
        expected = -SETTINGS.n_beta * strength * np.cov(phi, delta, ddof=0)[0, 1]
        assert float(found["first"][i, 0]) == pytest.approx(expected, rel=1e-4)
    assert (found["first_se"] > 0).all()
    small = ls.response(draws, "other", observable="probability", strengths=1e-4)
    assert small["reliable"].all()
    np.testing.assert_allclose(small["predicted"], small["reweighted"], rtol=1e-2)


def test_orders_left_out_matter_where_the_interval_does_not_cover_them() -> None:
    """An exponential of scale θ, tilted by s, has the mean θ/(1 + θs): two orders leave −θ(θs)³.

    With 80 000 draws that is known to differ from 0 long before it reaches the error of the first
    order, 0.01·θ·θs: the prediction at θs = 0.03 is off by 0.1 standard errors, at 0.3 by 8.
    """
    scale, n_beta = 0.01, 30.0
    loss = np.random.default_rng(0).exponential(scale, (1, 4, 20_000))
    settings = ls.Settings(n_beta=n_beta, draws=20_000, antithetic=False, full_loss=True)
    one = np.ones((1, 1))
    made = labelled(
        loss, ["L0H0"], settings, traces={"full_loss": np.zeros_like(loss)},
        per_token={"p": loss[..., None, None]},
        fixed={"p": {"base_loss": one, "tokens": one, "weight": one}},
    )  # fmt: skip
    tilt = np.array([0.03, 0.3])
    found = ls.response(made, "p", strengths=list(tilt / (scale * n_beta))).isel(component=0)
    truth = scale / (1 + tilt) - scale
    off = np.abs(found["predicted"] - truth) / found["predicted_se"]
    assert off[0] < 4 and off[1] > 4
    assert found["reliable"].values.tolist() == [True, False]
    third = np.abs(found["predicted"] - found["reweighted"])
    np.testing.assert_allclose(third[0], scale * tilt[0] ** 3, rtol=0.5)


def test_what_cannot_be_answered_is_refused(draws: xr.DataTree) -> None:
    with pytest.raises(ValueError, match="no prediction of probe 'other' has a weight above 0"):
        ls.response(draws, ls.Shift("other", np.zeros((8, 11))))
    with pytest.raises(ValueError, match=r"weights must have shape \(8, 11\) or \(8,\), as probe"):
        ls.response(draws, ls.Shift("other", np.ones(7)))
    with pytest.raises(ValueError, match="observable must be one of loss, accuracy, probability"):
        ls.response(draws, "other", observable="logit")
    with pytest.raises(ValueError, match="strengths must be .*1; got 2"):
        ls.response(draws, "other", strengths=2)
    plain = ls.sample(
        native(), some_tokens(), "L0H1", settings=SETTINGS.but(full_loss=False, draws=8),
        probes={"p": some_tokens()}, progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"sample with Settings\(full_loss=True\)"):
        ls.response(plain, "p")
