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

If no setting is accepted, the search goes on where the refusals point. Where the prior dominates at
every setting, the grid gets a higher nβ; where at every setting chains leave the neighbourhood of
the weights (diverge, spike, fall below the start, get beyond the prior or above the control), a
higher γ: three times the highest so far, at most three times. The search stops when a setting is
accepted; when one is refused for neither, for then draws are too few or too short, whatever nβ and
γ; and when some settings ask for the one and some for the other. There is one reason at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from lens_slt.arguments import choice, numbers, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.calibration_refusals import complaints, knob_to_raise, refusal
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.progress import track
from lens_slt.sampling.health import HEALTHY, LARGEST_RHAT
from lens_slt.sampling.registry import SAMPLERS
from lens_slt.sampling.result import settings_of
from lens_slt.sampling.sample import sample
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import independent_units, standard_error
from lens_slt.torch_state import plain_torch

CHAINS = tuple(name for name, one in SAMPLERS.items() if not one.INDEPENDENT)
SHORT = Settings(draws=100)  # of one run; small batches would need small steps at high nβ
BELOW_PRIOR = 0.1  # of the control's mean paired loss
ERRORS = 2.0  # standard errors that tell posterior and control apart
ABOVE_ERRORS = 3.0  # fewer false alarms, as one component is enough
TIE = 0.02
ACCEPTED = "accepted"
FURTHER = 3.0  # factor from the highest value of a knob to the next one that is tried
MOST_ROUNDS = 3  # values that the search adds to the grid
SIGNS = {"n_beta": "nβ", "gamma": "γ"}


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` found.

    Attributes:
        settings: the chosen setting, None if none was accepted.
        evidence: over (n_beta, gamma) and component, everything the rule used.
        reason: why this setting, or the one reason why there is none.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> short = ls.Settings(draws=40, chains=2)
        >>> found = ls.calibrate(model, text, "L0H0", n_betas=[30], settings=short, progress=False)
        >>> (found.settings is None) == ("no setting" in found.reason)
        True
    """

    settings: Settings | None
    evidence: xr.Dataset
    reason: str

    def __str__(self) -> str:
        s = self.settings
        chosen = "nothing chosen" if s is None else f"nβ {s.n_beta:g}, γ {s.gamma:g}"
        refused = self.evidence["why"].to_series()
        lines = [f"  nβ {n:g}, γ {g:g}: {why}" for (n, g), why in refused.items()]
        return "\n".join([f"{chosen}: {self.reason}", *lines])


@typed
@plain_torch
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

    Of settings at which all is healthy that where λ̂ changes least; higher ones if there is none.

    Args:
        model, tokens, components, weights, mask, pad_id, device: as for :func:`lens_slt.sample`.
        n_betas: inverse temperatures to begin with, above 0; the control at 0 is added.
        gammas: localizations to begin with.
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

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> short = ls.Settings(draws=40, chains=2)
        >>> found = ls.calibrate(model, text, "L0H0", n_betas=[30], settings=short, progress=False)
        >>> found.evidence["llc"].dims
        ('n_beta', 'gamma', 'component')
    """
    n_runs = len(sweep(n_betas, gammas, settings))
    controls: dict[float, xr.DataTree] = {}
    done = 0
    with track("calibrating", n_runs, progress) as tell:

        def run(n_beta: float, gamma: float) -> xr.DataTree:
            nonlocal done
            found = sample(
                model, tokens, components, settings=settings.but(n_beta=n_beta, gamma=gamma),
                weights=weights, mask=mask, pad_id=pad_id, device=device, progress=False,
            )  # fmt: skip
            done += 1
            tell(done)
            return found

        def measure(n_beta: float, gamma: float) -> xr.Dataset:
            if gamma not in controls:
                controls[gamma] = run(0.0, gamma)
            return _cell(run(n_beta, gamma), controls[gamma])

        return search(measure, n_betas, gammas, settings)


def sweep(n_betas: Sequence[float], gammas: Sequence[float], settings: Settings) -> list[Settings]:
    """The settings of the runs that :func:`calibrate` begins with, controls included.

    Raises as it does.
    """
    n_betas, gammas = numbers("n_betas", n_betas, above=0), numbers("gammas", gammas, above=0)
    choice("settings.sampler", settings.sampler, CHAINS)
    return [settings.but(n_beta=b, gamma=g) for g in gammas for b in (0.0, *n_betas)]


def search(
    measure: Callable[[float, float], xr.Dataset],
    n_betas: Sequence[float],
    gammas: Sequence[float],
    settings: Settings,
) -> Calibration:
    """Measure a grid, and more of it where no setting is accepted; choose by the rule.

    ``measure(n_beta, gamma)`` gives what the rule needs to know of one setting, over component.
    """
    grid: dict[str, list[float]] = {
        "n_beta": list(numbers("n_betas", n_betas, above=0)),
        "gamma": list(numbers("gammas", gammas, above=0)),
    }
    cells: dict[tuple[float, float], xr.Dataset] = {}
    added: list[str] = []
    while True:
        rows = []
        for n_beta in grid["n_beta"]:
            for gamma in grid["gamma"]:
                if (n_beta, gamma) not in cells:
                    cells[n_beta, gamma] = measure(n_beta, gamma)
            row = [cells[n_beta, gamma] for gamma in grid["gamma"]]
            rows.append(xr.concat(row, "gamma", combine_attrs="drop_conflicts"))
        evidence = xr.concat(rows, "n_beta", combine_attrs="drop_conflicts").assign_coords(grid)
        evidence = judge(evidence)
        found = choose(evidence, settings, added)
        knob = None if found.settings is not None else knob_to_raise(evidence)
        if knob is None or len(added) == MOST_ROUNDS:
            return found
        grid[knob].append(FURTHER * grid[knob][-1])
        added.append(f"{SIGNS[knob]} {grid[knob][-1]:g}")


def judge(evidence: xr.Dataset) -> xr.Dataset:
    """Add what the rule says about every setting to the estimates of all settings."""
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
        found = complaints(evidence.isel(n_beta=i, gamma=j))
        why[i, j] = "; ".join(words for _, words in found) or ACCEPTED
    return evidence.assign(
        accepted=(("n_beta", "gamma"), why == ACCEPTED), why=(("n_beta", "gamma"), why.astype(str))
    )


def choose(evidence: xr.Dataset, settings: Settings, added: Sequence[str] = ()) -> Calibration:
    """Apply the rule to judged evidence; ``added`` are the values that the search has added."""
    keys = ("n_beta", "gamma", "sensitivity", "below_prior")
    flat = evidence[["sensitivity", "below_prior", "accepted"]].to_dataframe().reset_index()
    rows = flat[flat["accepted"]][list(keys)].astype(float).to_dict("records")
    if not rows:
        return Calibration(None, evidence, refusal(evidence, added))
    least = np.nanmin([*(row["sensitivity"] for row in rows), np.inf])
    ties = [row for row in rows if not row["sensitivity"] > least + TIE]
    best = min(ties, key=lambda row: (-row["below_prior"], row["n_beta"]))
    draws = max(settings.least_draws, Settings().least_draws)
    chosen = settings.but(n_beta=best["n_beta"], gamma=best["gamma"], draws=draws)
    reason = f"nβ {best['n_beta']:g}, γ {best['gamma']:g}: {len(rows)} of {len(flat)} settings"
    if added:
        reason += f" (with {', '.join(added)} added, for none of the first was)"
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
