"""Arithmetic of a run before it starts: the steps, draws, saves and files it still has to make."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lens_slt.arrays import FloatArray
from lens_slt.sampling.course import EARLY_CHECKS
from lens_slt.sampling.driver import BLOCK_STEPS, SECONDS_BETWEEN_SAVES
from lens_slt.sampling.result import BURN_IN, FULL_LOSS, TRACES
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import LARGEST_PENDING, ArraySpec

DISK_BLOCK = 4096  # bytes; files and folders take whole blocks
LABEL_BYTES = 800  # per component, of what names the draws
CHUNKS_AT_A_TIME = 10  # that Zarr encodes

Steps = NDArray[np.int64]


@dataclass(frozen=True)
class StepCosts:
    """Seconds of one step, of all chains.

    Attributes:
        fixed: what all components share: the minibatch and what is frozen.
        each: of every component, in the order of the arrays.
        probes, full: what a draw with probes, or with a loss on the whole set, takes longer.
    """

    fixed: float
    each: FloatArray
    probes: FloatArray
    full: FloatArray

    @property
    def step(self) -> float:
        """Of a step of all components."""
        return self.fixed + float(self.each.sum())


@dataclass(frozen=True)
class Stretch:
    """Steps that a component takes at one step size, counted from the start of the run.

    Attributes:
        place: of the component in the arrays.
        began: the step at which its course began.
        first, last: the steps that are still to come are first ≤ step < last.
        stride: steps of one draw.
        burn_in: draws' worth of steps before the first draw.
    """

    place: int
    began: int
    first: int
    last: int
    stride: int
    burn_in: int

    def draws(self, step: Steps | int) -> Steps:
        """Draws that are complete after so many steps."""
        return np.maximum(0, self._strides(step) - self.burn_in)

    def intervals(self, step: Steps | int) -> Steps:
        """Draws' worth of burn-in that are complete after so many steps."""
        return np.minimum(self._strides(step), self.burn_in)

    def _strides(self, step: Steps | int) -> Steps:
        within = np.clip(step, self.first, self.last)
        return np.maximum(0, within - self.began) // self.stride


class Save(NamedTuple):
    """Steps start ≤ step < stop whose draws are written together, and their size in bytes."""

    start: int
    stop: int
    pending: int


@dataclass(frozen=True)
class Plan:
    """What is left of a run of which ``done`` steps are there."""

    settings: Settings
    specs: dict[str, ArraySpec]
    stretches: tuple[Stretch, ...]
    done: int = 0

    @property
    def steps(self) -> int:
        """Steps still to run."""
        return max((s.last for s in self.stretches), default=self.done) - self.done

    @property
    def probe_draws(self) -> int:
        """Draws still to come at which probes are evaluated, of the component with most."""
        if not self._probes:
            return 0
        total: Counter[int] = Counter()
        for s in self.stretches:
            total[s.place] += self._to_come(s)[1]
        return max(total.values(), default=0)

    @property
    def recorded_bytes(self) -> int:
        """Size of all recorded arrays."""
        return sum(self._size(name, self._length(name)) for name in self.specs)

    @property
    def decisions(self) -> int:
        """How often the draws of a component are looked at."""
        early = list(EARLY_CHECKS) if self.settings.chooses_step else []
        ends = [(int(s.draws(s.first)), int(s.draws(s.last))) for s in self.stretches]
        checks = sum(before < check < after for check in early for before, after in ends)
        return checks + len(ends)

    def seconds(self, costs: StepCosts) -> float:
        """Of all steps and draws that are still to come."""
        total = self.steps * costs.fixed
        for s in self.stretches:
            draws, probed = self._to_come(s)
            total += (s.last - s.first) * costs.each[s.place]
            total += draws * costs.full[s.place] + probed * costs.probes[s.place]
        return float(total)

    def saves(self, costs: StepCosts) -> list[Save]:
        """What each save writes, as the driver decides."""
        clock, pending = self._step_by_step(costs)
        found, start, waited, kept = [], 0, 0.0, 0
        for step in range(self.steps):
            waited, kept = waited + clock[step], kept + int(pending[step])
            due = waited > SECONDS_BETWEEN_SAVES or kept > LARGEST_PENDING
            if due or (self.done + step + 1) % BLOCK_STEPS == 0 or step + 1 == self.steps:
                found.append(Save(self.done + start, self.done + step + 1, kept))
                start, waited, kept = step + 1, 0.0, 0
        return found

    def chunk_writes(self, name: str, saves: list[Save]) -> tuple[int, int]:
        """Chunks of one array that saves write whole, and those that they write a part of."""
        spec, whole, touched = self.specs[name], 0, 0
        length = spec.chunks[2]
        starts, stops = (np.array([save[i] for save in saves], dtype=int) for i in (0, 1))
        for s, n in Counter(replace(s, place=0) for s in self.stretches).items():
            start, stop = self._index(name, s, starts), self._index(name, s, stops)
            complete = stop // length - -(-start // length)
            # The last chunk of an array may be shorter.
            complete += (stop == spec.shape[2]) & (stop % length > 0)
            some = np.where(stop > start, -(-stop // length) - start // length, 0)
            whole += n * int(np.clip(complete, 0, some).sum())
            touched += n * int(some.sum())
        return whole, touched - whole

    def disk_bytes(self, chunk_bytes: dict[str, float], state_bytes: int) -> int:
        """What the run adds to the disk.

        Args:
            chunk_bytes: sizes of whole compressed chunks.
            state_bytes: by how much the state file grows.
        """
        parts = [self._array_bytes(name, size) for name, size in chunk_bytes.items()]
        if self.steps:  # at its end: base losses, tokens and weights of probes, and labels
            values = (int(np.prod(spec.shape[3:])) for spec in self._probes.values())
            parts += [3 * _blocks(4 * n) for n in values]
            parts.append(12 * len(self._probes) * DISK_BLOCK)
            parts.append(_blocks(LABEL_BYTES * next(iter(self.specs.values())).shape[0]))
        if not self.done:  # at its start: folders and descriptions
            n_probes = len(self._probes)
            blocks = 2 + 3 * len(self.specs) + 2 * n_probes + 2 * bool(n_probes)
            parts.append(blocks * DISK_BLOCK)
        return max(0, sum(parts) + _blocks(state_bytes))

    def memory_bytes(self, steps: int, saves: list[Save], in_memory: bool) -> int:
        """The most memory at a time.

        Args:
            steps: peak of steps that record nothing; freed memory mostly stays with the process.
            saves: from :meth:`saves`.
            in_memory: whether the recorded arrays are.
        """
        pending = max((save.pending for save in saves), default=0)  # recorded, not yet written
        if in_memory:
            kept = sum(self._size(name, self._capacity(name)) for name in self.specs)
            # Pending draws are stacked to be written; the result is put in order at the end.
            return steps + kept + max(2 * pending, self.recorded_bytes)
        chunk = max(4 * int(np.prod(spec.chunks)) for spec in self.specs.values())
        return steps + 2 * pending + min(pending, CHUNKS_AT_A_TIME * chunk)

    @property
    def _probes(self) -> dict[str, ArraySpec]:
        own = (*TRACES, FULL_LOSS, BURN_IN)
        return {name: spec for name, spec in self.specs.items() if name not in own}

    def _to_come(self, s: Stretch) -> tuple[int, int]:
        """Draws of a stretch that are still to come, and those with probes."""
        before, after = int(s.draws(s.first)), int(s.draws(s.last))
        probed = -(-after // self.settings.thin) - -(-before // self.settings.thin)
        return after - before, probed if self._probes else 0

    def _step_by_step(self, costs: StepCosts) -> tuple[FloatArray, FloatArray]:
        """Seconds of every step, and bytes that it records."""
        clock, pending = np.full(self.steps, costs.fixed), np.zeros(self.steps)
        probes = sum(spec.row_bytes for spec in self._probes.values())
        traces = sum(spec.row_bytes for name, spec in self.specs.items() if name != BURN_IN)
        for s in self.stretches:
            at = np.arange(s.first, s.last + 1)
            draws = s.draws(at)
            probed = np.diff(-(-draws // self.settings.thin))
            drawn, burnt = np.diff(draws), np.diff(s.intervals(at))
            own = slice(s.first - self.done, s.last - self.done)
            clock[own] += costs.each[s.place] + costs.full[s.place] * drawn
            clock[own] += costs.probes[s.place] * probed
            pending[own] += probes * probed + (traces - probes) * drawn
            pending[own] += self.specs[BURN_IN].row_bytes * burnt
        return clock, pending

    def _index(self, name: str, s: Stretch, step: Steps | int) -> Steps:
        """Rows of an array that are complete after so many steps."""
        if name == BURN_IN:
            return s.intervals(step)
        draws = s.draws(step)
        return -(-draws // self.settings.thin) if name in self._probes else draws

    def _length(self, name: str) -> int:
        """Rows of an array at the end."""
        rows = (int(self._index(name, s, s.last)) for s in self.stretches)
        return max(rows, default=self.specs[name].shape[2])

    def _capacity(self, name: str) -> int:
        """Rows that are kept for an array: it doubles when it is full."""
        length = self.specs[name].shape[2]
        while length < self._length(name):
            length *= 2
        return length

    def _size(self, name: str, rows: int) -> int:
        spec = self.specs[name]
        return spec.shape[0] * rows * spec.row_bytes

    def _array_bytes(self, name: str, chunk_bytes: float) -> int:
        spec = self.specs[name]
        length = spec.chunks[2]
        last = {s.place: s for s in self.stretches}
        total = 0
        for s in last.values():
            before = int(self._index(name, s, s.first)) if self.done else 0
            after = int(self._index(name, s, s.last))
            total += _series_bytes(after, length, chunk_bytes)
            total -= _series_bytes(before, length, chunk_bytes)
            chunks = -(-after // length) - -(-before // length)
            folders = chunks * (len(spec.shape) - 3) + 2 * (self.done == 0)
            total += folders * DISK_BLOCK
        return total


def _series_bytes(n: int, length: int, chunk_bytes: float) -> int:
    """Files of one component that hold ``n`` draws."""
    whole, rest = divmod(n, length)
    return whole * _blocks(chunk_bytes) + _blocks(chunk_bytes * rest / length)


def _blocks(n_bytes: float) -> int:
    return -(-int(n_bytes) // DISK_BLOCK) * DISK_BLOCK
