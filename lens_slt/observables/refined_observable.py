"""Posterior expectations of observables: what a component's freedom does to what the model says."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lens_slt.arguments import choice, typed
from lens_slt.observables.refined_llc import mean_over_draws
from lens_slt.sampling.result import dataset, settings_of
from lens_slt.sampling.spread import mean_with_error
from lens_slt.schema import require, stamped
from lens_slt.statistics import ratio_of_sums


@typed
def refined_observable(draws: xr.DataTree, probe: str | None = None) -> xr.Dataset:
    """Expectation of every recorded observable under each component's local posterior.

    The shift E[φ(w)] − φ(w*) is to an observable φ what the refined LLC is to the loss (there it is
    multiplied with nβ): how much of φ depends on what this component has learned. It is paired with
    the given weights on the same predictions, and has the certificate of the draws.

    Args:
        draws: from :func:`lens_slt.sample`, with ``probes={name: Probe(..., observables=...)}``.
        probe: which; the only one that has observables by default.

    Returns:
        Dataset over (component, observable): ``expectation`` E[φ] and ``shift`` E[φ] − φ(w*), means
        over the probe's sequences, in the units of the observable; ``se``, the standard error of
        both over draws, autocorrelation included; ``text_se``, that of the shift over the choice of
        sequences (those of another text of the kind: √(se² + text_se²)); ``base`` φ(w*) over
        observable; per component ``certificate`` and ``verdict``.

    Raises:
        ValueError: no such probe, or none with observables.

    Example:
        >>> import lens_slt as ls
        >>> model = ls.load_model("attn-1l")
        >>> tokens = ls.load_tokens("code", n_sequences=8, length=16)
        >>> probe = ls.Probe(tokens, observables=ls.Accuracy())
        >>> draws = ls.sample(
        ...     model,
        ...     tokens,
        ...     "L0H0",
        ...     settings=ls.Settings(draws=4, batch_size=8),
        ...     probes={"code": probe},
        ...     progress=False,
        ... )
        >>> ls.refined_observable(draws)["shift"].dims
        ('component', 'observable')
    """
    draws = require(draws, "draws", argument="draws")
    name = probe_with_observables(draws, probe)
    settings, health = settings_of(draws), dataset(draws, "health")
    recorded, posterior = dataset(draws, f"probes/{name}"), dataset(draws, "posterior")
    names = str(recorded.attrs["observables"]).split()
    used, counts = health["used"].values.astype(bool), draws.to_dataset()["n_draws"].values
    base = np.stack([recorded[f"base_{key}"].values for key in names]).astype(float)
    counted = np.isfinite(base).all(0)
    base = base[:, counted]
    shape = (len(counts), len(names))
    found = {key: np.full(shape, np.nan) for key in ("expectation", "se", "text_se")}
    for i, n in enumerate(counts):
        loss = posterior["paired_loss"].values[i, :, :n].astype(float)
        drawn = recorded["draw"].values < n
        for j, key in enumerate(names):
            values = recorded[key][i, :, drawn].values[..., counted].astype(float)
            mean, error, _ = mean_with_error(values.mean(-1), loss, used[i], settings)
            found["expectation"][i, j], found["se"][i, j] = mean, error
            if used[i].any() and counted.sum() > 1:
                each = mean_over_draws(values, loss, used[i], settings) - base[j]
                found["text_se"][i, j] = ratio_of_sums(each, np.ones(len(each)))[1]
    over = ("component", "observable")
    result = xr.Dataset(
        {
            **{key: (over, values) for key, values in found.items()},
            "shift": (over, found["expectation"] - base.mean(1)),
            "base": ("observable", base.mean(1)),
            "certificate": ("component", health["certificate"].values),
            "verdict": ("component", health["summary"].values),
        },
        coords={"component": posterior["component"].values, "observable": names},
        attrs={**draws.attrs, "probe": name},
    )
    return stamped(result, "refined_observable")


def probe_with_observables(draws: xr.DataTree, probe: str | None) -> str:
    """The probe of that name, or the only one that recorded observables."""
    probes = draws.children["probes"].children if "probes" in draws.children else {}
    having = [name for name, node in probes.items() if node.attrs.get("observables")]
    if not having:
        raise ValueError(
            "draws recorded no observables; sample with "
            "probes={'name': Probe(tokens, observables=...)}"
        )
    if probe is None and len(having) > 1:
        raise ValueError(f"probe must be named, several have observables: {', '.join(having)}")
    if probe is not None:
        choice("probe", probe, having)
    return probe or having[0]
