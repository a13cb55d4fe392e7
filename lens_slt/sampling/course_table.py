"""What was chosen for every component and why, for the root of a run's result."""

from __future__ import annotations

from typing import Any

import torch

from lens_slt.sampling.course import Course
from lens_slt.sampling.driver import Outcome
from lens_slt.sampling.settings import Settings
from lens_slt.statistics import error_of_mean


def course_table(outcome: Outcome, settings: Settings) -> dict[str, list[Any]]:
    """Columns: ``step_size``, ``steps_per_draw``, ``n_draws``, ``curvature``, ``prior_loss`` ±
    ``prior_loss_se``, and ``choice``, the reason in a line."""
    curvature = torch.cat(outcome.pilot.curvature).double().cpu().numpy()
    prior = torch.cat(outcome.pilot.prior).double().cpu().numpy()
    table: dict[str, list[Any]] = {
        "step_size": [course.step_size(settings) for course in outcome.courses],
        "steps_per_draw": [course.stride for course in outcome.courses],
        "n_draws": [course.draws for course in outcome.courses],
        "curvature": curvature.tolist(),
        "prior_loss": prior.mean(1).tolist(),
        "prior_loss_se": error_of_mean(prior, 1).tolist(),
    }
    table["choice"] = [
        _words(settings, course, float(h))
        for course, h in zip(outcome.courses, curvature, strict=True)
    ]
    return table


def _words(settings: Settings, course: Course, curvature: float) -> str:
    if settings.method.EXACT:  # whose draws no ε biases
        return ""
    if settings.step_size is not None:
        return f"ε {settings.step_size:.3g} as given"
    if not settings.chooses_step:
        return f"ε {settings.epsilon:.3g}, the published value"
    stride = course.stride
    words = f"ε {settings.epsilon / stride:.3g} = 0.8/γ"
    if stride > 1:
        words += f"/{stride}, {stride} steps a draw"
    if course.fixed:
        words += " as given"
    elif stride > 1:
        words += ": larger steps had a defect"
    if curvature > settings.gamma:
        words += f"; stiffest direction nβ·h {curvature:.0f} preconditioned"
    if course.draws > settings.least_draws:
        words += f"; {course.draws} draws until certified and precise"
    return words
