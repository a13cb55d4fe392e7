"""λ̂ over a ladder of nβ and γ, with the variance identity."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.interpolate import CubicSpline

from lens_slt.arguments import typed
from lens_slt.arrays import FloatArray
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.phases.ladder import OWN, Losses, Parts, check_rungs, losses_on_all
from lens_slt.sampling.certificate import CERTIFIED
from lens_slt.sampling.result import component_names
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import MOST_BLOCKS, jackknife_error, number_of_blocks
from lens_slt.schema import stamped

DIMS = ("n_beta", "gamma", "component")
NOT_SAMPLED = "not sampled"
LEAST_DIRECTIONS = 1e-12


@typed
def spectrum(rungs: Sequence[xr.DataTree], *, trust: bool = False) -> xr.Dataset:
    """λ̂ of every component over a ladder of nβ and γ: a regularised curvature spectrum.

    Where the loss is quadratic with curvatures h, λ̂ = ½ Σ h/(h + γ/nβ): every direction stiffer
    than γ/nβ counts ½, softer ones less. That is what the curve shows at the nβ and γ of refined
    LLCs; it is not an asymptote, and its height is no learning coefficient unless it has levelled
    (:func:`lens_slt.multiplicity`).

    From the same draws comes t²·Var[K], t = nβ and K the paired loss on the whole set. At every t
    and γ the slope of the curve is dλ̂/d log t = t·E[K] − t²·Var[K], exactly; far out it is
    (m − 1)/log² t. So λ̂ has to rise from rung to rung by as much as the variances say.

    Args:
        rungs: draws at different nβ or γ of the same components, from
            :func:`lens_slt.sample_ladder`, or sampled with the settings of :func:`lens_slt.ladder`.
        trust: show λ̂ that is not certified too; otherwise it is NaN, and attribute ``masked`` says
            where and why.

    Returns:
        Dataset over (n_beta, gamma, component): ``llc`` and ``se``; ``certificate`` and ``why``;
        ``variance``, t²·Var[K]; ``gap``, t·E[K] − t²·Var[K]; ``identity``, by how much λ̂ rose
        from the rung below more than the gaps say, 0 up to its error; ``stiffness``, t²·Var[K]/λ̂:
        for a quadratic loss the mean of h/(h + γ/nβ) over what makes up λ̂, near 1 for directions
        stiffer than γ/nβ, near 0 for flat ones; ``effective_directions``, 2λ̂/stiffness, how
        many directions share λ̂. All with standard errors ``…_se``. ``prior_loss``, of the
        prior alone, and over component ``n_parameters``.

    Raises:
        ValueError: rungs of other components, models or tokens, twice the same, or without losses
            on the whole set.

    Example:
        >>> import torch, lens_slt as ls
        >>> h = torch.tensor([1.0, 0.1])
        >>> rungs = [
        ...     ls.sample_function(
        ...         lambda w: (w.square() * h).sum(-1) / 2, torch.zeros(2), settings=s
        ...     )
        ...     for s in ls.ladder([1, 10, 100], [1], ls.Settings(draws=400, chains=8))
        ... ]
        >>> found = ls.spectrum(rungs)
        >>> exact = (10 / 11 + 1 / 2) / 2
        >>> bool(abs(found["llc"].sel(n_beta=10) - exact).item() < 0.1)
        True
    """
    settings = check_rungs(rungs, 1)
    names = component_names(rungs[0])
    n_betas, gammas = (sorted({getattr(s, k) for s in settings}) for k in ("n_beta", "gamma"))
    if n_betas[0] == 0:
        raise ValueError("rungs: nβ must be above 0; got 0, the control")
    shape = (len(n_betas), len(gammas), len(names))
    keys = ("llc", "se", "prior_loss", *(f"{k}{e}" for k in _OF_MOMENTS for e in ("", "_se")))
    values = {key: np.full(shape, np.nan) for key in keys}
    words = {key: np.full(shape, NOT_SAMPLED, dtype=object) for key in ("certificate", "why")}
    for draws, one in zip(rungs, settings, strict=True):
        place = n_betas.index(one.n_beta), gammas.index(one.gamma)
        for key, cells in _rung(draws, one).items():
            (words if key in words else values)[key][place] = cells
    certified = words["certificate"] == CERTIFIED
    masked = ~certified & (words["certificate"] != NOT_SAMPLED)
    for each in values.values() if not trust else ():
        each[~certified] = np.nan
    values["identity"], values["identity_se"] = _identity(np.array(n_betas), values)
    left = [
        f"{names[c]} at nβ {n_betas[b]:g}, γ {gammas[g]:g}: {words['why'][b, g, c]}"
        for b, g, c in np.argwhere(masked)
    ]
    found = xr.Dataset(
        {key: (DIMS, value) for key, value in values.items()}
        | {key: (DIMS, value.astype(str)) for key, value in words.items()}
        | {"n_parameters": ("component", rungs[0].to_dataset()["n_parameters"].values)},
        coords={"n_beta": n_betas, "gamma": gammas, "component": names},
        attrs=_attributes(rungs, settings)
        | {"trust": int(trust), "masked": json.dumps(left, ensure_ascii=False)},
    )
    return stamped(found, "spectrum")


def _rung(draws: xr.DataTree, settings: Settings) -> dict[str, Any]:
    """All quantities of one rung, over component."""
    llc = refined_llc(draws)
    found = {key: llc[key].values for key in ("llc", "se", "prior_loss", "certificate", "why")}
    rows = [_moments(losses_on_all(draws, name), settings) for name in component_names(draws)]
    return found | {key: np.array([row[key] for row in rows]) for key in rows[0]}


def _moments(losses: Losses, settings: Settings) -> dict[str, float]:
    """Quantities of t·K's first two moments, with errors by the jackknife."""
    if not losses.loss.size:
        return {f"{key}{end}": float("nan") for key in _OF_MOMENTS for end in ("", "_se")}
    t = settings.n_beta * losses.loss
    n_units = min(losses.n_units, MOST_BLOCKS)
    parts = losses.parts(number_of_blocks(t.shape[1]), n_units)
    sums = [
        np.stack([_sums(part, losses.weight * t**k) for k in (0, 1, 2)], axis=1) for part in parts
    ]
    found = {}
    for name, of in _OF_MOMENTS.items():
        values, errors = zip(*(jackknife(of, one) for one in sums), strict=True)
        found[name], found[f"{name}_se"] = values[0], max(errors)
    return found


def _sums(part: Parts, values: FloatArray) -> FloatArray:
    """Of the values of every part."""
    return np.bincount(part.ravel(), values.ravel()).astype(np.float64)


def jackknife(of: Callable[[FloatArray], FloatArray], sums: FloatArray) -> tuple[float, float]:
    """A function of sums over blocks ``[block, …]``, and its standard error."""
    whole = float(of(sums.sum(0)[None])[0])
    n = len(sums)
    if n < 2:
        return whole, float("nan")
    each = of(sums.sum(0) - sums)
    return whole, float(jackknife_error(each))


def _mean(sums: FloatArray) -> FloatArray:
    return np.asarray(sums[:, 1] / sums[:, 0])


def _variance(sums: FloatArray) -> FloatArray:
    return np.asarray(sums[:, 2] / sums[:, 0] - _mean(sums) ** 2)


_OF_MOMENTS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "variance": _variance,
    "gap": lambda sums: _mean(sums) - _variance(sums),
    "stiffness": lambda sums: _variance(sums) / _mean(sums),
    "effective_directions": lambda sums: (
        2 * _mean(sums) ** 2 / np.maximum(_variance(sums), LEAST_DIRECTIONS)
    ),
}


def _identity(n_betas: FloatArray, values: dict[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
    """The rise of λ̂ from one rung to the next minus the integral of the gap over log nβ.

    The error of the integral is that by which a spline and the trapezoid rule differ.
    """
    over, error = (np.full(values["llc"].shape, np.nan) for _ in range(2))
    for g, c in np.ndindex(values["llc"].shape[1:]):
        llc, se, gap, gap_se = (values[key][:, g, c] for key in ("llc", "se", "gap", "gap_se"))
        there = np.flatnonzero(np.isfinite(llc) & np.isfinite(gap))
        if len(there) < 2:
            continue
        x, y = np.log(n_betas[there]), gap[there]
        spline = CubicSpline(x, y) if len(there) > 2 else None
        for i in range(1, len(there)):
            a, b, h = there[i - 1], there[i], x[i] - x[i - 1]
            straight = h * (y[i - 1] + y[i]) / 2
            bent = straight if spline is None else float(spline.integrate(x[i - 1], x[i]))
            parts = (se[a], se[b], h / 2 * gap_se[a], h / 2 * gap_se[b], bent - straight)
            over[b, g, c] = llc[b] - llc[a] - bent
            error[b, g, c] = np.sqrt(np.sum(np.square(parts)))
    return over, error


def _attributes(rungs: Sequence[xr.DataTree], settings: Sequence[Settings]) -> dict[str, Any]:
    """What all rungs share."""
    first = rungs[0].attrs
    shared = {
        str(key): value for key, value in first.items()
        if key not in ("result", "schema", "settings")
        and all(one.attrs.get(key) == value for one in rungs)
    }  # fmt: skip
    plain = settings[0].as_dict()
    return shared | {"settings": json.dumps({k: v for k, v in plain.items() if k not in OWN})}
