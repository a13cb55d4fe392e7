"""Structural susceptibilities: how a component's loss responds to a shift of the data.

With φ = L_n(w) − L_n(w*), C the component's local posterior and D_xy = ℓ_xy(w) − L_n(w):

- ``two_posterior``: χ_xy = −(E_C[φ·D_xy] − E_C[φ]·E_full[D_xy]), the published estimator;
- ``restricted``: χ_xy = −Cov_C(φ, D_xy), from the component's draws alone.

The first is the second plus the mean term −E_C[φ]·(E_C[D_xy] − E_full[D_xy]), which dominates it.
There is no factor nβ. L_n is estimated on the minibatch of each draw, for φ and for D alike, which
adds one constant to all tokens of a component (the variance of φ between minibatches): differences
between tokens, standardised columns and differences between data sets do not contain it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

from lens_slt.arguments import choice, typed
from lens_slt.arrays import FloatArray
from lens_slt.observables.per_token import Means, ProbeReader, open_probe, per_token_matrix
from lens_slt.sampling.result import component_names
from lens_slt.schema import require

ESTIMATORS = ("two_posterior", "restricted")
FULL = "full"


@typed
def susceptibility(
    draws: xr.DataTree,
    probe: str | None = None,
    *,
    estimator: str = "two_posterior",
    full: xr.DataTree | None = None,
    keep_blocks: bool = True,
    path: str | Path | None = None,
) -> xr.Dataset:
    """Susceptibility χ_xy of every component to every probe token.

    On standardised columns negative means expression (the component's loss falls with more of the
    token), positive suppression. Columns of different components are not comparable before
    standardisation.

    Args:
        draws: from :func:`lens_slt.sample` with a probe.
        probe: which one, where there are several.
        estimator: ``two_posterior`` or ``restricted``.
        full: draws of the component ``full`` with the same model, tokens, probe and settings, where
            ``draws`` does not have it; with the same seed they are on the same minibatches.
        keep_blocks: keep ``blocks``, from which :func:`lens_slt.modes` bootstraps: one matrix for
            every five draws with probes, at most 32.
        path: folder of a new Zarr group that the matrix is streamed to.

    Returns:
        Dataset over (component, token): ``chi`` in nats²; ``mean_term`` and ``covariance_term``,
        whose sum it is; ``se`` of ``chi``; per component ``split_half``, the correlation over
        tokens of the first half of the draws with the second; ``reliability``, that of the whole
        (Spearman–Brown); ``mean`` over tokens, which is the susceptibility to the probe as a data
        set, with ``mean_se``; ``rms_se``; ``verdict``. Tokens carry ``sequence``, ``position``,
        ``token_id`` and ``base_loss``. NaN where no chain can be used. With fewer than four draws
        there is no error and no reliability.

    Raises:
        ValueError: no draws of ``full`` for ``two_posterior``, or of another model, data, probe or
            settings; all chains of ``full`` excluded; an unknown probe or estimator.

    Baker et al. 2025, Structural Inference: Interpreting Small Language Models with
    Susceptibilities (arXiv 2504.18274).

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, full", probes={"mix": text}, **how)
        >>> ls.susceptibility(draws)["chi"].dims
        ('component', 'token')
    """
    choice("estimator", estimator, ESTIMATORS)
    if full is not None:
        full = require(full, "draws", argument="full")
    reader = open_probe(draws, probe)
    names = [name for name in component_names(draws) if name != FULL]
    if not names:
        raise ValueError("draws hold no component besides 'full': sample components such as heads")
    others = []
    if estimator == "two_posterior":
        other = _full_reader(draws, full, reader, probe)
        most = min(reader.n_blocks, other.n_blocks)
        reader, other = replace(reader, most_blocks=most), replace(other, most_blocks=most)
        whole = other.moments(FULL)
        if whole is None:
            raise ValueError(
                "full: none of its chains can be used (see draws['health']); sample it with a "
                "larger gamma, or use estimator='restricted' or per_token_llc"
            )
        others.append(whole)
    return per_token_matrix(
        "susceptibility", reader, names, _two_posterior if others else _restricted,
        ["chi", "mean_term", "covariance_term"], others=others, keep_blocks=keep_blocks, path=path,
        attrs={"estimator": estimator},
    )  # fmt: skip


def _two_posterior(means: list[Means]) -> dict[str, FloatArray]:
    own, whole = means
    mean_term = -own.phi * (own.excess - whole.excess)
    return {
        "chi": mean_term - own.covariance,
        "mean_term": mean_term,
        "covariance_term": -own.covariance,
    }


def _restricted(means: list[Means]) -> dict[str, FloatArray]:
    covariance = means[0].covariance
    return {
        "chi": -covariance,
        "mean_term": np.zeros_like(covariance),
        "covariance_term": -covariance,
    }


def _full_reader(
    draws: xr.DataTree, full: xr.DataTree | None, reader: ProbeReader, probe: str | None
) -> ProbeReader:
    if full is None:
        if FULL in component_names(draws):
            return reader
        raise ValueError(
            "estimator='two_posterior' needs draws of the component 'full': add it to components, "
            "as in sample(model, tokens, ['heads', 'full'], …), or pass full=sample(model, tokens, "
            "'full', …) with the same settings and probes; estimator='restricted' does without"
        )
    other = open_probe(full, probe)
    if FULL not in component_names(full):
        raise ValueError(
            "full must hold draws of the component 'full'; it holds "
            f"{', '.join(component_names(full)[:6])}"
        )
    differing = [
        key for key in ("model_hash", "tokens_hash", "settings")
        if draws.attrs[key] != full.attrs[key]
    ]  # fmt: skip
    if not np.array_equal(reader.probe["tokens"].values, other.probe["tokens"].values):
        differing.append("probe tokens")
    if differing:
        raise ValueError(
            f"full: drawn with another {', '.join(differing).replace('_hash', '')} than draws; "
            "both posteriors must belong together"
        )
    return other
