"""Draws with known per-token losses at a probe, made without a model."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lens_slt.sampling.result import Labels, draw_tree, probe_array
from lens_slt.sampling.settings import Settings

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
) -> xr.DataTree:
    """Losses x·a_token + x²·b_token + noise of a latent x per draw; φ is their mean plus noise."""
    generator = np.random.default_rng(seed)
    n = len(names)
    x = generator.gamma(2.0, 0.1, size=(n, settings.chains, settings.steps))
    a, b = generator.normal(1.0, 0.5, size=(2, n, SEQUENCES, POSITIONS))
    kept = x[:, :, settings.burn_in_steps :: settings.thin, None, None]
    loss = kept * a[:, None, None] + kept**2 * b[:, None, None]
    loss += 0.01 * generator.normal(size=loss.shape)
    phi = x + 0.02 * generator.normal(size=x.shape)
    if diverged:
        phi[names.index(diverged), :] = np.nan
    if constant:
        loss[names.index(constant)] = 0.0
    tokens = generator.integers(0, 50, size=(SEQUENCES, POSITIONS))
    base = generator.gamma(2.0, 1.0, size=(SEQUENCES, POSITIONS))
    if padding:
        base[-1, -padding:] = np.nan
        loss[:, :, :, -1, -padding:] = np.nan
    arrays = {
        "paired_loss": phi,
        "squared_distance": np.full(phi.shape, 1.0),
        probe_array("text"): loss.astype(np.float32),
    }
    components = {
        "n_parameters": [200] * n,
        "shares_key_value_with": [""] * n,
        "note": [""] * n,
    }
    record = {"model": "made", "model_hash": "m", "tokens_hash": "t", "weight_processing": ""}
    labels = Labels(components, list(names), {"text": "next-token"})
    fixed = {"text": {"base_loss": base, "tokens": tokens}}
    return draw_tree(arrays, list(names), settings, record, labels, fixed)
