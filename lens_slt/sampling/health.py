"""Health verdicts in words for every chain and component, and the certificate.

``RULES`` states what the published sampling guides ask people to look for in loss traces.

Chains whose verdict is named and kept would bias the mean if they were left out, or are all there
is. A component is
*healthy* if the model knows something of the tokens (its loss is below a uniform guess's), its
chains are and :mod:`lens_slt.sampling.certificate` certifies it; a component whose
chains look well but which is not certified says that instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.sampling.certificate import CERTIFIED, Bias, Virial, certificate, coupled
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import LEAST_DRAWS, mean_with_error, standard_error

HEALTHY = "healthy"
BEYOND = "beyond the prior"
NO_EFFECT = "no effect"
TOO_SHORT = "too short"
EXCLUDED = (
    "diverged", "never moved", "identical chains", "still rising", "still falling",
    "chains disagree",
)  # fmt: skip
RULES: dict[str, str] = {
    "diverged": (
        "a non-finite loss, or the chain is more than √10 times as far from the given weights "
        "as the prior allows; excluded"
    ),
    "never moved": "the weights are the same at every draw; excluded",
    "identical chains": (
        "the trace equals another chain's to the last bit, other than the antithetic one's of "
        "an even loss; excluded"
    ),
    "spiky": (
        "a draw more than 20 standard deviations of the draws not near it away from their mean;"
        " kept, named"
    ),
    "still rising": (
        "the line fitted to the trace rises by more than 5 standard errors and by more than a "
        "tenth of the mean; excluded"
    ),
    "still falling": "it falls by as much; excluded",
    "chains disagree": (
        "the chain's mean is more than 5 standard errors and more than a tenth of the mean away"
        " from the median chain; excluded"
    ),
    "too short": "fewer than 4 draws, or too few for a standard error; kept, named",
    "no effect": (
        "every loss equals that at the given weights: nothing that the component does reaches "
        "the loss; kept, named"
    ),
    "below start": (
        "mean paired loss below zero by more than 2 standard errors: the given weights are not "
        "at a local minimum; kept, named"
    ),
    "signal below noise": "mean paired loss within 2 standard errors of zero; kept, named",
    "beyond the prior": (
        "mean squared distance from the given weights more than 5 standard errors and more than"
        " a tenth above the prior's: the step size is too large, and λ̂ too high; kept, named"
    ),
    "healthy": "none of these",
}
"""Verdicts, each with its rule and what becomes of the chain."""
LEAST_GAIN = 0.01  # of the uniform guess's loss, that a trained model is better by
LEAST_MIXED = 100  # effective draws of an exact sampler that is certified
LARGEST_RHAT = 1.05
WORST_RHAT = 1.1  # that is certified
DISTANCE_FACTOR = 10.0  # of the squared distance expected under the prior
# Near a singularity nβ·ΔL follows a gamma distribution of shape λ̂, whose tail is exponential: at
# λ̂ = 1/8 one healthy chain of 200 draws in 300 passes 20 standard deviations, at λ̂ ≥ 1/2 none does.
SPIKE = 20.0
SPIKE_NEIGHBOURS = 5  # draws on each side of the largest that may belong to the same spike
MOVED = 5.0  # standard errors
MOVED_SHARE = 0.1  # of the mean
NOISE = 2.0  # standard errors
BEYOND_SHARE = 0.1  # of the prior's squared distance


def diagnose(posterior: xr.Dataset, root: xr.Dataset, settings: Settings) -> xr.Dataset:
    """Verdict per (component, chain), whether the chain is used, certificate and summary.

    Args:
        posterior: the traces (component, chain, draw).
        root: ``n_parameters``, ``n_draws``, the prior's loss and the measured bias per component.
        settings: of the run.
    """
    rows = [
        _component(posterior.isel(component=i), root.isel(component=i), settings)
        for i in range(posterior.sizes["component"])
    ]
    coords = {"component": posterior["component"].values, "chain": posterior["chain"].values}
    columns = {
        key: (("component", "chain")[: np.ndim(rows[0][key]) + 1], np.array([r[key] for r in rows]))
        for key in rows[0]
    }
    return xr.Dataset(columns, coords=coords)


def _component(posterior: xr.Dataset, root: xr.Dataset, settings: Settings) -> dict[str, Any]:
    """All columns of one component."""
    n = int(root["n_draws"])
    traces: dict[str, FloatArray] = {
        str(name): values.values[:, :n].astype(np.float64)
        for name, values in posterior.data_vars.items()
    }
    loss, distance = traces["paired_loss"], traces["squared_distance"]
    expected = float(root["n_parameters"]) / settings.gamma
    refused = _weights_refused(loss, settings)
    if refused:
        words, rhat = [refused] * len(loss), float("nan")
    else:
        words, rhat = _chain_verdicts(loss, distance, expected, settings)
    used = np.array([not _is_excluded(word) for word in words])
    reason = refused
    virial, bias = _virial(traces, used, root, settings), _bias(root)
    if used.any():
        reason = _not_mixed(loss, used, rhat, settings)
    elif settings.method.EXACT and not refused:
        reason = "no chain can be used"
    prior = float(root["prior_loss"]), float(root["prior_loss_se"])
    if not settings.method.PRIOR_DISTANCE:
        prior = float("nan"), float("nan")
    word, why = certificate(
        virial, bias, prior, float(loss[used].mean()) if used.any() else float("nan"),
        reason=settings.method.NO_CERTIFICATE or reason,
    )  # fmt: skip
    found = virial or Virial(*(float("nan"),) * 5)
    return {
        "verdict": words,
        "used": used,
        "rhat": rhat,
        "certificate": word,
        "why": why,
        "defect": found.defect,
        "defect_se": found.defect_se,
        "defect_share": found.share,
        "defect_share_se": found.share_se,
        "summary": _summary(words, rhat, word, why, _no_better_than_a_guess(root.attrs)),
    }


def _virial(
    traces: dict[str, FloatArray], used: BoolArray, root: xr.Dataset, settings: Settings
) -> Virial | None:
    """The coupled virial of one component; None of an exact sampler."""
    if settings.method.EXACT:
        return None
    return coupled(
        traces["step_loss"], traces["virial"], traces["defect"], used, settings,
        float(root["step_size"]),
    )  # fmt: skip


def _bias(root: xr.Dataset) -> Bias | None:
    if not np.isfinite(float(root["bias"])):
        return None
    return Bias(*(float(root[name]) for name in ("bias", "bias_se", "bias_remaining")))


def _not_mixed(loss: FloatArray, used: BoolArray, rhat: float, settings: Settings) -> str:
    """Why chains are too slow, or those of an exact sampler too few, to be believed."""
    if rhat > WORST_RHAT:
        return f"chains have not mixed (R̂ {rhat:.2f})"
    if not settings.method.EXACT:
        return ""
    effective = np.nan_to_num(mean_with_error(loss, loss, used, settings)[2])
    if not effective >= LEAST_MIXED:
        return f"only {effective:.0f} effective draws of an exact sampler"
    return ""


def _weights_refused(loss: FloatArray, settings: Settings) -> str:
    """Why the weights of pooled draws cannot be used, if they cannot."""
    if not np.isfinite(loss).all():
        return ""
    found = settings.method.draw_weights(loss.ravel(), settings.n_beta)
    return "" if found is None else found[1]


def _chain_verdicts(
    loss: FloatArray, distance: FloatArray, expected: float, settings: Settings
) -> tuple[list[str], float]:
    words = [_broken(loss, distance, c, expected, settings) for c in range(len(loss))]
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
        if settings.method.INDEPENDENT and _is_excluded(words[c]):
            words[c] = HEALTHY
        if words[c] == HEALTHY and settings.method.PRIOR_DISTANCE:
            words[c] = BEYOND if _is_beyond(distance[c], expected) else HEALTHY
    kept = [c for c in alive if not _is_excluded(words[c])]
    return words, _rhat(loss[kept])


def _rhat(loss: FloatArray) -> float:
    """R̂ of ``[chain, draw]``; NaN where it is not defined."""
    import arviz as az  # on use: it takes seconds to load

    if len(loss) < 2 or loss.shape[1] < LEAST_DRAWS or not np.ptp(loss):
        return float("nan")
    return float(np.asarray(az.rhat(loss)).item())


def _broken(
    loss: FloatArray, distance: FloatArray, chain: int, expected: float, settings: Settings
) -> str:
    """What makes a trace useless before its course is looked at."""
    own, far = loss[chain], distance[chain]
    if not np.isfinite(own).all() or not np.isfinite(far).all():
        return "diverged"
    if (far > DISTANCE_FACTOR * expected).any() and settings.method.PRIOR_DISTANCE:
        return "diverged"
    if len(own) > 1 and not np.ptp(far):
        return "never moved"
    alike = np.flatnonzero(loss[:chain, 0] == own[0])  # of many chains few have to be compared
    others = [c for c in alike if not settings.antithetic or c // 2 != chain // 2]
    if np.ptp(own) and any((own == loss[c]).all() for c in others):
        return "identical chains"
    return ""


def _trace_verdict(loss: FloatArray, mean: float, error: float) -> str:
    if not loss.any():
        return NO_EFFECT
    if not np.isfinite(error):
        return TOO_SHORT
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


def _is_excluded(word: str) -> bool:
    return word in EXCLUDED or word.startswith("importance weights")


def _no_better_than_a_guess(record: Mapping[Any, Any]) -> str:
    """Whether the model knows nothing of the tokens, in words."""
    if "uniform_loss" not in record:
        return ""
    return in_words_if_guessing(
        *(record[key] for key in ("base_loss", "base_loss_se", "uniform_loss"))
    )


def in_words_if_guessing(base: float, error: float, uniform: float) -> str:
    """Whether a loss is no better than that of a uniform guess, in words; "" where it is."""
    if base < uniform - max(NOISE * error, LEAST_GAIN * uniform):
        return ""
    return (
        f"loss at the given weights {base:.2f} nats, a uniform guess {uniform:.2f}: untrained, or "
        "tokens of another tokenizer"
    )


def _summary(words: list[str], rhat: float, certified: str, why: str, guess: str) -> str:
    bad = Counter(word for word in words if word != HEALTHY)
    found = []
    if bad:
        found = [
            word if n == len(words) else f"{n} of {len(words)} chains {word}"
            for word, n in bad.items()
        ]
    elif rhat > LARGEST_RHAT:
        found = [f"chains disagree (R̂ {rhat:.2f})"]
    elif certified != CERTIFIED:
        found = [f"{certified}: {why}"]
    return "; ".join([*found, *([guess] if guess else [])]) or HEALTHY
