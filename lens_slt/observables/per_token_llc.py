"""The data-refined LLC at the resolution of one token."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from lens_slt.arguments import typed
from lens_slt.arrays import FloatArray
from lens_slt.observables.per_token import Means, open_probe, per_token_matrix
from lens_slt.sampling.result import component_names, settings_of


@typed
def per_token_llc(
    draws: xr.DataTree,
    probe: str | None = None,
    *,
    keep_blocks: bool = True,
    path: str | Path | None = None,
) -> xr.Dataset:
    """Per-token rLLC λ̂_xy = nβ·E_C[ℓ_xy(w) − ℓ_xy(w*)] of every component and probe token.

    Averaged over the tokens of a probe it is the data-refined LLC, where all of them have the same
    weight; here every token counts alike, in ``probe_llc`` of :func:`lens_slt.refined_llc` as much
    as its weight. It needs the component's own draws only, unlike the two-posterior susceptibility.

    Args:
        draws: from :func:`lens_slt.sample` with a probe.
        probe: which one, where there are several.
        keep_blocks: keep ``blocks``, from which :func:`lens_slt.modes` bootstraps: one matrix for
            every five draws with probes, at most 32.
        path: folder of a new Zarr group that the matrix is streamed to.

    Returns:
        Dataset over (component, token): ``llc``, dimensionless, and its standard error ``se``;
        per component ``split_half``, the correlation over tokens of the first half of the draws
        with the second; ``reliability``, that of the whole (Spearman–Brown); ``mean`` over tokens
        with ``mean_se``; ``rms_se``; ``verdict``. Tokens carry ``sequence``, ``position``,
        ``token_id`` and ``base_loss``. NaN where no chain can be used. With fewer than four draws
        there is no error and no reliability.

    At nβ = 0, the control, the factor is 1 (``attrs["factor"]``): the value is the mean paired
    loss under the prior.

    Wang et al. 2024 (arXiv 2410.02984) for the data-refined LLC.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> ls.per_token_llc(draws)["llc"].sizes["token"]  # predictions of 8 sequences of 16
        120
    """
    reader = open_probe(draws, probe)
    factor = settings_of(draws).n_beta or 1.0

    def estimate(means: list[Means]) -> dict[str, FloatArray]:
        return {"llc": factor * means[0].loss}

    return per_token_matrix(
        "per_token_llc", reader, component_names(draws), estimate, ["llc"],
        keep_blocks=keep_blocks, path=path, attrs={"factor": factor},
    )  # fmt: skip
