"""Log likelihoods of single observations at every draw, from the losses that probes recorded."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lens_slt.arguments import choice, typed
from lens_slt.arrays import FloatArray
from lens_slt.observables.per_token import ProbeReader, open_probe
from lens_slt.sampling.result import dataset, settings_of
from lens_slt.schema import require, stamped

UNITS = ("sequence", "token")


@typed
def log_likelihood(
    draws: xr.DataTree, probe: str | None = None, *, unit: str = "sequence"
) -> xr.DataArray:
    """log p(observation | w) at every draw, from the losses of a probe, in nats.

    :func:`lens_slt.generalisation` and :func:`lens_slt.wbic` take it. For the training losses the
    probe has to hold the very tokens that were sampled.

    Args:
        draws: from :func:`lens_slt.sample`, with ``probes={"train": tokens, "test": others}``.
        probe: which; may be left out where there is one.
        unit: what one observation is: a ``sequence``, whose log likelihood is the sum over its
            predicted tokens, or a ``token`` in its context. Tokens of a sequence are not
            independent, which WAIC and WBIC assume of observations.

    Returns:
        DataArray over (component, chain, draw, observation), NaN beyond a component's draws, with
        the coordinates ``base`` (observation), the same at w*; ``used`` (component, chain), chains
        that are fit for use; ``squared_distance`` from w* (component, chain, draw). Attributes:
        ``n_beta`` and ``gamma`` of the posterior that was sampled; ``n_tokens``, predicted tokens
        of the probe, over which nβ's loss is a mean; ``base_loss`` and ``sampled_base_loss``, the
        mean losses at w* of the probe and of the tokens that were sampled.

    Raises:
        ValueError: no probe of that name; a probe whose predictions count unequally, so that its
            losses are no log likelihood.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0", probes={"mix": text}, **how)
        >>> ls.log_likelihood(draws, "mix").sizes["observation"]
        8
    """
    draws = require(draws, "draws", argument="draws")
    choice("unit", unit, UNITS)
    reader = open_probe(draws, probe)
    weight = reader.probe["weight"].values[reader.real]
    if np.ptp(weight) > 1e-6 * weight.max():
        raise ValueError(
            f"probe {reader.name!r} weights its predictions unequally ({weight.min():g} to "
            f"{weight.max():g}): its losses are no log likelihood; use weights of 0 and 1"
        )
    settings, posterior = settings_of(draws), dataset(draws, "posterior")
    base = reader.probe["base_loss"].values.astype(np.float64)
    paired = reader.probe["paired_loss"]
    weights_itself = settings.method.draw_weights(np.zeros(4), 0.0) is not None
    coords = {
        "component": paired["component"].values,
        "draw": paired["draw"].values,
        "base": ("observation", -_observed(base, reader, unit)),
        "used": (("component", "chain"), dataset(draws, "health")["used"].values.astype(bool)),
        "squared_distance": (
            ("component", "chain", "draw"),
            posterior["squared_distance"].sel(draw=paired["draw"]).values,
        ),
    }
    found = xr.DataArray(
        np.stack([-_observed(base + one.values, reader, unit) for one in paired]),
        coords=coords,
        dims=("component", "chain", "draw", "observation"),
        name="log_likelihood",
        attrs={
            **draws.attrs,
            # Draws that carry importance weights are the prior's.
            "n_beta": 0.0 if weights_itself else settings.n_beta,
            "gamma": settings.gamma,
            "n_tokens": int(reader.real.sum()),
            "antithetic": int(settings.antithetic),
            "unit": unit,
            "probe": reader.name,
            "base_loss": float(base[reader.real].mean()),
            "sampled_base_loss": float(draws.attrs.get("base_loss", np.nan)),
        },
    )
    return stamped(found, "log_likelihood")


def _observed(loss: FloatArray, reader: ProbeReader, unit: str) -> FloatArray:
    """Losses ``[..., sequence, position]`` per observation ``[..., observation]``."""
    if unit == "token":
        return loss[..., reader.real]
    counted = reader.real.any(1)
    total: FloatArray = np.where(reader.real, loss, 0.0).sum(-1)[..., counted]
    return total
