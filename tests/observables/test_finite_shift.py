"""Susceptibilities predict what really happens when the data distribution is shifted a little."""

from __future__ import annotations

import numpy as np
import pytest

import lens_slt as ls
from lens_slt.sampling.result import dataset
from lens_slt.sampling.settings import Settings

N_BETA, SHIFT = 30.0, 0.1


@pytest.mark.slow
def test_finite_shifts_agree_with_the_sum_over_tokens():
    """Weight h moved to one sequence: (E_h[φ] − E_0[φ])/(nβ·h) is its mean χ over tokens.

    Shifted posteriors are draws of the prior, weighted exactly; the susceptibilities come from
    Langevin chains of the posterior that is not shifted.
    """
    model = ls.load_model("attn-1l")
    tokens = ls.load_tokens("mix", n_sequences=8, length=24, seed=4)
    options = {"probes": {"all": tokens}, "progress": False}
    prior = Settings(n_beta=0, sampler="importance", draws=800, antithetic=False, batch_size=8)
    rise = dataset(ls.sample(model, tokens, "L0H2", settings=prior, **options), "probes/all")
    by_sequence = rise["paired_loss"].values[0].astype(np.float64).mean(-1).reshape(-1, 8)
    phi = by_sequence.mean(1)

    def expected(loss: np.ndarray) -> float:
        weight = np.exp(-N_BETA * (loss - loss.min()))
        return float(weight @ phi / weight.sum())

    observed = np.array(
        [
            (expected(phi + SHIFT * (by_sequence[:, i] - phi)) - expected(phi)) / (N_BETA * SHIFT)
            for i in range(8)
        ]
    )
    langevin = Settings(draws=1200, batch_size=8)
    draws = ls.sample(model, tokens, "L0H2", settings=langevin, **options)
    chi = ls.susceptibility(draws, estimator="restricted")
    blocks = chi["blocks"].isel(component=0).groupby("sequence").mean()
    predicted = chi["chi"].isel(component=0).groupby("sequence").mean().values
    se = (blocks.std("block", ddof=1) / blocks.sizes["block"] ** 0.5).values
    slope = float(observed @ predicted / (predicted @ predicted))
    slope_se = float(np.sqrt(((observed * se) ** 2).sum()) / (predicted @ predicted))
    assert np.corrcoef(observed, predicted)[0, 1] > 0.85
    assert slope_se < 0.15
    # A shift this large is not quite linear, and both have noise: a tenth is allowed for that.
    assert abs(slope - 1) < 3 * slope_se + 0.1, (slope, slope_se)
