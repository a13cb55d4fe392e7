"""One setting of nβ and γ for all components, chosen by a stated rule.

The published guides ask people to sweep nβ and γ and to look at loss traces. Here the same is done
by rules that are fixed beforehand. For every (nβ, γ) of a coarse grid, with ε tied to γ, and for
the control at nβ = 0 once for every γ, all components are sampled with the same noise and the
same minibatches. A setting is *accepted* when

1. every chain of every component is healthy (:mod:`lens_slt.sampling.health`: traces that rise,
   level and do not spike, chains that agree, a mean above its noise),
2. R̂ is below 1.05 for nine components in ten and below 1.2 for all: of many components with short
   chains a few exceed 1.05 by chance,
3. every λ̂ is at least 10 standard errors,
4. no component's mean paired loss is above the control's by more than three standard errors: it
   falls as nβ rises, so there the step size or the gradient noise is too large for this nβ,
5. it is not prior-dominated: for more than half of the components the likelihood lowers the mean
   paired loss below the control's by more than two standard errors and more than a tenth.

Chosen is the accepted setting whose λ̂ is least sensitive: the mean over components and neighbours
in the grid of |Δ log λ̂ / Δ log knob|, the knob being the one of nβ and γ in which the neighbour
differs. It is 1 where λ̂ is proportional to a knob and 0 on a plateau. Sensitivities within 0.02 of
the least are ties, for they are not known better; of these the one furthest below the prior wins
(the largest median share by which the loss is lowered), then the lower nβ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from lens_slt.arguments import choice, numbers
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.progress import track
from lens_slt.sampling.health import HEALTHY, LARGEST_RHAT
from lens_slt.sampling.result import settings_of
from lens_slt.sampling.sample import sample
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import independent_units, standard_error

SAMPLERS = ("lm", "sgld", "rmsprop_sgld", "pcn")
SHORT = Settings(draws=50, batch_size=4)  # of one run of the sweep
SMALL_RHAT_SHARE = 0.9  # of the components
WORST_RHAT = 1.2
SIGNAL_TO_NOISE = 10.0  # λ̂ in standard errors
BELOW_PRIOR = 0.1  # of the control's mean paired loss
ERRORS = 2.0  # standard errors that tell posterior and control apart
ABOVE_ERRORS = 3.0  # fewer false alarms, as one component is enough
TIE = 0.02
ACCEPTED = "accepted"


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` found.

    Attributes:
        settings: the chosen setting, None if none was accepted.
        evidence: over (n_beta, gamma) and component, everything the rule used.
        reason: why this setting, or what to change if there is none.
    """

    settings: Settings | None
    evidence: xr.Dataset
    reason: str


def calibrate(
    model: Any,
    tokens: Any,
    components: str | Sequence[str] = "heads",
    *,
    n_betas: Sequence[float] = (10.0, 30.0, 100.0),
    gammas: Sequence[float] = (100.0, 300.0),
    settings: Settings = SHORT,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Calibration:
    """Choose nβ and γ for all components by the rule in :mod:`lens_slt.calibration`.

    Sweep nβ and γ coarsely, each γ with its control at nβ = 0; accept settings at which every
    chain is healthy, R̂ is small and λ̂ is at least 10 standard errors, and which the prior does not
    dominate; take the one where λ̂ changes least towards its neighbours in the grid, of ties the
    one furthest below the prior.

    Args:
        model, tokens, components, weights, mask, pad_id, device: as for :func:`lens_slt.sample`.
        n_betas: inverse temperatures of the grid, above 0; the control at 0 is added.
        gammas: localizations of the grid.
        settings: of every run of the sweep, apart from nβ and γ; short chains are enough. A
            ``step_size`` of None follows γ.
        progress: show a progress bar.

    Returns:
        ``settings`` has the sweep's values with the chosen nβ and γ and at least the default number
        of draws. ``evidence`` has per component ``llc``, ``se``, ``rhat``, ``verdict``,
        ``mean_paired_loss``, ``control_loss`` and ``lowered`` ± ``lowered_se`` (nats per token),
        and per setting the numbers of components ``healthy``, ``small_rhat``, ``told_apart`` and
        ``above_prior``, ``largest_rhat``, ``signal_to_noise`` (the smallest), ``below_prior``
        (median share by which the loss is lowered), ``sensitivity``, ``accepted`` and ``why``.

    Raises:
        ValueError, TypeError: a grid that is empty or has wrong values, and as ``sample``.
    """
    n_runs = len(sweep(n_betas, gammas, settings))
    n_betas, gammas = numbers("n_betas", n_betas, above=0), numbers("gammas", gammas, above=0)
    cells = []
    done = 0
    with track("calibrating", n_runs, progress) as tell:
        for gamma in gammas:
            runs = {}
            for n_beta in (0.0, *n_betas):
                runs[n_beta] = sample(
                    model, tokens, components, settings=settings.but(n_beta=n_beta, gamma=gamma),
                    weights=weights, mask=mask, pad_id=pad_id, device=device, progress=False,
                )  # fmt: skip
                done += 1
                tell(done)
            control = runs.pop(0.0)
            cells.append(xr.concat([_cell(run, control) for run in runs.values()], "n_beta"))
    evidence = xr.concat(cells, "gamma", combine_attrs="drop_conflicts")
    evidence = evidence.assign_coords(n_beta=list(n_betas), gamma=list(gammas))
    evidence = judge(evidence.transpose("n_beta", "gamma", "component"))
    return choose(evidence, settings)


def sweep(n_betas: Sequence[float], gammas: Sequence[float], settings: Settings) -> list[Settings]:
    """The settings of all runs of :func:`calibrate`, controls included; raises as it does."""
    n_betas, gammas = numbers("n_betas", n_betas, above=0), numbers("gammas", gammas, above=0)
    choice("settings.sampler", settings.sampler, SAMPLERS)
    return [settings.but(n_beta=b, gamma=g) for g in gammas for b in (0.0, *n_betas)]


def judge(evidence: xr.Dataset) -> xr.Dataset:
    """Add what the rule says about every setting to the estimates of all settings."""
    n = evidence.sizes["component"]
    healthy = (evidence["verdict"] == HEALTHY).sum("component")
    lowered = evidence["lowered"]
    enough = np.maximum(ERRORS * evidence["lowered_se"], BELOW_PRIOR * evidence["control_loss"])
    evidence = evidence.assign(
        healthy=healthy,
        small_rhat=(evidence["rhat"] < LARGEST_RHAT).sum("component"),
        largest_rhat=evidence["rhat"].max("component", skipna=False),
        signal_to_noise=(evidence["llc"] / evidence["se"]).min("component", skipna=False),
        below_prior=(lowered / evidence["control_loss"]).median("component"),
        told_apart=(lowered > enough).sum("component"),
        above_prior=(lowered < -ABOVE_ERRORS * evidence["lowered_se"]).sum("component"),
        sensitivity=_sensitivity(evidence["llc"]),
    )
    why = np.empty((evidence.sizes["n_beta"], evidence.sizes["gamma"]), dtype=object)
    for i, j in np.ndindex(why.shape):
        why[i, j] = "; ".join(_complaints(evidence.isel(n_beta=i, gamma=j), n)) or ACCEPTED
    return evidence.assign(
        accepted=(("n_beta", "gamma"), why == ACCEPTED), why=(("n_beta", "gamma"), why.astype(str))
    )


def choose(evidence: xr.Dataset, settings: Settings) -> Calibration:
    """Apply the rule to judged evidence."""
    keys = ("n_beta", "gamma", "sensitivity", "below_prior")
    flat = evidence[["sensitivity", "below_prior", "accepted"]].to_dataframe().reset_index()
    rows = flat[flat["accepted"]][list(keys)].astype(float).to_dict("records")
    if not rows:
        return Calibration(None, evidence, _advice(evidence))
    least = np.nanmin([*(row["sensitivity"] for row in rows), np.inf])
    ties = [row for row in rows if not row["sensitivity"] > least + TIE]
    best = min(ties, key=lambda row: (-row["below_prior"], row["n_beta"]))
    draws = max(settings.least_draws, Settings().least_draws)
    chosen = settings.but(n_beta=best["n_beta"], gamma=best["gamma"], draws=draws)
    reason = f"nβ {best['n_beta']:g}, γ {best['gamma']:g}: {len(rows)} of {len(flat)} settings"
    if not np.isfinite(best["sensitivity"]):
        return Calibration(chosen, evidence, f"{reason} accepted, no neighbours to compare λ̂ with")
    slope = f"mean |Δ log λ̂ / Δ log knob| = {best['sensitivity']:.2f}"
    reason += f" accepted; λ̂ is least sensitive here ({slope})"
    if len(ties) > 1:
        reason += f" and, of {len(ties)} within {TIE:g}, furthest below the prior"
    return Calibration(chosen, evidence, reason)


def _cell(run: xr.DataTree, control: xr.DataTree) -> xr.Dataset:
    """Estimates of one setting, and how far it is below its control."""
    llc = refined_llc(run)
    antithetic = settings_of(run).antithetic
    posteriors = [tree["posterior"].to_dataset() for tree in (run, control)]
    traces = [posterior["paired_loss"].values.astype(np.float64) for posterior in posteriors]
    used = [tree["health"].to_dataset()["used"].values.astype(bool) for tree in (run, control)]
    chains = run["health"].to_dataset()["verdict"].values
    verdict = np.where((chains == HEALTHY).all(1), HEALTHY, llc["verdict"].values)  # R̂ is rule 2
    rows: dict[str, list[float]] = {"control_loss": [], "lowered": [], "lowered_se": []}
    for i in range(llc.sizes["component"]):
        both = used[0][i] & used[1][i]
        mean, lowered, error = _lowered(traces[0][i], traces[1][i], both, antithetic)
        rows["control_loss"].append(mean)
        rows["lowered"].append(lowered)
        rows["lowered_se"].append(error)
    kept = llc[["llc", "se", "ess", "rhat", "chains_used", "mean_paired_loss"]]
    kept = kept.assign(verdict=("component", verdict))
    return kept.assign({key: ("component", np.array(values)) for key, values in rows.items()})


def _lowered(
    loss: FloatArray, control: FloatArray, used: BoolArray, antithetic: bool
) -> tuple[float, float, float]:
    """Control's mean paired loss, what the likelihood takes off it, and its standard error.

    Both runs share noise and minibatches, so the difference is taken draw by draw.
    """
    if not used.any():
        return float("nan"), float("nan"), float("nan")
    units = independent_units(control - loss, used, antithetic)
    return float(control[used].mean()), float(units.mean()), standard_error(units)


def _sensitivity(llc: xr.DataArray) -> xr.DataArray:
    """Mean |Δ log λ̂ / Δ log knob| over components and neighbours; NaN without a neighbour.

    Neighbours where a component has no positive λ̂ are left out for that component.
    """
    log_llc = xr.apply_ufunc(np.log, llc.where(llc > 0))
    total, count = xr.zeros_like(llc), xr.zeros_like(llc)
    for knob in ("n_beta", "gamma"):
        log_knob = xr.apply_ufunc(np.log, llc[knob])
        for shift in (1, -1):
            slope = abs(log_llc - log_llc.shift({knob: shift}))
            slope = slope / abs(log_knob - log_knob.shift({knob: shift}))
            total = total + slope.fillna(0)
            count = count + slope.notnull()
    return total.sum("component") / count.sum("component").where(lambda x: x > 0)


def _complaints(setting: xr.Dataset, n_components: int) -> list[str]:
    """Why a setting is refused, in the order of the rule."""
    found = []
    bad = [
        f"{name} {word}"
        for name, word in zip(setting["component"].values, setting["verdict"].values, strict=True)
        if word != HEALTHY
    ]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        found.append(f"not healthy: {bad[0]}{more}")
    rhat, small = float(setting["largest_rhat"]), int(setting["small_rhat"])
    if np.isnan(rhat):
        found.append("R̂ is not defined")
    elif rhat >= WORST_RHAT or small < SMALL_RHAT_SHARE * n_components:
        found.append(f"R̂ too large for {n_components - small} of {n_components}")
    ratio = float(setting["signal_to_noise"])
    if not ratio >= SIGNAL_TO_NOISE and not bad:
        found.append(f"λ̂ only {ratio:.1f} standard errors")
    above = int(setting["above_prior"])
    if above:
        found.append(f"{above} of {n_components} above the prior")
    elif 2 * int(setting["told_apart"]) <= n_components:
        found.append("prior-dominated")
    return found


def _advice(evidence: xr.Dataset) -> str:
    """What to change when no setting is accepted."""
    whys = " ".join(evidence["why"].values.ravel())
    advice = []
    if any(word in whys for word in ("diverged", "spiky", "below start")):
        advice.append("a higher γ or a lower nβ (chains leave the neighbourhood of the weights)")
    if "above the prior" in whys:
        advice.append("a larger batch_size, a smaller step_size or a lower nβ (chains are too hot)")
    if "still" in whys:
        advice.append("a longer burn_in (traces have not levelled)")
    if any(word in whys for word in ("disagree", "R̂", "standard errors", "noise")):
        advice.append("more draws or a larger batch_size (too much noise)")
    if "prior-dominated" in whys:
        advice.append("a higher nβ or a lower γ (where the prior dominates)")
    return f"no setting of the grid is accepted; try {', '.join(advice)}"
