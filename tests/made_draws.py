"""Draws with known traces, labelled like a run's, made without a model."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lens_slt.sampling.result import Labels, draw_tree
from lens_slt.sampling.settings import Settings

SETTINGS = Settings(n_beta=30, gamma=200, chains=4, draws=100, burn_in=10, antithetic=False)
MEANS = {"L0H0": 0.2, "L0H1": 0.1, "L1H0": 0.4, "L1MLP": 0.3}  # of the paired loss
NOISE = 0.01


def made_draws(
    bad: dict[str, int] | None = None, probes: bool = False, **component_data: list
) -> xr.DataTree:
    """Independent draws around ``MEANS``; ``bad`` says how many chains of a component diverge."""
    generator = np.random.default_rng(0)
    names = list(MEANS)
    shape = (len(names), SETTINGS.chains, SETTINGS.steps)
    loss = np.array(list(MEANS.values()))[:, None, None] + NOISE * generator.normal(size=shape)
    for name, n_chains in (bad or {}).items():
        loss[names.index(name), :n_chains, 30:] = np.nan
    arrays = {"paired_loss": loss, "squared_distance": np.full(shape, 1.0)}
    fixed = {}
    if probes:
        tokens = np.zeros((2, 5))
        for name, factor in (("code", 2.0), ("other_text", 0.5)):
            per_token = factor * loss[:, :, SETTINGS.burn_in_steps :, None, None]
            arrays[f"probes/{name}/paired_loss"] = np.broadcast_to(
                per_token, (*per_token.shape[:3], 2, 5)
            )
            fixed[name] = {"base_loss": tokens, "tokens": tokens}
    components = {
        "n_parameters": [200, 200, 200, 3000],
        "shares_key_value_with": [""] * 4,
        "note": [""] * 4,
    } | component_data
    record = {"model": "made", "weight_processing": ""}
    labels = Labels(components, names, dict.fromkeys(fixed, "next-token"))
    return draw_tree(arrays, names, SETTINGS, record, labels, fixed)
