"""The course of one component: its step size, its burn-in, its draws, and when it is done.

Where ``lm`` chooses the step, a component starts at ε₀ = 0.8/γ with a preconditioner for its
stiffest directions (:mod:`lens_slt.sampling.metric`), and k = 1 step a draw. After 12, 50 and all
of its draws the certificate is read from the draws so far: where the defect is known to allow a
bias of λ̂ above 30 %, 10 % or 10 %, the step becomes ε₀/k with a larger k, k steps make one draw, so
that a draw is worth as much as before, and burn-in and draws start anew. So nothing that a smaller
step was chosen on enters an estimate.

A component is done when it has its draws, is certified, or known not to be, and has the wanted
standard error, or when it has the most draws that it may have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.sampling.certificate import LARGEST_SHARE, Virial, coupled
from lens_slt.sampling.settings import FLOOR, Settings
from lens_slt.sampling.spread import mean_with_error

EARLY_CHECKS = {12: 0.3, 50: LARGEST_SHARE}  # draws -> share of λ̂ above which the step shrinks
WANTED_SHARE = 0.05  # of λ̂, that a smaller step aims at
ORDER = 1.5  # the defect falls as ε (gradient noise) to ε² (discretisation)
LEAST_FACTOR, MOST_FACTOR = 2.0, 8.0  # by which a step shrinks at a time
MOST_STEPS_PER_DRAW = 32
CHEAP_STRIDE = 8  # steps of a draw above which a default run begins with fewer draws
MOST_STEPS = 4096  # that a default run goes on for, though it cannot tell yet
GROWTH = 2  # of the number of draws, where a component goes on


@dataclass(frozen=True)
class Course:
    """Where one component stands.

    Attributes:
        stride: steps of one draw.
        burn_in: draws' worth of steps before the first draw.
        target: draws after which the next decision is due.
        taken: steps since this course began.
        attempt: how often the step was made smaller.
        done: whether it has all its draws.
        fixed: whether the stride was given.
    """

    stride: int
    burn_in: int
    target: int
    taken: int = 0
    attempt: int = 0
    done: bool = False
    fixed: bool = False

    @property
    def draws(self) -> int:
        """Draws that are complete; negative in burn-in."""
        return self.taken // self.stride - self.burn_in

    @property
    def between(self) -> bool:
        """Whether a draw has just been completed."""
        return self.taken % self.stride == 0

    @property
    def burning_in(self) -> bool:
        return self.draws < 0

    @property
    def steps_left(self) -> int:
        """Until the next decision on the number of draws."""
        return (self.burn_in + self.target) * self.stride - self.taken

    def step_size(self, settings: Settings) -> float:
        """ε of this component."""
        return settings.epsilon / self.stride

    def stepped(self) -> Course:
        """After one more step."""
        return replace(self, taken=self.taken + 1)


def first_course(settings: Settings, name: str = "") -> Course:
    """How a component starts."""
    stride = settings.stride_of(name)
    return Course(
        stride or 1, settings.burn_in_steps, settings.least_draws, fixed=stride is not None
    )


def first_target(stride: int, settings: Settings) -> int:
    """Draws before the first decision on whether they are enough."""
    if settings.draws is not None or settings.target_se is not None:
        return settings.least_draws
    fewer = settings.least_draws * CHEAP_STRIDE // stride
    return min(settings.least_draws, max(max(EARLY_CHECKS), fewer))


def is_decision(course: Course, settings: Settings) -> bool:
    """Whether draws have to be looked at now."""
    if not course.between or course.done:
        return False
    early = settings.chooses_step and not course.fixed and course.draws in EARLY_CHECKS
    return early or course.draws >= course.target


def decide(
    course: Course, loss: FloatArray, virial: FloatArray, defect: FloatArray, settings: Settings
) -> Course:
    """The course from here on, given the traces ``[chain, draw]`` of one component so far."""
    finite = bool(finite_chains(loss).all())
    found = virial_so_far(course, loss, virial, defect, settings)
    return decided(course, found, *mean_so_far(loss, settings), settings, finite=finite)


def decided(
    course: Course,
    found: Virial | None,
    mean: float,
    error: float,
    settings: Settings,
    *,
    finite: bool = True,
) -> Course:
    """The course from here on.

    Args:
        found: the virial so far; None where the sampler has none.
        mean, error: of the paired loss; NaN if no chain is finite.
        finite: whether all chains are.
    """
    if settings.chooses_step and not course.fixed:
        stride = _next_stride(course, found, finite)
        if stride > course.stride:
            target = first_target(stride, settings)
            return Course(stride, course.burn_in, target, attempt=course.attempt + 1)
    default = settings.draws is None and settings.target_se is None
    smallest = course.stride == MOST_STEPS_PER_DRAW and course.draws == max(EARLY_CHECKS)
    if default and smallest and found is not None and found.fails:
        return replace(course, done=True)
    if course.draws < course.target:
        return course
    long = default and course.taken > MOST_STEPS / 2
    if course.draws >= settings.most_draws or long or math.isnan(mean):
        return replace(course, done=True)
    # More draws tell what errors hide; they do not take away what is known to be there.
    told = found is None or found.holds or found.fails
    if told and _is_precise(mean, error, settings):
        return replace(course, done=True)
    return replace(course, target=min(course.target * GROWTH, settings.most_draws))


def virial_so_far(
    course: Course, loss: FloatArray, virial: FloatArray, defect: FloatArray, settings: Settings
) -> Virial | None:
    """The coupled virial of one component's draws; None where the sampler has none."""
    if not np.isfinite(defect).any():
        return None
    used, epsilon = finite_chains(loss), course.step_size(settings)
    return coupled(loss, virial, defect, used, settings, epsilon)


def _next_stride(course: Course, found: Virial | None, finite: bool) -> int:
    """Steps of one draw that the certificate asks for."""
    most = MOST_STEPS_PER_DRAW
    if not finite or found is None or not np.isfinite(found.defect):
        factor = MOST_FACTOR if not finite else 1.0
    else:
        allowed = EARLY_CHECKS.get(course.draws, LARGEST_SHARE)
        size = abs(found.share)
        # More draws can tell what standard errors hide, not take away what is there.
        late = course.draws >= course.target and not found.holds
        undecided = late and size > max(WANTED_SHARE, found.share_se)
        if not (found.exceeds(allowed) or undecided or found.hopeless):
            return course.stride
        share = size if np.isfinite(size) else np.inf
        factor = float(np.clip((share / WANTED_SHARE) ** (1 / ORDER), LEAST_FACTOR, MOST_FACTOR))
    return min(most, math.ceil(course.stride * factor))


def mean_so_far(loss: FloatArray, settings: Settings) -> tuple[float, float]:
    """Mean paired loss of finite chains, and its standard error; NaN if there are none."""
    return mean_with_error(loss, loss, finite_chains(loss), settings)[:2]


def finite_chains(loss: FloatArray) -> BoolArray:
    """Chains that have not diverged so far."""
    return np.asarray(np.isfinite(loss).all(1))


def _is_precise(mean: float, error: float, settings: Settings) -> bool:
    """Whether the standard error of λ̂ is as small as wanted."""
    return error <= settings.precision * abs(mean) or settings.n_beta * error <= FLOOR
