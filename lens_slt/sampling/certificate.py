"""Whether a run can be believed: the coupled virial, the prior's loss, and a run at half the step.

For the exact posterior of P weights E[u·(nβ·∇L(u) + γ·u)] = P, u the distance from the given
weights. A prior chain z driven by the same noise has E[γ|z|²] = P, and its fluctuations cancel
those of γ|u|². So

    defect = nβ·⟨u·g⟩ + γ·⟨|u|² − |z|²⟩

is zero on average if the chain samples the posterior, and positive if the step is too large for a
stiff direction, if the noise of the minibatch gradients heats the chain, or if it has not relaxed.
In the harmonic regime nβ⟨u·g⟩ = 2λ̂, and the error of λ̂ relative to λ̂ is at most

    share = defect / min(nβ⟨u·g⟩, 2|λ̂|)      (+ the inflation of the prior chain, for ``sgld``)

with equality where the heat sits in the stiff directions; where it sits in the prior's, λ̂ is off by
less. A component is *certified* when the share's interval of two standard errors lies within
±10 %, or the defect's within ±0.2 (λ̂ off by less than 0.1). Where that does not hold, a coupled run
at half the step (:mod:`lens_slt.sampling.half_step`) measures by how much λ̂ is off, and certifies
it, or quotes its bias.

The second alarm is independent of all this: a posterior never has a larger mean loss than its
prior, E_posterior[ΔL] ≤ E_prior[ΔL], because its mean loss falls as nβ rises from zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import independent_units, standard_error

CERTIFIED = "certified"
NOT_CERTIFIED = "not certified"
LARGEST_SHARE = 0.1  # of λ̂
LARGEST_DEFECT = 0.2  # absolute: λ̂ off by 0.1
ERRORS = 2.0  # standard errors either side
PRIOR_ERRORS = 4.0
TOO_FEW = "too few draws to tell"


def allowed_bias(share: Any, share_se: Any) -> Any:
    """The largest bias of λ̂ that a defect allows, as a share of λ̂, its errors included."""
    return np.abs(share) + ERRORS * share_se


@dataclass(frozen=True)
class Virial:
    """The coupled virial of one component.

    Attributes:
        virial: nβ⟨u·g⟩.
        defect, defect_se: with standard error.
        share: the largest bias of λ̂ that the defect allows, as a share of λ̂.
        share_se: its standard error.
    """

    virial: float
    defect: float
    defect_se: float
    share: float
    share_se: float

    @property
    def holds(self) -> bool:
        """Whether the defect is known to be small."""
        relative = allowed_bias(self.share, self.share_se) <= LARGEST_SHARE
        return relative or self.absolute + ERRORS * self.defect_se <= LARGEST_DEFECT

    @property
    def fails(self) -> bool:
        """Whether the defect is known to be large."""
        return self.exceeds(LARGEST_SHARE)

    def exceeds(self, share: float) -> bool:
        """Whether the defect is known to be above this share, and not small in absolute terms."""
        relative = abs(self.share) - ERRORS * self.share_se > share
        return relative and self.absolute - ERRORS * self.defect_se > LARGEST_DEFECT

    @property
    def hopeless(self) -> bool:
        """Whether there is a defect and nothing to compare it with."""
        large = self.absolute - ERRORS * self.defect_se > LARGEST_DEFECT
        return large and not np.isfinite(self.share)

    @property
    def absolute(self) -> float:
        """The defect, inflation of the prior chain included."""
        exact = np.isfinite(self.share) and self.share_se > 0
        return abs(self.share) * self.defect_se / self.share_se if exact else abs(self.defect)


def coupled(
    loss: FloatArray,
    virial: FloatArray,
    defect: FloatArray,
    used: BoolArray,
    settings: Settings,
    step_size: float,
) -> Virial:
    """The coupled virial from traces ``[chain, draw]`` of one component.

    Args:
        loss: paired losses, virial and defect: means over the steps of every draw.
        used: chains that count.
        settings, step_size: that they were sampled with.
    """
    units = independent_units(defect, used, settings.antithetic)
    if not len(units) or not np.isfinite(units).all():
        nan = float("nan")
        return Virial(nan, nan, nan, nan, nan)
    mean, error = float(units.mean()), standard_error(units)
    size, twice = float(virial[used].mean()), 2 * settings.n_beta * float(loss[used].mean())
    # Below the start nβ⟨u·g⟩ tells nothing. Where it is negative above it, only the defect counts.
    room = abs(twice) if twice < 0 else min(size, twice)
    if room <= 0:
        room = float("nan")
    inflation = 0.0
    if settings.n_beta:  # λ̂ of the prior alone is zero, whatever its variance
        inflation = settings.method.prior_inflation(settings.gamma, step_size)
    share = mean / room + inflation if mean or inflation else 0.0
    return Virial(size, mean, error, share, error / room if error else 0.0)


@dataclass(frozen=True)
class Bias:
    """By how much λ̂ is off, from a coupled run at half the step; shares of λ̂."""

    share: float
    se: float
    remaining: float  # the least share that the defect of the half-step run still allows


def certificate(
    virial: Virial | None, bias: Bias | None, prior: tuple[float, float], posterior: float,
    *, reason: str = "",
) -> tuple[str, str]:  # fmt: skip
    """One of *certified*, *biased by about x %*, *not certified*, and why.

    Args:
        virial: None where the sampler has none.
        bias: from a half-step run, where there was one.
        prior: mean paired loss of prior draws and its standard error; NaN if not measured.
        posterior: mean paired loss of the draws.
        reason: why the sampler has no certificate, or an exact sampler is not to be believed.
    """
    loss, error = prior
    if posterior > loss + PRIOR_ERRORS * error and posterior > loss * (1 + LARGEST_SHARE):
        return NOT_CERTIFIED, (
            f"the mean loss is {posterior:.3g} nats above the given weights', the prior's alone "
            f"{loss:.3g}: chains are too hot"
        )
    if reason:
        return NOT_CERTIFIED, reason
    if virial is None:
        return CERTIFIED, "no step-size bias on the whole token set"
    if virial.holds:
        return CERTIFIED, f"defect {virial.defect:.2g} ± {virial.defect_se:.1g}"
    if bias is not None and np.isfinite([bias.share, bias.se]).all():
        return _by_half_step(bias)
    if virial.fails:
        return NOT_CERTIFIED, f"the defect allows a bias of {100 * abs(virial.share):.0f} %"
    if not np.isfinite([virial.defect, virial.defect_se]).all():
        return NOT_CERTIFIED, "no finite defect"
    return NOT_CERTIFIED, TOO_FEW


def _by_half_step(bias: Bias) -> tuple[str, str]:
    low, high = bias.share - ERRORS * bias.se, bias.share + ERRORS * bias.se
    settled = not bias.remaining > LARGEST_SHARE
    if settled and max(-low, high) <= LARGEST_SHARE:
        return CERTIFIED, f"half the step changes λ̂ by {100 * bias.share:+.0f} %"
    if max(low, -high) > LARGEST_SHARE / 2:
        words = "about" if settled else "more than"
        return f"biased by {words} {100 * bias.share:.0f} %", "from a run at half the step"
    if not settled:
        return NOT_CERTIFIED, "a run at half the step has a defect too"
    return NOT_CERTIFIED, f"{TOO_FEW}, also at half the step"
