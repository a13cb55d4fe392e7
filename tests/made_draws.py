"""Draws with known traces, labelled like a run's, made without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.sampling.result import Labels, draw_tree, probe_array
from lens_slt.sampling.settings import Settings

SETTINGS = Settings(n_beta=30, gamma=200, chains=4, draws=100, burn_in=10, antithetic=False)
MEANS = {"L0H0": 0.2, "L0H1": 0.1, "L1H0": 0.4, "L1MLP": 0.3}  # of the paired loss
NOISE = 0.01
RECORD = {"model": "made", "model_hash": "m", "tokens_hash": "t", "weight_processing": ""}


def made_draws(
    bad: dict[str, int] | None = None, probes: bool = False, **columns: Sequence[Any]
) -> xr.DataTree:
    """Independent draws around ``MEANS``; ``bad`` says how many chains of a component diverge."""
    generator = np.random.default_rng(0)
    names = list(MEANS)
    n_burn_in = SETTINGS.burn_in_steps
    shape = (len(names), SETTINGS.chains, n_burn_in + SETTINGS.least_draws)
    loss = np.array(list(MEANS.values()))[:, None, None] + NOISE * generator.normal(size=shape)
    for name, n_chains in (bad or {}).items():
        loss[names.index(name), :n_chains, 30:] = np.nan
    drawn = loss[:, :, n_burn_in:]
    fixed, per_token = {}, {}
    if probes:
        tokens = np.zeros((2, 5))
        for name, factor in (("code", 2.0), ("other_text", 0.5)):
            values = factor * drawn[..., None, None]
            per_token[name] = np.broadcast_to(values, (*drawn.shape, 2, 5))
            fixed[name] = {"base_loss": tokens, "tokens": tokens, "weight": tokens + 1}
    return labelled(
        drawn, names, SETTINGS, burn_in=loss[:, :, :n_burn_in], per_token=per_token, fixed=fixed,
        columns={"n_parameters": [200, 200, 200, 3000]} | columns,
    )  # fmt: skip


def labelled(
    loss: np.ndarray,
    names: Sequence[str],
    settings: Settings,
    *,
    traces: Mapping[str, np.ndarray] | None = None,
    burn_in: np.ndarray | None = None,
    per_token: Mapping[str, np.ndarray] | None = None,
    fixed: Mapping[str, dict[str, np.ndarray]] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> xr.DataTree:
    """A run's result from its paired losses ``[component, chain, draw]``.

    Unless ``traces`` and ``columns`` say otherwise every component is certified: its defect is zero
    up to noise, its distance from the given weights that of the prior, its virial the harmonic one.
    """
    generator = np.random.default_rng(1)
    n = len(names)
    table: dict[str, Sequence[Any]] = {
        "n_parameters": [200] * n,
        "shares_key_value_with": [""] * n,
        "note": [""] * n,
        "step_size": [settings.epsilon] * n,
        "steps_per_draw": [1] * n,
        "n_draws": [loss.shape[2]] * n,
        "curvature": [np.nan] * n,
        "prior_loss": [np.nan] * n,
        "prior_loss_se": [np.nan] * n,
        "choice": [""] * n,
        "bias": [np.nan] * n,
        "bias_se": [np.nan] * n,
        "bias_remaining": [np.nan] * n,
    } | dict(columns or {})
    prior = np.array(table["n_parameters"])[:, None, None] / settings.gamma
    arrays = {
        "paired_loss": loss,
        "squared_distance": prior * (1 + 0.01 * generator.normal(size=loss.shape)),
        "step_loss": loss,
        "virial": 2 * settings.n_beta * loss,
        "defect": 0.01 * generator.normal(size=loss.shape),
        "burn_in_loss": loss[:, :, : settings.burn_in_steps] if burn_in is None else burn_in,
    } | dict(traces or {})
    for name, values in (per_token or {}).items():
        arrays[probe_array(name)] = values
    labels = Labels(dict(table), list(names), dict.fromkeys(per_token or {}, "next-token"))
    return draw_tree(arrays, list(names), settings, RECORD, labels, dict(fixed or {}))
