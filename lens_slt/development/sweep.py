"""All checkpoints and components of a sweep as jobs, at one step size for every component."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lens_slt.development.cells import FINISHED, WEIGHTS, Drawn, ReadCell, SampleCell, SweepTask
from lens_slt.development.folder import step_folder
from lens_slt.json_files import read_json
from lens_slt.models.checkpoints import Checkpoints
from lens_slt.sampling.course import MOST_STEPS_PER_DRAW
from lens_slt.sampling.folder import SamplingWarning
from lens_slt.sampling.jobs import run_jobs

STRIDES = "steps-per-draw.json"
PILOTS = (0.33, 0.67, 1.0)  # places in the run at which step sizes are chosen first
FINER = 3  # how often steps are made smaller, because of one checkpoint


@dataclass
class Sweep:
    """Every checkpoint and component, at one step size for each component.

    Attributes:
        groups: components that are sampled by one job.
        strides: steps of one draw, by component; empty where settings fix the step size.
        drawn: folders of draws at these strides, by step and component.
        scale: the largest |λ̂| of every component so far.
    """

    checkpoints: Checkpoints
    task: SweepTask
    groups: tuple[tuple[str, ...], ...]
    components: tuple[str, ...]
    folder: Path
    strides: dict[str, int] = field(default_factory=dict)
    drawn: dict[tuple[int, str], Path] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)

    def run(self, parallel: Any, keep_draws: bool, progress: bool) -> None:
        """Sample all, as finely as the worst checkpoint of a component needs, and read it off."""
        self._drop_changed()
        file = self.folder / STRIDES
        if file.exists():
            self.strides = read_json(file)
        elif self.task.settings.chooses_step and self.task.settings.steps_per_draw is None:
            self._set_strides({name: 1 for group in self.groups for name in group})
        steps = self.checkpoints.steps
        some = {steps[round(share * (len(steps) - 1))] for share in PILOTS}
        self._settle(some, parallel, "step sizes", progress)
        self._settle(set(steps), parallel, "checkpoints", progress)
        jobs = [self._reading(step, keep_draws) for step in self._left()]
        run_jobs(jobs, parallel, label="results", progress=progress)

    def _drop_changed(self) -> None:
        """Begin checkpoints anew whose weights are not those that were sampled here."""
        changed = []
        for step in self.checkpoints.steps:
            place = step_folder(self.folder, step)
            there = place / WEIGHTS
            if there.exists() and read_json(there) != self.checkpoints.hash(step):
                shutil.rmtree(place)
                changed.append(str(step))
        if changed:
            warnings.warn(
                f"checkpoints {', '.join(changed)} have other weights than those that were sampled "
                f"in {str(self.folder)!r}: they are sampled again",
                SamplingWarning,
                stacklevel=2,
            )

    def _settle(self, steps: set[int], parallel: Any, label: str, progress: bool) -> None:
        """Sample these checkpoints, again where a step was too large for a component's curve."""
        for _ in range(FINER):
            finer = self._sample(steps, parallel, label, progress)
            if not finer:
                return
            self._set_strides(finer)
        self._sample(steps, parallel, label, progress)

    def _set_strides(self, strides: Mapping[str, int]) -> None:
        self.strides |= strides
        (self.folder / STRIDES).write_text(json.dumps(self.strides), "utf-8")
        for place in [key for key in self.drawn if key[1] in strides]:
            del self.drawn[place]

    def _sample(self, steps: set[int], parallel: Any, label: str, progress: bool) -> dict[str, int]:
        """Draw what is missing; finer strides of components whose step was too large."""
        jobs = []
        for step in self._left():
            for group in self.groups if step in steps else ():
                names = tuple(name for name in group if (step, name) not in self.drawn)
                if names:
                    strides = {name: self.strides[name] for name in names if name in self.strides}
                    jobs.append(self._cell(step, names, strides or None))
        outcomes = run_jobs(jobs, parallel, label=label, progress=progress)
        found: list[tuple[str, Drawn]] = []
        for job, outcome in zip(jobs, outcomes, strict=True):
            found += outcome.value.items()
            self.drawn |= {(job.step, name): job.folder for name in outcome.value}
        for name, one in found:
            if np.isfinite(one.llc):
                self.scale[name] = max(abs(one.llc), self.scale.get(name, 0.0))
        finer: dict[str, int] = {}
        for name, one in found:
            scale = self.scale.get(name, 0.0)
            able = name in self.strides and one.stride < MOST_STEPS_PER_DRAW
            if able and one.is_coarse(scale):
                finer[name] = max(one.finer(scale), finer.get(name, 1))
        return finer

    def _left(self) -> list[int]:
        """Steps that are not finished at these strides."""
        return [step for step in self.checkpoints.steps if not self._is_finished(step)]

    def _is_finished(self, step: int) -> bool:
        file = step_folder(self.folder, step) / FINISHED
        return file.exists() and read_json(file) == self._mark(step)

    def _mark(self, step: int) -> dict[str, Any]:
        """What the results of a checkpoint depend on, beside the sweep's description."""
        return {"model": self.checkpoints.source(step).label, "strides": self.strides}

    def _cell(
        self, step: int, names: tuple[str, ...], strides: dict[str, int] | None
    ) -> SampleCell:
        key = hashlib.sha256(json.dumps([names, strides]).encode()).hexdigest()[:12]
        place = step_folder(self.folder, step) / f"draws-{key}"
        return SampleCell(step, self.checkpoints.source(step), self.task, names, strides, place)

    def _reading(self, step: int, keep_draws: bool) -> ReadCell:
        parts: dict[Path, list[str]] = {}
        for name in self.components:
            parts.setdefault(self.drawn[step, name], []).append(name)
        return ReadCell(
            step, self.checkpoints.source(step), self.task,
            tuple((path, tuple(names)) for path, names in parts.items()), self.components,
            self.strides, self._mark(step), step_folder(self.folder, step), keep_draws,
        )  # fmt: skip
