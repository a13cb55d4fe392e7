r"""How an observable answers to a shift of the data: two orders, and whether to believe them.

Give a share ε of the data's weight to other data, so that the loss becomes L + ε·ΔL with
ΔL = L_shift − L. Under the local posterior ∝ exp(−nβ·L − …) an observable's expectation then is

.. math:: E_ε[φ] = E[φ] − nβ·ε·Cov(φ, ΔL) + ½·(nβ·ε)²·κ₃(φ, ΔL, ΔL) + …,

κ₃ being the third joint cumulant. Per component this is a structural response (u frozen), for
``full`` that of the whole model. The expansion is held against the same draws reweighted by
exp(−nβ·ε·ΔL), which knows all orders but only the draws that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arguments import choice, number, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.observables.per_token import ProbeReader, open_probe
from lens_slt.observables.refined_llc import probe_trace
from lens_slt.sampling.result import component_names, dataset, n_draws, settings_of
from lens_slt.sampling.spread import jackknife_error
from lens_slt.schema import require, stamped

LEAST_EFFECTIVE = 20  # effective number of reweighted draws that can be believed
LEAST_SHARE = 0.1  # of all draws
MOST_ERRORS = 3.0  # of their difference, by which expansion and reweighting may differ
NEGLIGIBLE = 0.5  # of the prediction's standard error: orders left out that its interval covers


@dataclass(frozen=True)
class Shift:
    """Data that get a share of the weight: predictions of a probe.

    Attributes:
        probe: a probe of the run that the draws are from.
        weights: how much each of its predictions counts: bool or ≥ 0, ``[sequence, position - 1]``,
            such as ``label_patterns(tokens).sel(pattern=…)``, or ``[sequence]`` for whole
            sequences; as in the probe by default.
        name: in results.

    Example:
        >>> import lens_slt as ls, torch
        >>> late = torch.arange(15).expand(8, 15) > 7  # [sequence, position - 1]
        >>> shift = ls.Shift("mix", late, name="late")
        >>> shift.probe, shift.name
        ('mix', 'late')
    """

    probe: str
    weights: Any = None
    name: str = ""


@typed
def response(
    draws: xr.DataTree,
    shift: Shift | str,
    *,
    observable: str = "loss",
    probe: str | None = None,
    strengths: float | Sequence[float] = (0.02, 0.05, 0.1, 0.2),
) -> xr.Dataset:
    """Predicted change of an observable when a share of the data's weight moves.

    Args:
        draws: from :func:`lens_slt.sample` with ``Settings(full_loss=True)`` and probes.
        shift: what gets the weight; the name of a probe means all of it.
        observable: one that a probe recorded, or its mean ``loss``.
        probe: where the observable is read; the probe of the shift by default.
        strengths: shares ε of the weight that moves, between −1 and 1; negative ones take weight
            away.

    Returns:
        Dataset over (component, strength), in the units of the observable: ``first`` and ``second``
        order, ``predicted``, their sum, ``reweighted``, and ``first_se``, ``second_se``,
        ``predicted_se``, ``reweighted_se`` from leaving out one block of draws after the other;
        ``ess``, the effective number of reweighted draws; ``reliable``: that is at least a tenth of
        the draws and 20, and expansion and reweighting agree within three standard errors of their
        difference or half a standard error of the prediction. Where it is false the prediction is
        an extrapolation; sample at the shifted data. ``certificate`` per component.

    Raises:
        ValueError: draws without full losses, no such probe or observable, weights of another shape
            or without any above 0, strengths out of range.

    Example:
        >>> import lens_slt as ls
        >>> model = ls.load_model("attn-1l")
        >>> tokens = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> code = ls.load_tokens("code", n_sequences=4, length=16)
        >>> settings = ls.Settings(draws=40, batch_size=8, full_loss=True)
        >>> draws = ls.sample(
        ...     model, tokens, "L0H0", settings=settings, probes={"code": code}, progress=False
        ... )
        >>> ls.response(draws, "code", strengths=0.1)["predicted"].dims
        ('component', 'strength')
    """
    draws = require(draws, "draws", argument="draws")
    shift = Shift(shift) if isinstance(shift, str) else shift
    given = [strengths] if isinstance(strengths, int | float) else list(strengths)
    for value in given:
        number("strengths", value, at_least=-1, at_most=1)
    strength = np.array(given, dtype=np.float64)
    if "full_loss" not in dataset(draws, "posterior"):
        raise ValueError(
            "draws recorded no losses on the whole set, which a shift of the data is measured "
            "from; sample with Settings(full_loss=True)"
        )
    moved = open_probe(draws, shift.probe)
    seen = moved if probe in (None, shift.probe) else open_probe(draws, probe)
    allowed = ["loss", *str(seen.probe.attrs["observables"]).split()]
    choice("observable", observable, allowed)
    weight = shift_weight(shift, moved)
    names = component_names(draws)
    rows = [_of_component(draws, name, moved, weight, seen, observable, strength) for name in names]
    over = ("component", "strength")
    found = xr.Dataset(
        {key: (over, np.stack([row[key] for row in rows])) for key in rows[0]},
        coords={"component": names, "strength": strength},
        attrs={
            **draws.attrs, "observable": observable, "probe": seen.name,
            "shift": shift.name or shift.probe,
        },
    )  # fmt: skip
    health = dataset(draws, "health")
    found = found.assign(certificate=("component", health["certificate"].values))
    return stamped(found, "response")


def shift_weight(shift: Shift, reader: ProbeReader) -> FloatArray:
    """Weights ``[sequence, position]`` of the shifted data, which add up to 1."""
    own = np.where(reader.real, reader.probe["weight"].values, 0.0).astype(np.float64)
    weight = own
    if shift.weights is not None:
        given = np.asarray(shift.weights, dtype=np.float64)
        if given.shape == own.shape[:1]:
            given = np.broadcast_to(given[:, None], own.shape)
        if given.shape != own.shape:
            raise ValueError(
                f"shift: weights must have shape {own.shape} or {own.shape[:1]}, as probe "
                f"{reader.name!r} has; got {given.shape}"
            )
        if not (np.isfinite(given).all() and (given >= 0).all()):
            raise ValueError("shift: weights must be finite and not below 0")
        weight = own * given
    if not weight.any():
        raise ValueError(
            f"shift: no prediction of probe {reader.name!r} has a weight above 0; nothing is left "
            "to shift to"
        )
    return weight / weight.sum()


def _of_component(
    draws: xr.DataTree,
    name: str,
    moved: ProbeReader,
    weight: FloatArray,
    seen: ProbeReader,
    observable: str,
    strength: FloatArray,
) -> dict[str, FloatArray]:
    settings = settings_of(draws)
    drawn = slice(moved.n_draws(name))
    losses = dataset(draws, "posterior")["full_loss"].sel(component=name)
    full = losses.sel(draw=moved.probe["draw"][drawn]).values.astype(np.float64)
    delta = np.einsum("cdsp,sp->cd", moved.losses(name), weight) - full
    phi = _observed(seen, name, drawn, observable)
    counts, _ = moved.weights(name)
    alive = counts.any(1)
    if not alive.any():
        nothing = np.full(len(strength), np.nan)
        return dict.fromkeys(QUANTITIES, nothing) | {"reliable": np.zeros(len(strength), bool)}
    series = phi[alive], delta[alive], counts[alive]
    whole = np.ones(phi.shape[1], dtype=bool)
    scaled = settings.n_beta * strength
    values, ess = _estimates(*series, whole, scaled)
    without = [_estimates(*series, kept, scaled)[0] for kept in moved.left_out(name)]
    errors = jackknife_error(np.stack(without))  # [quantity, strength]
    found = dict(zip(ESTIMATES, values, strict=True))
    found |= {f"{key}_se": errors[i] for i, key in enumerate(ESTIMATES)}
    # Draws are shared, so the difference is known far better than what is predicted.
    noise, left_out = MOST_ERRORS * found.pop("gap_se"), NEGLIGIBLE * found["predicted_se"]
    agree = np.abs(found.pop("gap")) <= np.maximum(noise, left_out)
    total = counts[alive].astype(bool).sum()
    found["ess"] = ess
    found["reliable"] = agree & (ess >= LEAST_EFFECTIVE) & (ess >= LEAST_SHARE * total)
    return found


ESTIMATES = ("first", "second", "predicted", "reweighted", "gap")
QUANTITIES = (
    *(name for name in ESTIMATES if name != "gap"),
    *(f"{name}_se" for name in ESTIMATES if name != "gap"),
    "ess",
)


def _observed(reader: ProbeReader, name: str, drawn: slice, observable: str) -> FloatArray:
    """The observable ``[chain, draw]``, its mean over the probe's sequences or predictions."""
    if observable == "loss":
        component = component_names(reader.draws).index(name)
        return probe_trace(reader.probe, component, n_draws(reader.draws, name))
    values = reader.probe[observable].sel(component=name)[:, drawn].values.astype(np.float64)
    counted = np.isfinite(reader.probe[f"base_{observable}"].values)
    return values[..., counted].mean(-1)


def _estimates(
    phi: FloatArray, delta: FloatArray, counts: FloatArray, kept: BoolArray, scaled: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Estimates ``[quantity, strength]`` from some draws, and the effective number of draws."""
    phi, delta, counts = (x[:, kept].ravel() for x in (phi, delta, counts))
    share = counts / counts.sum()
    mean = share @ phi
    x, y = phi - mean, delta - share @ delta
    first = -scaled * (share @ (x * y))
    second = 0.5 * scaled**2 * (share @ (x * y * y))
    log_weight = np.log(np.maximum(share, 1e-300))[None] - scaled[:, None] * y[None]
    weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    reweighted = weight @ x
    predicted = first + second
    ess = 1 / (weight**2).sum(1)
    return np.stack([first, second, predicted, reweighted, predicted - reweighted]), ess
