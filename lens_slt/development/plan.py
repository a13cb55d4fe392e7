"""Which checkpoints and how many draws fit a budget of time, and how precise that is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lens_slt.arguments import boolean, integer, number, typed
from lens_slt.development.cells import drawn_of
from lens_slt.development.sweep import FINER
from lens_slt.models.checkpoints import Checkpoints
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.sampling.presets import preset
from lens_slt.sampling.sample import sample
from lens_slt.sampling.settings import Settings
from lens_slt.text import duration
from lens_slt.torch_state import plain_torch, with_threads

TRIED_DRAWS = 24  # of the last checkpoint, from which the rest is foreseen
FEWEST_DRAWS, MOST_DRAWS = 40, 400
FEWEST_CHECKPOINTS = 20  # that stages are read off
READING = 1.25  # of the time for draws, with what is read off them
LOADING = 15.0  # seconds: a trial that took less is timed again, without loading libraries


@dataclass(frozen=True)
class DevelopmentPlan:
    """What a sweep will do.

    Attributes:
        checkpoints: those that are taken.
        settings: with the number of draws.
        seconds: of the whole sweep on this machine as it is now.
        seconds_per_checkpoint: from one that is done to the next, jobs at a time counted in.
        relative_se: the median standard error of λ̂ to expect, relative to λ̂.
        budget: seconds that were to be kept to.

    Example:
        >>> import lens_slt as ls
        >>> run, short = ls.checkpoints("attn-2l"), ls.Settings(draws=40)
        >>> times = dict(seconds=90.0, seconds_per_checkpoint=3.1, budget=120.0)
        >>> ls.DevelopmentPlan(run, short, relative_se=0.03, **times).fits
        True
    """

    checkpoints: Checkpoints
    settings: Settings
    seconds: float
    seconds_per_checkpoint: float
    relative_se: float
    budget: float

    @property
    def fits(self) -> bool:
        return self.seconds <= self.budget

    def __str__(self) -> str:
        precision = "the error of λ̂ cannot be foreseen"
        if np.isfinite(self.relative_se):
            precision = (
                f"λ̂ within about {100 * self.relative_se:.1f} % (one standard error; differences "
                "are sharper)"
            )
        words = (
            f"{len(self.checkpoints)} checkpoints ({self.checkpoints.unit}s "
            f"{self.checkpoints.steps[0]} to {self.checkpoints.steps[-1]}) × "
            f"{self.settings.draws} draws: about {duration(self.seconds)}, "
            f"one every {duration(self.seconds_per_checkpoint)}; {precision}"
        )
        if self.fits:
            return words
        return f"{words}; the least there is, more than {duration(self.budget)}"


@typed
@plain_torch
def plan_development(
    checkpoints: Checkpoints,
    tokens: Any,
    components: str | Sequence[str] = "heads",
    *,
    minutes: float = 15.0,
    every_checkpoint: bool = False,
    settings: Settings | str = "default",
    probes: Mapping[str, Any] | None = None,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    workers: int = 1,
    device: torch.device | str | None = None,
) -> DevelopmentPlan:
    """Choose checkpoints and draws of :func:`lens_slt.develop` so that they take some minutes.

    The last checkpoint is sampled with 24 draws, whose time and errors are continued to all others:
    these may need smaller steps, or less. With little time draws go down to 40, then checkpoints to
    20, evenly chosen among those that there are; a plan that still does not fit says so.

    Args:
        checkpoints, tokens, components, settings, probes, weights, mask, pad_id, device: as for
            :func:`lens_slt.develop`; ``settings.draws`` is kept where it is given.
        minutes: that the sweep may take.
        every_checkpoint: take all there are, however long that is; only draws go down.
        workers: jobs at a time.

    Example:
        >>> import lens_slt as ls
        >>> tokens = ls.load_tokens("mix", n_sequences=32, length=32)
        >>> plan = ls.plan_development(ls.checkpoints("attn-2l"), tokens, "L1H2", minutes=2)
        >>> plan.fits
        True
    """
    number("minutes", minutes, above=0)
    boolean("every_checkpoint", every_checkpoint)
    integer("workers", workers, at_least=1)
    settings = preset(settings) if isinstance(settings, str) else settings
    tried = settings.but(draws=TRIED_DRAWS, thin=min(settings.thin, TRIED_DRAWS))
    model = checkpoints.load(checkpoints.steps[-1], device)
    adapts = tried.chooses_step and tried.steps_per_draw is None
    tried = tried.but(steps_per_draw=1) if adapts else tried

    def tried_once() -> tuple[Any, float]:
        began = time.perf_counter()
        with with_threads(1):  # as every job of a sweep
            draws = sample(
                model, tokens, components, settings=tried, probes=probes, weights=weights,
                mask=mask, pad_id=pad_id, device=device, progress=False,
            )  # fmt: skip
        return draws, time.perf_counter() - began

    for _ in range(FINER):
        draws, spent = tried_once()
        found = drawn_of(draws)
        coarse = any(one.is_coarse(abs(one.llc)) for one in found.values())
        if not adapts or not coarse:
            break
        strides = {
            name: one.finer(abs(one.llc)) if one.is_coarse(abs(one.llc)) else one.stride
            for name, one in found.items()
        }
        tried = tried.but(steps_per_draw=strides)
    if spent < LOADING:
        draws, spent = tried_once()
    llc = refined_llc(draws.drop_nodes("probes", errors="ignore"))
    relative = float(np.nanmedian(np.abs(llc["se"] / llc["llc"])))
    per_draw = spent / (TRIED_DRAWS + tried.burn_in_steps)

    def seconds(n: int, n_draws: int) -> float:
        return READING * n * per_draw * (n_draws + tried.burn_in_steps) / workers

    fewest = len(checkpoints) if every_checkpoint else FEWEST_CHECKPOINTS
    n, n_draws = _fitting(checkpoints, settings, seconds, 60 * minutes, fewest)
    taken = checkpoints.at(_evenly(checkpoints.steps, n))
    return DevelopmentPlan(
        taken, settings.but(draws=n_draws), seconds(n, n_draws), seconds(1, n_draws),
        relative * (TRIED_DRAWS / n_draws) ** 0.5, 60 * minutes,
    )  # fmt: skip


def _fitting(
    checkpoints: Checkpoints,
    settings: Settings,
    seconds: Any,
    budget: float,
    fewest: int = FEWEST_CHECKPOINTS,
) -> tuple[int, int]:
    """Numbers of checkpoints and draws."""
    n = len(checkpoints)
    if settings.draws is None:
        for n_draws in range(MOST_DRAWS, FEWEST_DRAWS - 1, -10):
            if seconds(n, n_draws) <= budget:
                return n, n_draws
    n_draws = settings.draws or FEWEST_DRAWS
    fits = (k for k in range(n, fewest, -1) if seconds(k, n_draws) <= budget)
    return next(fits, min(n, fewest)), n_draws


def _evenly(steps: Sequence[int], n: int) -> list[int]:
    """So many of the steps, the first and the last among them."""
    places = np.unique(np.linspace(0, len(steps) - 1, n).round().astype(int))
    return [steps[i] for i in places]
