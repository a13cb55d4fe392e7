"""How many steps and draws every component will take, from the first draws of real courses.

Where a run is quick, its courses are really begun, as :func:`~lens_slt.sampling.driver.run_chains`
does, with the curvature that is measured before the first step. Courses that have draws enough are
continued on paper: the standard errors of λ̂ and of the defect fall as 1/√draws, and are judged by
the rules of :mod:`lens_slt.sampling.course`.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

from lens_slt.sampling.certificate import Virial
from lens_slt.sampling.course import (
    EARLY_CHECKS,
    Course,
    decided,
    finite_chains,
    first_course,
    mean_so_far,
    virial_so_far,
)
from lens_slt.sampling.driver import SUMMED, Book, run_chains
from lens_slt.sampling.half_step import half_step_draws, is_short, rings
from lens_slt.sampling.metric import LANCZOS_STEPS, RANK
from lens_slt.sampling.pilot import CURVATURE_BATCHES, pilot
from lens_slt.sampling.plan import StepCosts, Stretch
from lens_slt.sampling.prepare import PreparedRun
from lens_slt.sampling.result import trace_specs
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import independent_units
from lens_slt.sampling.store import DrawStore, open_store
from lens_slt.sampling.timed_target import Enough, TimedTarget
from lens_slt.sampling.timing import TRIAL_SECONDS, StepTimes, state_bytes

PATIENCE = 10.0  # seconds within which the first draws must come
MOST_COURSE_STEPS = 2000
FIRST_DRAWS = min(EARLY_CHECKS)


@dataclass(frozen=True)
class Foreseen:
    """What the components of a run will do.

    Attributes:
        courses: as they end, one per component in the order of the arrays.
        stretches: the steps that they take.
        half: components whose bias will be measured by a run at half the step.
        costs: of steps and draws.
        pilot: seconds for what is measured before the first step.
        vector_bytes: of the directions that preconditioners hold.
        untried_bytes: memory that finding them takes, if that has not been tried.
        tried: whether courses were really begun.
    """

    courses: tuple[Course, ...]
    stretches: tuple[Stretch, ...]
    half: tuple[int, ...]
    costs: StepCosts
    pilot: float = 0.0
    vector_bytes: int = 0
    untried_bytes: int = 0
    tried: bool = True

    @property
    def half_seconds(self) -> float:
        """Of the runs at half the step: three steps for one, on two minibatches."""
        total = 0.0
        for place in self.half:
            course = self.courses[place]
            steps = (course.burn_in + half_step_draws(course)) * course.stride
            total += steps * (2 * self.costs.fixed + 3 * float(self.costs.each[place]))
        return total


def foresee(job: PreparedRun, times: StepTimes, patience: float = PATIENCE) -> Foreseen:
    """What a run that begins will do; its first draws may take ``patience`` seconds."""
    s, costs = job.settings, times.costs
    curvature = _curvature_seconds(job, costs)
    first_draws = (s.burn_in_steps + FIRST_DRAWS) * costs.step
    quick = times.pilot + curvature + first_draws <= patience
    if quick and (s.has_certificate or s.least_draws < s.most_draws):
        return _begun(job, times, patience)
    courses = tuple(first_course(s, name) for name in job.names)
    ended = tuple(replace(c, taken=c.steps_left, done=True) for c in courses)
    stretches = tuple(_rest(i, course, 0) for i, course in enumerate(courses))
    found = Foreseen(
        ended, stretches, _checked(s, ended), costs, times.pilot + curvature, tried=False
    )  # fmt: skip
    if not curvature:
        return found
    if found.pilot > patience:
        return replace(found, vector_bytes=_vector_bytes(job), untried_bytes=_lanczos_bytes(job))
    began = time.perf_counter()
    measured = pilot(job.target, s)
    seconds = time.perf_counter() - began
    return replace(found, pilot=seconds, vector_bytes=state_bytes(measured.tensors()))


def continued(job: PreparedRun, times: StepTimes, about: dict[str, Any]) -> Foreseen:
    """What is left of a run whose state says ``about`` it."""
    courses = tuple(Course(**course) for course in about["courses"])
    left = tuple(_rest(i, course, about["step"]) for i, course in enumerate(courses))
    ended = tuple(
        replace(c, taken=c.taken + (0 if c.done else c.steps_left), done=True) for c in courses
    )
    return Foreseen(
        ended, left, _checked(job.settings, ended), times.costs, vector_bytes=_vector_bytes(job)
    )


class _Diary:
    """Stretches of real courses, as they begin anew."""

    def __init__(self, courses: list[Course]) -> None:
        self.began = [0] * len(courses)
        self.courses = list(courses)
        self.stretches: list[Stretch] = []

    def note(self, book: Book) -> None:
        """What has changed in the last step."""
        for place, (before, now) in enumerate(zip(self.courses, book.courses, strict=True)):
            if now.attempt > before.attempt or (now.done and not before.done):
                self.close(place, before, book.step)
            self.courses[place] = now

    def close(self, place: int, course: Course, last: int) -> None:
        """A course ends here; another may begin."""
        began = self.began[place]
        self.stretches.append(Stretch(place, began, began, last, course.stride, course.burn_in))
        self.began[place] = last


def _begun(job: PreparedRun, times: StepTimes, patience: float) -> Foreseen:
    """Courses that are really begun, and then continued on paper."""
    s = job.settings.but(full_loss=False)
    n = len(job.names)
    timed, diary = TimedTarget(job.target), _Diary([first_course(s, name) for name in job.names])
    store = open_store(None, trace_specs(n, s), {})

    def on_step(book: Book) -> None:
        timed.end_step()
        diary.note(book)
        told = all(c.draws >= FIRST_DRAWS or c.done for c in book.courses)
        spent = sum(timed.spent(timed.kind))
        long = spent > TRIAL_SECONDS and (told or spent > patience)
        if long or book.step >= MOST_COURSE_STEPS:
            raise Enough

    timed.start()
    with contextlib.suppress(Enough):
        run_chains(timed, s, store, on_step)
    seen = _seen(diary.courses, store, s)
    courses = [
        course if course.done else _on_paper(course, place, diary, seen.get(place), s)
        for place, course in enumerate(diary.courses)
    ]
    half = set(_checked(s, tuple(courses)))
    for place, one in seen.items():
        if courses[place].attempt == one.course.attempt and _has_half_steps(s, one.course):
            found = one.after(courses[place].draws)[0]
            half |= {place} if found is not None and rings(found, courses[place], s) else set()
    steps, _ = timed.costs(n)  # with preconditioners
    costs = replace(times.costs, fixed=steps.fixed, each=steps.each)
    return Foreseen(
        tuple(courses), tuple(diary.stretches), tuple(sorted(half)), costs, timed.pilot,
        _vector_bytes(job),
    )  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """What the draws of a component say so far."""

    course: Course
    virial: Virial | None
    mean: float
    error: float

    def after(self, draws: int) -> tuple[Virial | None, float]:
        """The virial and the error of the mean after so many draws.

        A defect within its error of zero is taken for zero: most are small.
        """
        shrunk = (self.course.draws / max(draws, self.course.draws)) ** 0.5
        found = self.virial
        if found is not None:
            found = replace(
                found,
                defect=_towards_zero(found.defect, found.defect_se),
                defect_se=found.defect_se * shrunk,
                share=_towards_zero(found.share, found.share_se),
                share_se=found.share_se * shrunk,
            )
        return found, self.error * shrunk


def _seen(courses: list[Course], store: DrawStore, s: Settings) -> dict[int, _Seen]:
    """Of every component with draws enough.

    Few draws do not tell how far they are correlated, so that this is what their errors have in
    common: the median ratio of them to those of independent draws.
    """
    found, ratios = {}, {}
    for place, course in enumerate(courses):
        if course.draws < min(FIRST_DRAWS, s.least_draws):
            continue
        loss, virial, defect = (store.read(name, place, course.draws) for name in SUMMED)
        mean, error = mean_so_far(loss, s)
        found[place] = _Seen(course, virial_so_far(course, loss, virial, defect, s), mean, error)
        units = independent_units(loss, finite_chains(loss), s.antithetic)
        independent = float(units.std()) / max(1, units.size) ** 0.5
        if independent > 0 and math.isfinite(error):
            ratios[place] = error / independent
    if not ratios:
        return found
    typical = statistics.median(ratios.values())
    return {
        place: replace(one, error=one.error * typical / ratios.get(place, typical))
        for place, one in found.items()
    }


def _on_paper(course: Course, place: int, diary: _Diary, seen: _Seen | None, s: Settings) -> Course:
    """The course of one component to its end; its stretches are added to the diary.

    One that begins anew is taken to need no more than its first draws.
    """
    while not course.done:
        adapts = s.chooses_step and not course.fixed
        early = [n for n in EARLY_CHECKS if adapts and course.draws < n]
        check = min([*early, course.target])
        here = replace(course, taken=(course.burn_in + check) * course.stride)
        course = replace(here, done=True)
        if seen is not None and seen.course.attempt == here.attempt:
            found, error = seen.after(check)
            course = decided(here, found, seen.mean, error, s)
        elif check < here.target:
            course = here
        if course.attempt > here.attempt:
            diary.close(place, here, diary.began[place] + here.taken)
    diary.close(place, course, diary.began[place] + course.taken)
    return course


def _towards_zero(value: float, by: float) -> float:
    return math.copysign(max(0.0, abs(value) - by), value)


def _rest(place: int, course: Course, step: int) -> Stretch:
    """What a course has before it at a step of the run."""
    last = step if course.done else step + course.steps_left
    began = step - course.taken
    return Stretch(place, began, step, last, course.stride, course.burn_in)


def _has_half_steps(s: Settings, course: Course) -> bool:
    """Whether a component's bias may be measured by a run at half the step."""
    return s.has_certificate and is_short(course)


def _checked(s: Settings, courses: tuple[Course, ...]) -> tuple[int, ...]:
    """Components whose bias is measured because it was asked for."""
    return tuple(i for i, c in enumerate(courses) if s.check_step and _has_half_steps(s, c))


def _curvature_seconds(job: PreparedRun, costs: StepCosts) -> float:
    """To measure curvature, if it is measured: gradients of one row instead of every chain."""
    if not job.settings.measures_curvature:
        return 0.0
    gradients = (LANCZOS_STEPS + 1) * float(costs.each.sum()) / job.settings.chains
    return CURVATURE_BATCHES * (costs.fixed * len(job.target.groups) + gradients)


def _vector_bytes(job: PreparedRun) -> int:
    """Size of the vectors of all preconditioners."""
    if not job.settings.measures_curvature:
        return 0
    return RANK * sum(members.star.nbytes for members in job.target.groups)


def _lanczos_bytes(job: PreparedRun) -> int:
    """Memory for the vectors that they are found with."""
    if not job.settings.measures_curvature:
        return 0
    return _vector_bytes(job) + LANCZOS_STEPS * max(m.star.nbytes for m in job.target.groups)
