"""By how much λ̂ is off: two chains driven by the same noise, one with half the step of the other.

The noise of two half steps makes that of the whole one, so that the chains stay close to each
other, and their losses are compared on the same minibatches: the difference of their means is known
far better than either mean. Each half step has a minibatch of its own, so that the heat of gradient
noise is halved as well. With the bias proportional to ε^p, λ̂(ε) − λ̂(ε/2) is 1 − 2^−p of it; p is
between 1 (gradient noise) and 2 (discretisation of ``lm``) and is read off the two defects.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lens_slt.sampling.certificate import ERRORS, Bias, Virial, coupled
from lens_slt.sampling.course import CHEAP_STRIDE, MOST_STEPS_PER_DRAW, Course, virial_so_far
from lens_slt.sampling.driver import SUMMED, Outcome, PartLosses, chains_of
from lens_slt.sampling.members import Part, Target
from lens_slt.sampling.randomness import chain_noise
from lens_slt.sampling.sampler import Chains
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import independent_units, standard_error
from lens_slt.sampling.store import DrawStore

DRAWS = 50  # the difference is known to a per cent then
LEAST_OF_STEPS = 20  # where a draw takes many steps
MOST_STEPS = 4000  # of the whole steps; more would not be a short run
COLUMNS = ("bias", "bias_se", "bias_remaining")


def half_steps(
    target: Target, settings: Settings, outcome: Outcome, store: DrawStore
) -> dict[str, list[float]]:
    """Columns of the root: the bias of λ̂ as a share of it where it was measured, else NaN."""
    n = len(outcome.courses)
    columns = {name: [float("nan")] * n for name in COLUMNS}
    if not settings.has_certificate:
        return columns
    place = 0
    for g, members in enumerate(target.groups):
        for i in range(len(members.names)):
            short = is_short(outcome.courses[place])
            if short and (settings.check_step or _rings(settings, outcome, store, place)):
                found = measure_bias(target, settings, outcome, (g, (i,)), place)
                values = found.share, found.se, found.remaining
                for name, value in zip(COLUMNS, values, strict=True):
                    columns[name][place] = value
            place += 1
    return columns


def is_short(course: Course) -> bool:
    """Whether a run at half the step would be a short one."""
    return (course.burn_in + half_step_draws(course)) * course.stride <= MOST_STEPS


def half_step_draws(course: Course) -> int:
    """Draws of the coupled run."""
    return max(LEAST_OF_STEPS, min(DRAWS, DRAWS * CHEAP_STRIDE // course.stride))


def measure_bias(
    target: Target, settings: Settings, outcome: Outcome, part: Part, place: int
) -> Bias:
    """The bias of one component's λ̂ at the step that its run took."""
    course = outcome.courses[place]
    method, epsilon = settings.method, course.step_size(settings)
    star = target.groups[part[0]].star[list(part[1])]
    whole = _chains(target, settings, outcome, part, epsilon, whole=True)
    half = _chains(target, settings, outcome, part, epsilon / 2, whole=False)
    coarse, fine = method.init(star, whole, 0), method.init(star, half, 0)
    first, draws = course.burn_in * course.stride, half_step_draws(course)
    rows: list[Tensor] = []
    for step in range(first + draws * course.stride):
        early, late = (
            PartLosses(part, target.minibatch(f"half {2 * step + i}", [part])) for i in (0, 1)
        )
        coarse, seen = method.step(coarse, early, whole, step)
        fine, finer = method.step(fine, early, half, 2 * step)
        fine, _ = method.step(fine, late, half, 2 * step + 1)
        if step >= first:
            assert seen.virial is not None and finer.virial is not None
            assert seen.defect is not None and finer.defect is not None
            row = (seen.loss, finer.loss, finer.virial, finer.defect, seen.defect)
            rows.append(torch.stack([value[0] for value in row]).double().cpu())
    traces = torch.stack(rows, dim=-1).unflatten(-1, (draws, course.stride)).mean(-1).numpy()
    return _bias(traces, settings, epsilon)


def _bias(traces: np.ndarray, settings: Settings, epsilon: float) -> Bias:
    """From ``[quantity, chain, draw]``: losses at ε and ε/2, the latter's virial, both defects."""
    loss, finer_loss, finer_virial, finer_defect, defect = traces
    used = np.isfinite(traces).all((0, 2))
    if not used.any():
        return Bias(float("nan"), float("nan"), float("nan"))
    finer = coupled(finer_loss, finer_virial, finer_defect, used, settings, epsilon / 2)
    apart = independent_units(loss - finer_loss, used, settings.antithetic)
    change, error = float(apart.mean()), standard_error(apart)
    order = 1.0  # errs towards too large a bias
    if finer.defect > 3 * finer.defect_se:
        order = float(np.clip(np.log2(defect[used].mean() / finer.defect), 1, 2))
    factor = 1 / (1 - 2**-order)
    here = float(loss[used].mean())
    right = max(abs(here - factor * change), abs(here) / 10)  # beyond tenfold is not told apart
    remaining = max(0.0, abs(finer.share) - ERRORS * finer.share_se)
    return Bias(factor * change / right, factor * error / right, remaining)


def _chains(
    target: Target, settings: Settings, outcome: Outcome, part: Part, epsilon: float, *, whole: bool
) -> Chains:
    """Chains whose noise at a whole step is made of that of its two halves."""
    members = target.groups[part[0]]
    names = [members.names[i] for i in part[1]]

    def normals(like: Tensor, key: int | str) -> Tensor:
        return chain_noise(like, names, settings.seed, f"half {key}", settings.antithetic)

    def noise(like: Tensor, key: int | str) -> Tensor:
        if isinstance(key, str) or not whole:
            return normals(like, key)
        return (normals(like, 2 * key) + normals(like, 2 * key + 1)) / 2**0.5

    return chains_of(
        members, settings, list(part[1]), outcome.pilot.metrics[part[0]], [epsilon], [False], noise
    )


def _rings(settings: Settings, outcome: Outcome, store: DrawStore, place: int) -> bool:
    """Whether the defect is large, or a default run ended without telling."""
    course = outcome.courses[place]
    loss, virial, defect = (store.read(name, place, course.draws) for name in SUMMED)
    found = virial_so_far(course, loss, virial, defect, settings)
    return found is not None and rings(found, course, settings)


def rings(found: Virial, course: Course, settings: Settings) -> bool:
    """Whether a component's bias has to be measured, with this virial at its end."""
    if course.fixed or not np.isfinite(found.defect):  # half the step would tell as little
        return False
    if found.fails:
        return course.stride < MOST_STEPS_PER_DRAW  # else it is lost anyway
    return settings.draws is None and settings.target_se is None and not found.holds
