"""Refined local learning coefficients from draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.sampling.result import dataset, settings_of
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import (
    draw_weights,
    mean_with_error,
    number_of_blocks,
    pseudo_values,
)
from lens_slt.schema import require, stamped
from lens_slt.schemas.posterior import CERTIFICATE, ROOT
from lens_slt.statistics import mean_over_tokens


def refined_llc(draws: xr.DataTree) -> xr.Dataset:
    """Refined local learning coefficients λ̂ = nβ·E[L'(w) − L'(w*)] of every component.

    Weight-refined for the sampling distribution (``llc``), and for every probe of the run
    (``probe_llc``): data-refined for tokens, model-refined for the divergence from a reference
    model. Losses are paired with L'(w*) on the same tokens; burn-in and chains that
    :mod:`lens_slt.sampling.health` excludes do not enter. With ``components="full"`` this is the
    plain LLC.

    Lau et al. 2023, The Local Learning Coefficient (arXiv 2308.12108); Wang et al. 2024,
    Differentiation and Specialization of Attention Heads via the Refined LLC (arXiv 2410.02984).

    Args:
        draws: from :func:`lens_slt.sample`.

    Returns:
        Dataset over ``component`` (and ``probe``): ``llc``, dimensionless; its standard error
        ``se``, autocorrelation and shared minibatches included; ``ess``, the number of independent
        draws worth the same error; ``rhat`` over the used chains; ``chains_used``; ``verdict`` in
        words; ``n_parameters``; ``mean_paired_loss`` in nats per token; ``probe_llc`` and
        ``probe_se``. NaN where no chain can be used. ``blocks`` and ``probe_blocks`` are the
        jackknife's values over blocks of draws: runs that share their noise (equal settings and
        step sizes) are compared by the differences between them.

        These errors are of the draws, at these tokens. ``probe_text_se`` is that of the choice of
        the probe's sequences: for other texts of the kind take √(probe_se² + probe_text_se²).

    At nβ = 0, the control, ``llc`` is zero by definition: look at ``mean_paired_loss``.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> table = ls.refined_llc(draws)
        >>> table["llc"].dims, table["probe_llc"].dims
        (('component',), ('component', 'probe'))
    """
    draws = require(draws, "draws", argument="draws")
    settings = settings_of(draws)
    posterior, health = dataset(draws, "posterior"), dataset(draws, "health")
    root = draws.to_dataset()
    names = posterior["component"].values
    used = health["used"].values.astype(bool)
    counts = root["n_draws"].values
    loss = [
        posterior["paired_loss"].values[i, :, : counts[i]].astype(float) for i in range(len(names))
    ]
    steps = [
        posterior["step_loss"].values[i, :, : counts[i]].astype(float) for i in range(len(names))
    ]
    estimates = np.array(
        [mean_with_error(steps[i], loss[i], used[i], settings) for i in range(len(names))]
    )
    scale = settings.n_beta
    data: dict[str, Any] = {
        "llc": ("component", scale * estimates[:, 0]),
        "se": ("component", scale * estimates[:, 1]),
        "mean_paired_loss": ("component", estimates[:, 0]),
        "ess": ("component", estimates[:, 2]),
        "rhat": ("component", health["rhat"].values),
        "chains_used": ("component", used.sum(1)),
        "verdict": ("component", health["summary"].values),
    }
    for name in CERTIFICATE.split():
        data[name] = ("component", health[name].values)
    for name in ROOT.split():
        data[name] = ("component", root[name].values)
    n_blocks = _number_of_blocks(int(min(counts)), settings.thin)
    data["blocks"] = (
        ("block", "component"), scale * _blocks(steps, loss, used, settings, n_blocks),
    )  # fmt: skip
    coords: dict[str, Any] = {"component": names}
    if "probes" in draws.children:
        kept = draws.children["probes"].children
        probes = {name: dataset(draws, f"probes/{name}") for name in kept}
        coords["probe"] = list(probes)
        data |= _of_probes(list(probes.values()), loss, used, counts, settings, n_blocks)
    return stamped(xr.Dataset(data, coords=coords, attrs=dict(draws.attrs)), "refined_llc")


def _of_probes(
    probes: list[xr.Dataset],
    loss: list[FloatArray],
    used: BoolArray,
    counts: NDArray[np.int64],
    settings: Settings,
    n_blocks: int,
) -> dict[str, Any]:
    """What probes add: λ̂ on other tokens or against a reference, with errors and blocks."""
    scale, both, values, text, blocks = settings.n_beta, ("component", "probe"), [], [], []
    for probe in probes:
        traces = [probe_trace(probe, i, n) for i, n in enumerate(counts)]
        rows = zip(traces, loss, used, strict=True)
        values.append([mean_with_error(*row, settings) for row in rows])
        text.append(
            [_probe_text_error(probe, i, loss[i], used[i], settings) for i in range(len(counts))]
        )
        blocks.append(_blocks(traces, loss, used, settings, n_blocks))
    estimates = np.array(values)  # [probe, component, …]
    return {
        "probe_llc": (both, scale * estimates[:, :, 0].T),
        "probe_se": (both, scale * estimates[:, :, 1].T),
        "probe_text_se": (both, scale * np.array(text).T),
        "probe_blocks": (("block", *both), scale * np.stack(blocks, -1)),
    }


def probe_trace(probe: xr.Dataset, component: int, n_draws: int) -> FloatArray:
    """Weighted mean paired loss over the probe's tokens ``[chain, draw]`` of one component."""
    drawn = probe["draw"].values < n_draws
    per_token = probe["paired_loss"][component, :, drawn].values.astype(np.float64)
    real = np.isfinite(probe["base_loss"].values)  # where the weight is 0 there is no loss
    return np.average(per_token[:, :, real], axis=-1, weights=probe["weight"].values[real])


def _probe_text_error(
    probe: xr.Dataset, component: int, loss: FloatArray, used: BoolArray, settings: Settings
) -> float:
    """Standard error over sequences of the probe's mean paired loss."""
    if not used.any():
        return float("nan")
    drawn = probe["draw"].values < loss.shape[1]
    per_token = probe["paired_loss"][component, :, drawn].values.astype(np.float64)
    weight = np.where(np.isfinite(probe["base_loss"].values), probe["weight"].values, 0)
    mean = mean_over_draws(np.nan_to_num(per_token), loss, used, settings)
    return mean_over_tokens(mean, weight)[1]


def mean_over_draws(
    values: FloatArray, sampling_loss: FloatArray, used: BoolArray, settings: Settings
) -> FloatArray:
    """Mean of ``values [chain, draw, …]`` over the draws of used chains, as the sampler weighs."""
    any_one = values.reshape(*values.shape[:2], -1)[..., 0]
    weight = draw_weights(any_one, sampling_loss, used, settings)
    return np.asarray(np.einsum("cd,cd...->...", weight / weight.sum(), values[used]))


def _number_of_blocks(n_draws: int, thin: int) -> int:
    """Blocks of all draws and, as many, of those with probes: two or more draws of a probe each."""
    probed = -(-n_draws // thin)
    return max(number_of_blocks(probed), min(number_of_blocks(n_draws), probed // 2))


def _blocks(
    traces: list[FloatArray],
    losses: list[FloatArray],
    used: BoolArray,
    settings: Settings,
    n_blocks: int,
) -> FloatArray:
    """The jackknife's values ``[block, component]`` of mean traces ``[chain, draw]``."""
    found = np.full((n_blocks, len(traces)), np.nan)
    for i, (trace, loss) in enumerate(zip(traces, losses, strict=True)):
        if used[i].any():
            weights = draw_weights(trace, loss, used[i], settings)
            found[:, i] = pseudo_values(trace[used[i]], weights, n_blocks)
    return found
