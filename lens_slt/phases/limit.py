"""λ in the limit of a wide prior, from refined LLCs over a ladder of nβ/γ."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from lens_slt.arguments import integer, typed
from lens_slt.arrays import FloatArray
from lens_slt.phases.ladder import check_same
from lens_slt.sampling.certificate import CERTIFIED
from lens_slt.sampling.result import settings_of
from lens_slt.schema import require, stamped

LEAST_RUNGS = 3  # the curve has three parameters
GUESSES = 200  # of λ̂ within their errors
CURVATURES = 300  # h that are tried
SMALLEST = 1e-9  # relative, of an error
MISSES = 0.15  # of what is extrapolated: root mean square over spectra, see limit_llc
COPIED = ("n_parameters", "verdict")


@typed
def limit_llc(rungs: Sequence[xr.Dataset], *, trust: bool = False, seed: int = 0) -> xr.Dataset:
    """λ that λ̂ tends to as nβ/γ grows: the λ of free energies.

    Under the prior of the local posterior a direction of curvature h counts nβ·h/(nβ·h + γ)/2
    instead of ½. The curve of λ̂ over x = γ/nβ is therefore fitted by

        λ̂(x) = a + b/(1 + x/h),  a, b, h ≥ 0,  and λ = a + b:

    stiff directions, and softer ones of one curvature. For curvatures of any spread this is the
    curve's Padé approximant. It misses λ by 15 % of λ − λ̂ of the last rung (root mean square over
    400 spectra of 2 to 20 directions, spread or in two groups, with h from 0.02 to 30, at nβ/γ 10,
    30 and 100), and ``se`` holds as much. Directions softer than the ladder sees are not counted.
    It fits critical points that are manifolds of minima (multiplicity 1). Where m > 1, λ̂ tends to
    λ as 1/log n, which no ladder of a decade or two tells from a smaller λ.

    Args:
        rungs: from :func:`lens_slt.refined_llc`, at least three ratios nβ/γ, over a decade or more,
            of the same components.
        trust: use λ̂ that is not certified; otherwise such rungs are left out.
        seed: of the guesses behind ``se``.

    Returns:
        Dataset over ``component``: ``llc``, the limit, ``se``, its standard error: from those of
        the rungs, larger by as much as the curve misses them, and ``form_se``, of the form (a bias
        that the certificate allows is not in it); ``reach``, the share of the limit that the last
        rung had reached; ``certificate``, ``n_parameters``, ``verdict``; over (component, rung):
        ``rung_llc``, ``rung_se`` and ``fit``; ``ratio``, nβ/γ of every rung. In JSON:
        ``left_out``, rungs that are not certified.

    Raises:
        ValueError: other components, models or tokens; the control, nβ = 0; fewer than three
            certified rungs of a component.

    Example:
        >>> import torch, lens_slt as ls
        >>> def rung(n_beta):
        ...     settings = ls.Settings(n_beta=n_beta, gamma=1, draws=400, chains=8)
        ...     draws = ls.sample_function(
        ...         lambda w: w.square().sum(-1), torch.zeros(4), settings=settings
        ...     )
        ...     return ls.refined_llc(draws)
        >>> found = ls.limit_llc([rung(ratio) for ratio in (1, 3, 10)])  # λ = 2
        >>> bool(abs(found["llc"].item() - 2) < 4 * found["se"].item())
        True
    """
    integer("seed", seed, at_least=0)
    rungs = [require(one, "refined_llc", argument="rungs") for one in rungs]
    if len(rungs) < LEAST_RUNGS:
        raise ValueError(f"rungs must be at least {LEAST_RUNGS}; got {len(rungs)}")
    ratios = _ratios(rungs)
    order = np.argsort(ratios)
    rungs, ratios = [rungs[i] for i in order], ratios[order]
    names = rungs[0]["component"].values
    value, error = (np.array([one[key].values for one in rungs]).T for key in ("llc", "se"))
    certified = np.array([one["certificate"].values == CERTIFIED for one in rungs]).T
    used = np.isfinite(value) & (certified | trust)
    rows = [
        _limit(str(names[i]), 1 / ratios, value[i], error[i], used[i], seed)
        for i in range(len(names))
    ]
    left = {
        str(name): ratios[~row].tolist() for name, row in zip(names, used, strict=True)
        if not row.all()
    }  # fmt: skip
    words = np.where((certified | ~used).all(1), CERTIFIED, "not certified")
    found = xr.Dataset(
        {
            "llc": ("component", np.array([row[0] for row in rows])),
            "se": ("component", np.array([row[1] for row in rows])),
            "form_se": ("component", np.array([row[4] for row in rows])),
            "reach": ("component", np.array([row[2] for row in rows])),
            "certificate": ("component", words),
            "rung_llc": (("component", "rung"), value), "rung_se": (("component", "rung"), error),
            "fit": (("component", "rung"), np.array([row[3] for row in rows])),
            "ratio": ("rung", ratios),
            **{name: ("component", rungs[-1][name].values) for name in COPIED},
        },
        coords={"component": names},
        attrs={**_shared(rungs), "left_out": json.dumps(left)},
    )  # fmt: skip
    return stamped(found, "limit_llc")


def _ratios(rungs: Sequence[xr.Dataset]) -> FloatArray:
    """nβ/γ of rungs; ValueError where they do not belong together."""
    check_same(rungs, [[str(name) for name in one["component"].values] for one in rungs])
    settings = [settings_of(one) for one in rungs]
    ratios = np.array([s.n_beta / s.gamma for s in settings])
    if ratios.min() == 0:
        raise ValueError("rungs: nβ must be above 0; got 0, the control")
    if len(set(ratios)) < len(ratios):
        raise ValueError(f"rungs must have different nβ/γ; got {ratios.tolist()}")
    return ratios


def _limit(
    name: str, x: FloatArray, value: FloatArray, error: FloatArray, used: FloatArray, seed: int
) -> tuple[float, float, float, FloatArray, float]:
    """Limit, error, share reached, fit at all rungs and error of the form, of one component."""
    if used.sum() < LEAST_RUNGS:
        raise ValueError(
            f"{name}: {int(used.sum())} rungs are certified, {LEAST_RUNGS} are needed: sample with "
            "more draws, or closer rungs; trust=True uses all"
        )
    rng = np.random.default_rng(seed)
    noise = np.vstack([np.zeros(int(used.sum())), rng.standard_normal((GUESSES, int(used.sum())))])
    scale = np.maximum(error[used], SMALLEST * np.abs(value[used]).max())
    stiff, soft, h = _fits(x[used], value[used] + error[used] * noise, scale)
    limits = stiff + soft
    fit = stiff[0] + soft[0] / (1 + x / h[0])
    misfit = float((((fit[used] - value[used]) / scale) ** 2).sum())
    excess = np.sqrt(max(1.0, misfit / max(1, used.sum() - LEAST_RUNGS)))
    reach = float(value[used][-1] / limits[0])
    form = MISSES * float(limits[0] - fit[used][-1])
    whole = float(np.hypot(np.std(limits[1:], ddof=1) * excess, form))
    return float(limits[0]), whole, reach, fit, form


def _fits(
    x: FloatArray, values: FloatArray, error: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """a, b and h of each row of ``values [guess, rung]``, by least squares relative to the errors.

    For every h of a grid a and b are those of a linear fit, or of one with the other zero.
    """
    log_x = np.log(x)
    grid = np.exp(np.linspace(log_x.min() - 1, log_x.max() + 1, CURVATURES))  # a ladder tells these
    found = []
    for h in grid:
        columns = np.stack([np.ones_like(x), 1 / (1 + x / h)], 1) / error[:, None]
        both = (values / error) @ np.linalg.pinv(columns).T
        alone = np.maximum((values / error) @ columns / (columns**2).sum(0), 0.0)
        zero = np.zeros(len(values))
        options = np.stack([
            np.where((both < 0).any(1, keepdims=True), np.nan, both),
            np.stack([alone[:, 0], zero], 1), np.stack([zero, alone[:, 1]], 1),
        ])  # fmt: skip
        misfit = ((options @ columns.T - values / error) ** 2).sum(-1)
        best = np.nanargmin(misfit, axis=0)
        each = np.arange(len(values))
        found.append(np.column_stack([options[best, each], misfit[best, each]]))
    rows = np.array(found)
    best = rows[:, :, 2].argmin(0)
    chosen = rows[best, np.arange(len(values))]
    return chosen[:, 0], chosen[:, 1], grid[best]


def _shared(rungs: Sequence[xr.Dataset]) -> dict[str, object]:
    """Attributes that all rungs share."""
    first = rungs[0].attrs
    return {
        str(key): value for key, value in first.items()
        if key not in ("result", "schema", "settings")
        and all(one.attrs.get(key) == value for one in rungs)
    }  # fmt: skip
