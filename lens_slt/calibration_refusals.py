"""Why a calibration refuses a setting, and what a refusal asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import xarray as xr

from lens_slt.sampling.health import HEALTHY

SMALL_RHAT_SHARE = 0.9  # of the components
WORST_RHAT = 1.2
SIGNAL_TO_NOISE = 10.0  # λ̂ in standard errors
PRIOR, HOT, NOISE = "prior", "hot", "noise"  # what complaints are about
LEAVING = ("diverged", "spiky", "below start", "beyond the prior")  # verdicts of hot chains


def complaints(setting: xr.Dataset) -> list[tuple[str, str]]:
    """Why a setting is refused, in the order of the rule: kind of complaint, and words."""
    n = setting.sizes["component"]
    found = []
    bad = [
        (str(name), str(word))
        for name, word in zip(setting["component"].values, setting["verdict"].values, strict=True)
        if word != HEALTHY
    ]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        hot = any(word in verdict for _, verdict in bad for word in LEAVING)
        found.append((HOT if hot else NOISE, f"not healthy: {' '.join(bad[0])}{more}"))
    rhat, small = float(setting["largest_rhat"]), int(setting["small_rhat"])
    if np.isnan(rhat):
        found.append((NOISE, "R̂ is not defined"))
    elif rhat >= WORST_RHAT or small < SMALL_RHAT_SHARE * n:
        found.append((NOISE, f"R̂ too large for {n - small} of {n}"))
    ratio = float(setting["signal_to_noise"])
    if not ratio >= SIGNAL_TO_NOISE and not bad:
        found.append((NOISE, f"λ̂ only {ratio:.1f} standard errors"))
    above = int(setting["above_prior"])
    if above:
        found.append((HOT, f"{above} of {n} above the prior"))
    elif bool(setting["lowered"].notnull().any()) and 2 * int(setting["told_apart"]) <= n:
        found.append((PRIOR, "prior-dominated"))
    return found


@dataclass(frozen=True)
class _Refused:
    """A setting that is refused: for what, and what that is about.

    PRIOR comes before HOT: that most components see the prior alone cannot be by chance, while a
    single chain may be called spiky by chance.
    """

    place: str
    why: str
    about: str


def _refused(evidence: xr.Dataset) -> list[_Refused]:
    """Every setting, from the lowest nβ/γ to the highest, when none is accepted."""
    places = product(evidence["n_beta"].values, evidence["gamma"].values)
    found = []
    for n_beta, gamma in sorted(places, key=lambda place: place[0] / place[1]):
        found_here = complaints(evidence.sel(n_beta=n_beta, gamma=gamma))
        kinds = [kind for kind, _ in found_here]
        about = next(kind for kind in (PRIOR, HOT, NOISE) if kind in kinds)
        why = "; ".join(words for _, words in found_here)
        found.append(_Refused(f"nβ {n_beta:g}, γ {gamma:g}", why, about))
    return found


def knob_to_raise(evidence: xr.Dataset) -> str | None:
    """The knob that all refusals ask to raise; None where they ask for neither, or for both."""
    about = {one.about for one in _refused(evidence)}
    return {PRIOR: "n_beta", HOT: "gamma"}.get(about.pop()) if len(about) == 1 else None


def refusal(evidence: xr.Dataset, added: Sequence[str]) -> str:
    """The one reason why no setting is accepted."""
    refused = _refused(evidence)
    start = "no setting is accepted" + (f", with {', '.join(added)} added" if added else "")
    noisy = [one for one in refused if one.about == NOISE]
    if noisy:
        best = min(noisy, key=lambda one: one.why.count(";"))
        levelled = "still" not in best.why
        needed = "more draws or a larger batch_size" if levelled else "a longer burn_in"
        return f"{start}: {best.place} needs {needed} ({best.why})"
    dominated = [one.place for one in refused if one.about == PRIOR]
    left = [one.place for one in refused if one.about == HOT]
    if dominated and left:
        return (
            f"{start}: the prior dominates at {dominated[-1]}, and chains leave the neighbourhood "
            f"of the weights at {left[0]}; try a larger batch_size"
        )
    if dominated:
        highest = float(evidence["n_beta"].max())
        try_this = f"try n_betas above {highest:g} or lower gammas"
        return f"{start}: the prior dominates everywhere; {try_this}"
    highest = float(evidence["gamma"].max())
    return (
        f"{start}: chains leave the neighbourhood of the weights everywhere; try gammas "
        f"above {highest:g} or lower n_betas"
    )
