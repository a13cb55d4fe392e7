"""λ and m from λ̂ over a ladder of nβ, claimed only where the data leave no other m.

λ̂(t) = λ − (m − 1)/(log t + c) − b·t^(−p): the leading pole of the zeta function with multiplicity
m, and the next one. With m = 1 also two poles, q apart, that are both seen, and a third:
λ̂(t) = λ − q/(exp(q·(log t + c)) − 1) − b·t^(−p). As q → 0 this is m = 2, and over a ladder of a few
decades q = ¼ looks much like it. Or, with m = 1, a quadratic minimum: λ̂ = ½ Σ h/(h + γ/t) with
curvatures h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats
from scipy.optimize import least_squares, nnls
from scipy.special import expit

from lens_slt.arguments import typed
from lens_slt.arrays import FloatArray
from lens_slt.sampling.certificate import CERTIFIED
from lens_slt.schema import require, stamped

CLAIMED = "identified"
NOT = "not identifiable, because"
COUNT = "rungs that count (certified, the prior's nβ·K above 10)"
LEAST_DECADES, LEAST_RUNGS = 2.0, 6
MOST_FORMS = 4  # integers m that are tried
EXCLUDED = 10.83  # χ² above the best form's, which one in a thousand right forms exceeds
ACCEPTED = 0.01  # probability of a misfit as large as the best form's
FLOOR = 0.002  # of λ̂: what one next pole leaves out
OF_LLC = 0.02  # of λ: what that does to λ, by exact curves
POWERS = np.array([0.1, 0.15, 0.2, 0.25, 1 / 3, 0.5, 0.75, 1.0, 1.5, 2.0])
GAPS = np.array([1 / 24, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2])  # of two poles
SHIFTS = np.arange(-2.0, 16.1, 0.5)  # of log(t·E[K]), E of the prior: where log t + c begins
LEAST_LOG = 0.7  # of log t + c
LEAST_PRIOR = 10.0  # of t·E[K], E of the prior, from which a rung tells of the singularity
FEW = 4  # parameters up to which a quadratic minimum has one curvature each
CURVATURES = 60  # of a grid
MOST_RISE = 0.05  # of λ̂ over the last decade, where a limit is claimed
MOST_ERROR = 0.05  # of λ, two standard errors


@dataclass(frozen=True)
class Curve:
    """λ̂ of one component at one γ.

    Attributes:
        x: log(t·E[K]), with the mean of K over the prior.
        ratio: t/γ.
        value, error: λ̂, and its error with that of the form.
        n_parameters: of the component.
    """

    x: FloatArray
    ratio: FloatArray
    value: FloatArray
    error: FloatArray
    n_parameters: int


@dataclass(frozen=True)
class Form:
    """A fitted form: its multiplicity, λ with error, χ² and curve; free numbers beside λ."""

    multiplicity: int
    llc: float
    misfit: float
    fit: FloatArray
    llc_se: float = float("nan")


@typed
def multiplicity(result: xr.Dataset, *, trust: bool = False) -> xr.Dataset:
    """λ and its multiplicity m of every component, or why they cannot be told.

    For each m the form λ − (m − 1)/(log nβ + c) − b·nβ^(−p) is fitted to λ̂ at one γ. With
    m = 1 also those of two poles q apart, λ − q/(exp(q·(log nβ + c)) − 1) − b·nβ^(−p), and of a
    quadratic minimum, ½ Σ h/(h + γ/nβ), of as many curvatures as there are weights. Forms whose χ²
    is 10.8 or more above the best one's are excluded. m is claimed where all other m up to 4 are
    excluded and the best form fits; no m is above the number of weights. At least two decades and
    six rungs are needed, certified and with nβ·K above 10 in the mean over the prior: below it the
    curve tells of the prior.

    m ≥ 2 is hardly ever told: over five decades of exact curves of normal crossings two single
    poles fit as well as a double one, and ``llc_low`` and ``llc_high`` then hold λ of both. m = 1
    is, where the next pole is far.

    What is assumed: the curve comes from one singular point; no more poles count (0.2 % of λ̂ and
    2 % of λ are allowed for what they leave out), nor two nearer than 1/24; log nβ + c begins
    within e¹⁶ of where nβ·K passes 1 under the prior; and λ̂ has no bias beyond its error, while a
    certificate allows one below 10 %. A curve that still rises at its end tells neither λ nor m,
    and at the nβ and γ of refined LLCs of transformers it does.

    Args:
        result: from :func:`lens_slt.spectrum`.
        trust: use rungs that are not certified (``result`` has to be made with ``trust`` too).

    Returns:
        Dataset over (gamma, component): ``multiplicity``, NaN where it is not claimed, ``llc``, λ
        of the best form of that m, with ``llc_se``, NaN without a claim; ``llc_low`` and
        ``llc_high``, over all forms that are not excluded (two standard errors; NaN if none fits
        or λ̂ still rises); ``verdict``, ``identified``
        or why not; ``rungs`` and ``decades`` that count. Over (form, gamma, component), ``form``
        the integer m: ``misfit``, χ², ``form_llc`` and ``form_llc_se``. Over (n_beta, gamma,
        component): ``fit`` of the best form, beside ``rung_llc`` and ``rung_se``.

    Watanabe 2009, Algebraic Geometry and Statistical Learning Theory.

    Example:
        >>> import lens_slt as ls, torch
        >>> rungs = [
        ...     ls.sample_function(lambda w: w.square().sum(-1) / 2, torch.zeros(2), settings=one)
        ...     for one in ls.ladder([1, 3, 10], [1], ls.Settings(draws=100))
        ... ]
        >>> ls.multiplicity(ls.spectrum(rungs))["multiplicity"].dims
        ('gamma', 'component')
    """
    result = require(result, "spectrum", argument="result")
    gammas, names = result["gamma"].values, result["component"].values
    cells = [
        [_cell(result.isel(gamma=g, component=c), trust) for c in range(len(names))]
        for g in range(len(gammas))
    ]
    over = ("n_beta", "gamma", "component")
    front = {"fit": ("n_beta",)} | dict.fromkeys(("misfit", "form_llc", "form_llc_se"), ("form",))
    data: dict[str, Any] = {}
    for key in cells[0][0]:
        value = np.array([[cell[key] for cell in row] for row in cells])
        first = front.get(key, ())
        data[key] = ((*first, *over[1:]), np.moveaxis(value, -1, 0) if first else value)
    rungs = {"rung_llc": (over, result["llc"].values), "rung_se": (over, result["se"].values)}
    table = xr.Dataset(
        data | rungs,
        coords={"form": np.arange(1, MOST_FORMS + 1), "n_beta": result["n_beta"].values,
                "gamma": gammas, "component": names},
        attrs={k: v for k, v in result.attrs.items() if k not in ("result", "schema", "masked")},
    )  # fmt: skip
    return stamped(table, "multiplicity")


def _cell(rung: xr.Dataset, trust: bool) -> dict[str, Any]:
    """All that is said of one component at one γ."""
    used = np.isfinite(rung["llc"].values) & (rung["se"].values > 0)
    used &= trust | (rung["certificate"].values == CERTIFIED)
    used &= ~(rung["n_beta"].values * _prior(rung) < LEAST_PRIOR)
    n_betas = rung["n_beta"].values[used]
    decades = float(np.ptp(np.log10(n_betas))) if used.any() else 0.0
    nan = float("nan")
    cell: dict[str, Any] = dict.fromkeys(
        ("multiplicity", "llc", "llc_se", "llc_low", "llc_high"), nan
    )
    cell |= {"rungs": int(used.sum()), "decades": decades, "fit": np.full(len(used), nan)}
    cell |= {key: np.full(MOST_FORMS, nan) for key in ("misfit", "form_llc", "form_llc_se")}
    why = _too_few(len(n_betas), decades)
    if not why and not (rung["llc"].values[used] > 0).all():
        why = f"{NOT} λ̂ is not above zero at every rung: the given weights are at no minimum"
    if why:
        return cell | {"verdict": why}
    fitted = fits(_curve(rung, used))
    for form in fitted:
        values = form.misfit, form.llc, form.llc_se
        for key, value in zip(("misfit", "form_llc", "form_llc_se"), values, strict=True):
            cell[key][form.multiplicity - 1] = value
    cell["fit"][used] = min(fitted, key=lambda form: form.misfit).fit
    return cell | judge(fitted, n_betas)


def _too_few(rungs: int, decades: float) -> str:
    if decades < LEAST_DECADES - 1e-6:
        return f"{NOT} {COUNT} span {decades:.1f} decades of nβ; {LEAST_DECADES:g} are needed"
    if rungs < LEAST_RUNGS:
        return f"{NOT} {COUNT} are {rungs}; {LEAST_RUNGS} are needed"
    return ""


def _prior(rung: xr.Dataset) -> float:
    """Mean loss of the prior; NaN where it is not known."""
    known = rung["prior_loss"].values[rung["prior_loss"].values > 0]
    return float(np.median(known)) if len(known) else float("nan")


def _curve(rung: xr.Dataset, used: FloatArray) -> Curve:
    t = rung["n_beta"].values[used]
    value, error = rung["llc"].values[used], rung["se"].values[used]
    prior = _prior(rung)
    scale = np.log(prior if np.isfinite(prior) else value[0] / t[0])
    return Curve(
        np.log(t) + scale, t / float(rung["gamma"]), value, np.hypot(error, FLOOR * value),
        int(rung["n_parameters"]),
    )  # fmt: skip


def fits(curve: Curve) -> list[Form]:
    """The best form of every m that is possible."""
    most = min(MOST_FORMS, curve.n_parameters)
    found = [_pole(curve, m) for m in range(1, most + 1)]
    quadratic = _quadratic(curve)
    found[0] = min(quadratic, found[0], key=lambda form: form.misfit)
    return [replace(form, llc_se=float(np.hypot(form.llc_se, OF_LLC * form.llc))) for form in found]


def judge(fitted: Sequence[Form], n_betas: FloatArray) -> dict[str, Any]:
    """What can be claimed of forms fitted at these rungs."""
    best = min(fitted, key=lambda form: form.misfit)
    left = [form for form in fitted if form.misfit < best.misfit + EXCLUDED]
    free = max(len(n_betas) - 2 - min(2, best.multiplicity), 1)
    chance = float(stats.chi2.sf(best.misfit, free))
    if chance < ACCEPTED:
        return {
            "verdict": f"{NOT} no form fits λ̂ of all rungs within its error (χ² {best.misfit:.0f} "
            f"for {free} degrees of freedom)"
        }
    before = float(np.interp(np.log(n_betas[-1] / 10), np.log(n_betas), best.fit))
    rise = 1 - before / float(best.fit[-1])
    if rise > MOST_RISE:
        return {
            "verdict": f"{NOT} λ̂ still rises, by {rise:.0%} over the last decade: directions that "
            "this ladder does not see may be left; higher nβ or lower γ"
        }
    ends = {
        "llc_low": min(form.llc - 2 * form.llc_se for form in left),
        "llc_high": max(form.llc + 2 * form.llc_se for form in left),
    }
    if len(left) > 1:
        words = " and ".join(f"m = {form.multiplicity} (λ {form.llc:.3g})" for form in left)
        return ends | {"verdict": f"{NOT} {words} fit as well: smaller errors or more decades"}
    if 2 * best.llc_se > MOST_ERROR * best.llc:
        return ends | {"verdict": f"{NOT} λ is known to {2 * best.llc_se / best.llc:.0%} only"}
    return ends | {
        "verdict": CLAIMED, "multiplicity": float(best.multiplicity), "llc": best.llc,
        "llc_se": best.llc_se,
    }  # fmt: skip


def _pole(curve: Curve, m: int) -> Form:
    """λ − leading(x) − b·exp(−p·x), by least squares on a grid of all but λ and b."""
    leading = _leading(curve.x, m, curve.n_parameters)
    target = (curve.value + leading) / curve.error  # [leading, rung]
    found = []
    for p in POWERS:
        decay = np.exp(-p * (curve.x - curve.x[0]))
        columns = np.stack([np.ones_like(decay), -decay], 1) / curve.error[:, None]
        llc, b = np.linalg.pinv(columns) @ target.T
        misfit = ((target - np.column_stack([llc, b]) @ columns.T) ** 2).sum(1)
        error = np.linalg.inv(columns.T @ columns)[0, 0] ** 0.5
        found.append(np.array([misfit, llc, b, *np.full((2, len(b)), [[error], [p]])]))
    rows = np.array(found)  # [p, value, leading]
    place, at = np.unravel_index(rows[:, 0].argmin(), rows[:, 0].shape)
    _, llc, b, _, p = rows[place, :, at]
    fit = llc - leading[at] - b * np.exp(-p * (curve.x - curve.x[0]))
    misfit, llcs, errors = (rows[:, i].ravel() for i in (0, 1, 3))
    near = misfit <= misfit.min() + 4  # two standard errors
    left = (4 + misfit.min() - misfit[near]) ** 0.5
    wide = (abs(llcs[near] - llc) + errors[near] * left).max()
    return Form(m, float(llc), float(misfit.min()), fit, float(wide / 2))


def _leading(x: FloatArray, m: int, n_parameters: int) -> FloatArray:
    """What is taken off λ by a pole of multiplicity m, or by two single ones ``[form, rung]``.

    One weight has poles at λ, 3λ, …, which are never near.
    """
    z = x + SHIFTS[x.min() + SHIFTS >= LEAST_LOG, None]
    if m > 1:
        return np.asarray((m - 1) / z)
    gaps = GAPS if n_parameters > 1 else GAPS[:0]
    return np.concatenate([np.zeros((1, len(x))), *(gap / np.expm1(gap * z) for gap in gaps)])


def _quadratic(curve: Curve) -> Form:
    """½ Σ h/(h + γ/t): one curvature for each weight, or any spread of them where there are many.

    λ counts those that the last rung sees, h ≥ γ/t there.
    """
    low, high = np.log(1 / curve.ratio.max()), np.log(1 / curve.ratio.min())
    if curve.n_parameters > FEW:
        return _spread(curve, np.exp(np.linspace(low, high + 7, CURVATURES)))
    grid = np.linspace(low - 6, high + 7, 14)
    starts = sorted(
        combinations_with_replacement(grid, curve.n_parameters),
        key=lambda logs: float(np.square(_residual(np.array(logs), curve)).sum()),
    )[:3]
    found = [least_squares(_residual, logs, args=(curve,), method="trf") for logs in starts]
    best = min(found, key=lambda one: one.cost)
    seen = np.array(best.x) >= low
    fit = _localised(best.x, curve.ratio)
    return Form(1, float(seen.sum() / 2), float(2 * best.cost), fit, 0.0)


def _localised(logs: FloatArray, ratio: FloatArray) -> FloatArray:
    return np.asarray(expit(logs[:, None] + np.log(ratio)).sum(0) / 2)


def _residual(logs: FloatArray, curve: Curve) -> FloatArray:
    return np.asarray((_localised(logs, curve.ratio) - curve.value) / curve.error)


def _spread(curve: Curve, h: FloatArray) -> Form:
    """Numbers of directions on a grid of curvatures, at least 0; λ's error by refitting noise."""
    columns = 1 / (1 + 1 / (h[None] * curve.ratio[:, None])) / 2
    weighted = columns / curve.error[:, None]
    count, rest = nnls(weighted, curve.value / curve.error)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((50, len(curve.value)))
    again = [nnls(weighted, curve.value / curve.error + row)[0].sum() / 2 for row in noise]
    form = Form(1, float(count.sum() / 2), float(rest**2), columns @ count)
    return replace(form, llc_se=float(np.std(again, ddof=1)))
