"""Health verdicts in words for every chain and component.

What the published sampling guides ask people to look for in loss traces, as stated rules:

====================  ==========================================================  ==============
verdict               rule                                                        consequence
====================  ==========================================================  ==============
diverged              a non-finite loss, or the chain is more than √10 times as   excluded
                      far from the given weights as the prior allows
spiky                 a draw more than 20 standard deviations of the draws not    excluded
                      near it away from their mean
still rising          the line fitted to the trace rises by more than 5           excluded
                      standard errors and by more than a tenth of the mean
still falling         it falls by as much                                         excluded
chains disagree       the chain's mean is more than 5 standard errors and more    excluded
                      than a tenth of the mean away from the median chain
below start           mean paired loss below zero by more than 2 standard         kept, named
                      errors: the given weights are not at a local minimum
signal below noise    mean paired loss within 2 standard errors of zero           kept, named
beyond the prior      mean squared distance from the given weights more than 5    kept, named
                      standard errors and more than a tenth above the prior's:
                      the step size is too large, and λ̂ too high
healthy               none of these
====================  ==========================================================  ==============

Those that are kept would bias the mean if they were left out, or are all there is. A step size may
be too large long before chains get beyond the prior: healthy does not mean unbiased. The last rule
is not applied to ``rmsprop_sgld``, whose noise is not the prior's.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import xarray as xr

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.sampling.importance import LARGEST_K_HAT, smoothed_weights
from lens_slt.sampling.settings import Settings

HEALTHY = "healthy"
BEYOND = "beyond the prior"
EXCLUDED = ("diverged", "spiky", "still rising", "still falling", "chains disagree")
LARGEST_RHAT = 1.05
DISTANCE_FACTOR = 10.0  # of the squared distance expected under the prior
# Near a singularity nβ·ΔL follows a gamma distribution of shape λ̂, whose tail is exponential: at
# λ̂ = 1/8 one healthy chain of 200 draws in 300 passes 20 standard deviations, at λ̂ ≥ 1/2 none does.
SPIKE = 20.0
SPIKE_NEIGHBOURS = 5  # draws on each side of the largest that may belong to the same spike
MOVED = 5.0  # standard errors
MOVED_SHARE = 0.1  # of the mean
NOISE = 2.0  # standard errors
BEYOND_SHARE = 0.1  # of the prior's squared distance


def diagnose(posterior: xr.Dataset, n_parameters: FloatArray, settings: Settings) -> xr.Dataset:
    """Verdict per (component, chain), whether the chain is used, and a summary per component.

    Args:
        posterior: ``paired_loss`` and ``squared_distance`` (component, chain, draw).
        n_parameters: number of weights of every component.
        settings: of the run.
    """
    loss = posterior["paired_loss"].values.astype(np.float64)
    distance = posterior["squared_distance"].values
    verdicts, used, summaries, rhats = [], [], [], []
    for i in range(len(loss)):
        if settings.sampler == "importance":
            words, rhat = _importance_verdicts(loss[i], settings.n_beta)
        else:
            expected = n_parameters[i] / settings.gamma
            words, rhat = _chain_verdicts(loss[i], distance[i], expected)
            if settings.sampler != "rmsprop_sgld":
                words = [
                    BEYOND if word == HEALTHY and _is_beyond(one, expected) else word
                    for word, one in zip(words, distance[i].astype(np.float64), strict=True)
                ]
        ok = np.array([not _is_excluded(word) for word in words])
        verdicts.append(words)
        used.append(ok)
        rhats.append(rhat)
        summaries.append(_summary(words, rhat))
    coords = {"component": posterior["component"].values, "chain": posterior["chain"].values}
    return xr.Dataset(
        {
            "verdict": (("component", "chain"), np.array(verdicts)),
            "used": (("component", "chain"), np.stack(used)),
            "rhat": ("component", np.array(rhats)),
            "summary": ("component", np.array(summaries)),
        },
        coords=coords,
    )


def standard_error(series: FloatArray) -> float:
    """Autocorrelation-aware standard error of the mean of ``[chain, draw]``.

    The larger of ArviZ's Monte Carlo standard error over the chains and that of their average:
    chains that share minibatches are not independent, and only the second knows.
    """
    import arviz as az  # on use: it takes seconds to load

    if series.shape[1] < 4:
        return float("nan")
    flat = series.mean(0, keepdims=True)
    # Where numba is installed, ArviZ returns an array of one number.
    errors = [np.asarray(az.mcse(x, method="mean")).item() for x in (series, flat)]
    return float(np.nanmax(errors)) if np.isfinite(errors).any() else float("nan")


def independent_units(series: FloatArray, used: BoolArray, antithetic: bool) -> FloatArray:
    """Used chains ``[unit, draw]``; antithetic pairs are averaged into one unit."""
    if not antithetic:
        return series[used]
    units = [
        series[pair : pair + 2][used[pair : pair + 2]].mean(0)
        for pair in range(0, len(series), 2)
        if used[pair : pair + 2].any()
    ]
    return np.array(units) if units else series[:0]


def _chain_verdicts(
    loss: FloatArray, distance: FloatArray, expected: float
) -> tuple[list[str], float]:
    import arviz as az  # on use: it takes seconds to load

    words = [""] * len(loss)
    for c in range(len(loss)):
        far = distance[c] > DISTANCE_FACTOR * expected
        if not np.isfinite(loss[c]).all() or not np.isfinite(distance[c]).all() or far.any():
            words[c] = "diverged"
    alive = [c for c in range(len(loss)) if not words[c]]
    means = {c: float(loss[c].mean()) for c in alive}
    errors = {c: standard_error(loss[c : c + 1]) for c in alive}
    centre = float(np.median(list(means.values()))) if alive else 0.0
    typical = float(np.median(list(errors.values()))) if alive else 0.0
    for c in alive:
        words[c] = _trace_verdict(loss[c], means[c], errors[c])
        apart = abs(means[c] - centre)
        beyond_noise = apart > MOVED * np.hypot(errors[c], typical)
        if not _is_excluded(words[c]) and beyond_noise and apart > MOVED_SHARE * abs(centre):
            words[c] = "chains disagree"
    kept = [c for c in alive if not _is_excluded(words[c])]
    rhat = float(az.rhat(loss[kept])) if len(kept) > 1 and loss.shape[1] >= 4 else float("nan")
    return words, rhat


def _trace_verdict(loss: FloatArray, mean: float, error: float) -> str:
    peak = int(np.abs(loss - np.median(loss)).argmax())
    near = slice(max(0, peak - SPIKE_NEIGHBOURS), peak + SPIKE_NEIGHBOURS + 1)
    rest = np.delete(loss, near)
    if len(rest) > SPIKE_NEIGHBOURS and abs(loss[peak] - rest.mean()) > SPIKE * rest.std():
        return "spiky"
    time = np.linspace(-0.5, 0.5, len(loss))
    rise = float((time @ loss) / (time @ time)) if len(loss) > 1 else 0.0
    uncertain = 12**0.5 * standard_error((loss - rise * time)[None])
    if abs(rise) > MOVED * uncertain and abs(rise) > MOVED_SHARE * abs(mean):
        return "still rising" if rise > 0 else "still falling"
    if mean < -NOISE * error:
        return "below start"
    if mean < NOISE * error:
        return "signal below noise"
    return HEALTHY


def _is_beyond(distance: FloatArray, expected: float) -> bool:
    """Whether a chain stays further from the given weights than the prior alone would."""
    above = float(distance.mean()) - expected
    if not above > BEYOND_SHARE * expected:
        return False
    return above > MOVED * standard_error(distance[None])


def _importance_verdicts(loss: FloatArray, n_beta: float) -> tuple[list[str], float]:
    if not np.isfinite(loss).all():
        return ["diverged"] * len(loss), float("nan")
    _, k_hat = smoothed_weights(loss.ravel(), n_beta)
    word = HEALTHY
    if k_hat > LARGEST_K_HAT:
        word = f"importance weights too heavy (k̂ = {k_hat:.2f})"
    return [word] * len(loss), float("nan")


def _is_excluded(word: str) -> bool:
    return word in EXCLUDED or word.startswith("importance weights")


def _summary(words: list[str], rhat: float) -> str:
    bad = Counter(word for word in words if word != HEALTHY)
    if bad:
        return "; ".join(
            word if n == len(words) else f"{n} of {len(words)} chains {word}"
            for word, n in bad.items()
        )
    if rhat > LARGEST_RHAT:
        return f"chains disagree (R̂ {rhat:.2f})"
    return HEALTHY
