"""Draws with known per-token losses at a probe, made without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from lens_slt.sampling.settings import Settings
from tests.made_draws import labelled

SETTINGS = Settings(
    n_beta=30, gamma=200, chains=4, draws=80, burn_in=10, thin=2, antithetic=False
)  # fmt: skip
SEQUENCES, POSITIONS = 6, 7


def per_token_draws(
    names: tuple[str, ...] = ("L0H0", "L0H1", "L1H0", "full"),
    *,
    settings: Settings = SETTINGS,
    seed: int = 0,
    padding: int = 0,
    diverged: str = "",
    constant: str = "",
    n_draws: Sequence[int] | None = None,
) -> xr.DataTree:
    """Losses x·a_token + x²·b_token + noise of a latent x per draw; φ is their mean plus noise.

    ``n_draws`` per component where they differ; there is something beyond, which does not count.
    """
    generator = np.random.default_rng(seed)
    n = len(names)
    x = generator.gamma(2.0, 0.1, size=(n, settings.chains, settings.least_draws))
    a, b = generator.normal(1.0, 0.5, size=(2, n, SEQUENCES, POSITIONS))
    kept = x[:, :, :: settings.thin, None, None]
    loss = kept * a[:, None, None] + kept**2 * b[:, None, None]
    loss += 0.01 * generator.normal(size=loss.shape)
    phi = x + 0.02 * generator.normal(size=x.shape)
    if diverged:
        phi[names.index(diverged), :] = np.nan
    if constant:
        loss[names.index(constant)] = 0.0
    tokens = generator.integers(0, 50, size=(SEQUENCES, POSITIONS))
    base = generator.gamma(2.0, 1.0, size=(SEQUENCES, POSITIONS))
    weight = np.ones_like(base)
    if padding:
        base[-1, -padding:] = np.nan
        loss[:, :, :, -1, -padding:] = np.nan
        weight[-1, -padding:] = 0
    return labelled(
        phi, names, settings, per_token={"text": loss.astype(np.float32)},
        fixed={"text": {"base_loss": base, "tokens": tokens, "weight": weight}},
        columns={} if n_draws is None else {"n_draws": list(n_draws)},
    )  # fmt: skip
