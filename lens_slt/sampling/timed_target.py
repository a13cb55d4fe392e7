"""A run's target with a clock: what the steps of a short run take, component by component."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lens_slt.arrays import FloatArray
from lens_slt.sampling.members import Evaluate, Members, Part
from lens_slt.sampling.plan import StepCosts
from lens_slt.sampling.target import TransformerTarget

PLAIN, PROBES, FULL = "plain", "probes", "full"  # kinds of steps


class Enough(Exception):
    """The run has lasted long enough."""


@dataclass
class TimedTarget:
    """The target of a run. Probes and full losses are evaluated in steps of that kind only.

    The time of a group of components is that from its losses to the next group's: what a sampler
    and the driver do for it is in it, and a device has finished.
    """

    target: TransformerTarget
    kinds: tuple[str, ...] = (PLAIN,)
    kind: str = PLAIN
    pilot: float = 0.0  # seconds before the first step
    steps: list[Timed] = field(default_factory=list)
    last: float = 0.0  # when something ended
    _marks: list[tuple[float, Part]] = field(default_factory=list)
    _began: float | None = None  # the step that is running

    @property
    def groups(self) -> list[Members]:
        return self.target.groups

    def minibatch(self, key: int | str, parts: list[Part]) -> Evaluate:
        if isinstance(key, str):  # of the pilot
            return self.target.minibatch(key, parts)
        self._begin()
        return self._marked(self.target.minibatch(key, parts))

    def everything(self) -> Evaluate:
        if self._began is None:  # the losses of an exact sampler
            self._begin()
            return self._marked(self.target.everything())
        return self.target.everything() if self.kind == FULL else _nothing

    def probe_values(self, part: Part, u: Tensor) -> dict[str, Tensor]:
        return self.target.probe_values(part, u) if self.kind == PROBES else {}

    def start(self) -> None:
        """Start the clock, before the pilot."""
        self.last = time.perf_counter()

    def since_last(self) -> float:
        """Seconds since the clock started or the last step ended."""
        return time.perf_counter() - self.last

    def end_step(self) -> None:
        """Note the times of the step that has ended."""
        assert self._began is not None
        self.last = time.perf_counter()
        times = [self._began, *(at for at, _ in self._marks), self.last]
        lengths = np.diff(times)
        parts = [part for _, part in self._marks]
        self.steps.append(Timed(self.kind, float(lengths[0]), list(lengths[1:]), parts))
        self._marks, self._began = [], None

    def spent(self, kind: str) -> list[float]:
        """Seconds of the steps of one kind."""
        return [step.seconds for step in self.steps if step.kind == kind]

    def costs(self, n_components: int) -> tuple[StepCosts, float]:
        """Typical costs of every component, and what the first step of each kind took longer."""
        first_place = np.cumsum([0, *(len(members.names) for members in self.groups)])
        typical, extra = {}, 0.0
        for kind in self.kinds:
            rows = [
                step.by_component(n_components, first_place)
                for step in self.steps
                if step.kind == kind
            ]
            typical[kind] = np.nanmedian(rows[1:] or rows, axis=0)
            extra += max(0.0, self.spent(kind)[0] - float(typical[kind].sum()))
        plain = typical[PLAIN]
        more = {
            kind: np.maximum(0, typical[kind] - plain)[1:] if kind in typical else 0 * plain[1:]
            for kind in (PROBES, FULL)
        }
        return StepCosts(float(plain[0]), plain[1:], more[PROBES], more[FULL]), extra

    def _begin(self) -> None:
        self._began = time.perf_counter()
        if not self.steps:
            self.pilot = self._began - self.last

    def _marked(self, evaluate: Evaluate) -> Evaluate:
        def marked(part: Part, u: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
            self._marks.append((time.perf_counter(), part))
            return evaluate(part, u, gradient=gradient)

        return marked


@dataclass(frozen=True)
class Timed:
    """Seconds of one step: before the first losses, then of every part."""

    kind: str
    fixed: float
    lengths: list[float]
    parts: list[Part]

    @property
    def seconds(self) -> float:
        return self.fixed + sum(self.lengths)

    def by_component(self, n: int, first_place: np.ndarray) -> FloatArray:
        """``fixed``, then a share for every component; NaN for those that took no part."""
        row = np.full(n + 1, np.nan)
        row[0] = self.fixed
        for length, (group, members) in zip(self.lengths, self.parts, strict=True):
            row[1 + first_place[group] + np.array(members)] = length / len(members)
        return row


def _nothing(part: Part, u: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
    return torch.zeros_like(u[..., 0]), None
