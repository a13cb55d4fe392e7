"""Exact draws of quadratic losses at every rung of a ladder, made without a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

import lens_slt as ls
from tests.made_draws import labelled

STIFF = np.array([30.0] * 3)
FLAT = np.array([0.02] * 60)
N_BETAS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SETTINGS = ls.Settings(chains=4, draws=100, burn_in=1, antithetic=False)


def quadratic_draws(
    settings: ls.Settings, curvatures: Sequence[np.ndarray], **traces: np.ndarray
) -> xr.DataTree:
    """Independent draws of components with these curvatures, as a certified run has them."""
    rng = np.random.default_rng(settings.seed)
    shape = settings.chains, settings.least_draws
    loss, distance = [], []
    for h in curvatures:
        w2 = rng.standard_normal((*shape, len(h))) ** 2 / (settings.n_beta * h + settings.gamma)
        loss.append((w2 * h).sum(-1) / 2)
        distance.append(w2.sum(-1))
    prior = [float(h.sum() / 2 / settings.gamma) for h in curvatures]
    return labelled(
        np.array(loss), [f"L0H{i}" for i in range(len(curvatures))], settings,
        traces={"full_loss": np.array(loss), "squared_distance": np.array(distance), **traces},
        columns={"n_parameters": [len(h) for h in curvatures], "prior_loss": prior},
    )  # fmt: skip


def rungs(
    n_betas: Sequence[float] = N_BETAS,
    gammas: Sequence[float] = (1.0,),
    curvatures: Sequence[np.ndarray] = (STIFF, FLAT),
    settings: ls.Settings = SETTINGS,
) -> list[xr.DataTree]:
    """Of a whole ladder."""
    return [quadratic_draws(one, curvatures) for one in ls.ladder(n_betas, gammas, settings)]


def results() -> dict[str, Any]:
    """One result of every kind."""
    made = rungs()
    found = ls.spectrum(made)
    return {
        "spectrum": found,
        "multiplicity": ls.multiplicity(found),
        "curvatures": ls.curvatures(found, above=[0.03, 0.3, 3]),
        "density_of_states": ls.density_of_states(made, "L0H1"),
    }
