"""How many directions of what curvature: bounds that follow from λ̂ over a ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats
from scipy.optimize import linprog

from lens_slt.arguments import number, numbers, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.schema import require, stamped

STIFF, FLAT, BOTH = "stiff directions", "flat directions", "stiff and flat directions"
UNKNOWN = "no certified rung"
ANHARMONIC = "not quadratic"
SHOWN = ("stiffness", "stiffness_se", "effective_directions", "effective_directions_se")
HALF = 0.5  # of stiffness, between stiff and flat directions
ERRORS = 2.0
GRID = 0.15  # of log h
BEYOND = np.log(100.0)  # how far the grid goes beyond the ladder


@typed
def curvatures(
    result: xr.Dataset, above: Sequence[float] | None = None, *, level: float = 0.95
) -> xr.Dataset:
    """How many directions of a component are stiffer than a curvature, with bounds.

    For a quadratic loss with curvatures h, λ̂ = ½ Σ s and t²·Var[K] = ½ Σ s² at every rung, with
    s = h/(h + γ/nβ). Many spectra have the same curve within its errors. ``directions_low`` and
    ``directions_high`` are the least and the most directions with h above a value among all of
    them, whatever they are (linear programming): what the ladder says and no more. Where no
    spectrum at all gives these values, the loss is not quadratic at this scale, and the verdict
    says so.

    Args:
        result: from :func:`lens_slt.spectrum`; all γ count together.
        above: curvatures, in nats per squared unit of weight; γ/nβ of the rungs if not given.
        level: confidence, of all rungs together.

    Returns:
        Dataset over (curvature, component): ``directions_low``, ``directions_high``, NaN where no
        spectrum fits. Over (rung, component): ``smoothed``, 2λ̂, the count above ``resolution`` =
        γ/nβ, smoothed over a decade of h; with ``smoothed_se``. Over component, at the finest rung
        that is certified for all (else for this one), whose γ/nβ is ``finest``: ``stiffness`` and
        ``effective_directions`` with errors (as in :func:`lens_slt.spectrum`) and ``verdict``, what
        λ̂ is made up of: ``stiff directions`` where stiffness is above ½ by two standard errors,
        ``flat directions`` where it is below, else ``stiff and flat directions``; or ``not
        quadratic``. Few or many is what ``effective_directions`` says.

    Example:
        >>> import torch, lens_slt as ls
        >>> h = torch.tensor([10.0, 10.0, 0.1])
        >>> settings = ls.Settings(sampler="importance", chains=8, draws=500)
        >>> rungs = [
        ...     ls.sample_function(
        ...         lambda w: (w.square() * h).sum(-1) / 2, torch.zeros(3), settings=s
        ...     )
        ...     for s in ls.ladder([0.1, 1, 10], [1], settings)
        ... ]
        >>> one = ls.curvatures(ls.spectrum(rungs), above=[1]).isel(curvature=0, component=0)
        >>> bool(one["directions_low"] <= 2 <= one["directions_high"])
        True
    """
    result = require(result, "spectrum", argument="result")
    number("level", level, above=0, below=1)
    rungs = result.stack(rung=("n_beta", "gamma"))
    resolution = (rungs["gamma"] / rungs["n_beta"]).values
    order = np.argsort(resolution)
    rungs, resolution = rungs.isel(rung=order), resolution[order]
    wanted = (
        numbers("above", above, above=0) if above is not None else np.unique(resolution).tolist()
    )
    there = np.isfinite(rungs["llc"].values) & np.isfinite(rungs["variance"].values)
    there = there.T if rungs["llc"].dims[0] == "rung" else there  # [component, rung]
    shared = there.all(0)
    columns = [
        _component(rungs.isel(component=c), resolution, used, shared, level, wanted)
        for c, used in enumerate(there)
    ]
    over = dict.fromkeys(("directions_low", "directions_high"), ("curvature", "component"))
    data: dict[str, Any] = {
        key: (over.get(key, ("component",)), np.array([column[key] for column in columns]).T)
        for key in columns[0]
    }
    for key, of in (("smoothed", "llc"), ("smoothed_se", "se")):
        data[key] = (("rung", "component"), 2 * rungs[of].transpose("rung", "component").values)
    table = xr.Dataset(
        data | {"resolution": ("rung", resolution)},
        coords={"curvature": np.array(wanted), "component": result["component"].values},
        attrs={k: v for k, v in result.attrs.items() if k not in ("result", "schema", "masked")}
        | {"level": level},
    )
    return stamped(table, "curvatures")


def _component(
    own: xr.Dataset,
    resolution: FloatArray,
    used: BoolArray,
    shared: BoolArray,
    level: float,
    wanted: Sequence[float],
) -> dict[str, Any]:
    """All that is said of one component; ``shared`` are the rungs that all have."""
    nan = float("nan")
    if not used.any():
        none = np.full(len(wanted), nan)
        bounds = {"directions_low": none, "directions_high": none}
        return dict.fromkeys((*SHOWN, "finest"), nan) | bounds | {"verdict": UNKNOWN}
    place = int(np.flatnonzero(shared if shared.any() else used)[0])
    shown = {key: float(own[key].values[place]) for key in SHOWN}
    problem = _problem(own, resolution, used, level, wanted)
    low, high = np.array([problem.bounds(curvature) for curvature in wanted]).T
    verdict = _verdict(shown["stiffness"], shown["stiffness_se"], bool(np.isfinite(low).any()))
    return shown | {
        "finest": float(resolution[place]), "directions_low": low, "directions_high": high,
        "verdict": verdict,
    }  # fmt: skip


def _verdict(stiffness: float, error: float, fits: bool) -> str:
    if not fits:
        return ANHARMONIC
    apart = stiffness - HALF
    if abs(apart) <= ERRORS * error or not np.isfinite(error):
        return BOTH
    return STIFF if apart > 0 else FLAT


@dataclass(frozen=True)
class _Problem:
    """Counts of directions ≥ 0 on a grid of curvatures, whose sums lie within errors.

    Attributes:
        h: the grid; its last point stands for all above.
        sums: ``[constraint, curvature]``, per direction.
        low, high: ends of what they may add up to.
    """

    h: FloatArray
    sums: FloatArray
    low: FloatArray
    high: FloatArray

    def bounds(self, curvature: float) -> tuple[float, float]:
        """The least and the most directions above a curvature; NaN where nothing fits."""
        count = (self.h >= curvature * (1 - 1e-9)).astype(float)
        ends = []
        for sign in (1, -1):
            done = linprog(
                sign * count, A_ub=np.vstack([self.sums, -self.sums]),
                b_ub=np.concatenate([self.high, -self.low]), method="highs",
            )  # fmt: skip
            ends.append(sign * done.fun if done.status == 0 else np.nan)
        return ends[0], ends[1]


def _problem(
    own: xr.Dataset, resolution: FloatArray, used: BoolArray, level: float, above: Sequence[float]
) -> _Problem:
    """What λ̂ and variances of one component's certified rungs allow."""
    x = resolution[used]
    scales = [*x.tolist(), *above]
    first, last = np.log(min(scales)) - BEYOND, np.log(max(scales)) + BEYOND
    h = np.exp(np.linspace(first, last, int((last - first) / GRID) + 1))
    share = h / (h + x[:, None])
    sums = np.vstack([share / 2, share**2 / 2, np.ones_like(h)[None]])
    values, errors = (
        np.concatenate([own[a].values[used], own[b].values[used]])
        for a, b in (("llc", "variance"), ("se", "variance_se"))
    )
    wide = stats.norm.ppf(1 - (1 - level) / 2 / len(values)) * np.nan_to_num(errors, nan=np.inf)
    wide += GRID**2 / 8 * np.abs(values)  # of the grid
    most = float(own["n_parameters"])
    return _Problem(
        h, sums, np.append(values - wide, 0.0), np.append(values + wide, most)
    )  # fmt: skip
