"""Arithmetic of a run before it starts: the steps, draws, saves and files it still has to make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lens_slt.sampling.driver import SECONDS_BETWEEN_SAVES
from lens_slt.sampling.result import TRACES
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import BLOCK, LARGEST_PENDING, ArraySpec

DISK_BLOCK = 4096  # bytes; files and folders take whole blocks
CHUNKS_AT_A_TIME = 10  # that Zarr encodes


@dataclass(frozen=True)
class Plan:
    """What is left of a run of which ``done`` steps are there."""

    settings: Settings
    specs: dict[str, ArraySpec]
    done: int = 0

    @property
    def steps(self) -> int:
        """Steps still to run."""
        return self.settings.steps - self.done

    @property
    def probe_draws(self) -> int:
        """Draws still to come at which probes are evaluated; 0 without probes."""
        if len(self.specs) == len(TRACES):
            return 0
        return self.draws_until(self.settings.steps) - self.draws_until(self.done)

    @property
    def draw_bytes(self) -> int:
        """Size of what is recorded of all probes at one draw."""
        probes = (spec for name, spec in self.specs.items() if name not in TRACES)
        return sum(spec.n_bytes // spec.shape[2] for spec in probes)

    def draws_until(self, step: int) -> int:
        """Draws with probes among the first ``step`` steps."""
        return -(-max(0, step - self.settings.burn_in_steps) // self.settings.thin)

    def saves(self, step_seconds: float, draw_seconds: float) -> list[range]:
        """The steps that each save writes, as the driver decides."""
        found, start, clock = [], self.done, 0.0
        for step in range(self.done, self.settings.steps):
            draws = self.draws_until(step + 1) - self.draws_until(step)
            clock += step_seconds + draws * draw_seconds
            pending = (self.draws_until(step + 1) - self.draws_until(start)) * self.draw_bytes
            due = clock > SECONDS_BETWEEN_SAVES or pending > LARGEST_PENDING
            if due or (step + 1) % BLOCK == 0 or step + 1 == self.settings.steps:
                found.append(range(start, step + 1))
                start, clock = step + 1, 0.0
        return found

    def chunk_writes(self, name: str, saves: list[range]) -> tuple[int, int]:
        """Chunks of one array that saves write whole, and those that they write a part of."""
        spec, whole, partial = self.specs[name], 0, 0
        length, end = spec.chunks[2], spec.shape[2]
        for save in saves:
            start, stop = self._index(name, save.start), self._index(name, save.stop)
            for first in range(start // length * length, stop, length):
                complete = first >= start and min(first + length, end) <= stop
                whole, partial = whole + complete, partial + (not complete)
        return whole * spec.shape[0], partial * spec.shape[0]

    def disk_bytes(self, chunk_bytes: dict[str, float], state_bytes: int) -> int:
        """What the run adds to the disk, given the sizes of whole compressed chunks."""
        parts = [self._array_bytes(name, size) for name, size in chunk_bytes.items()]
        probes = [spec for name, spec in self.specs.items() if name not in TRACES]
        if self.steps:  # at its end: base losses, tokens and weights of probes
            parts += [3 * _blocks(4 * int(np.prod(spec.shape[3:]))) for spec in probes]
            parts.append(12 * len(probes) * DISK_BLOCK)
        if not self.done:  # at its start: folders and descriptions, later the chains' state
            blocks = 2 + 3 * len(self.specs) + 2 * len(probes) + 2 * bool(probes)
            parts += [blocks * DISK_BLOCK, _blocks(state_bytes)]
        return sum(parts)

    def memory_bytes(self, steps: int, end: int, saves: list[range], in_memory: bool) -> int:
        """The most memory at a time.

        Args:
            steps: peak of steps that record nothing; freed memory mostly stays with the process.
            end: what the diagnosis adds.
            saves: from :meth:`saves`.
            in_memory: whether the recorded arrays are.
        """
        draws = [self.draws_until(save.stop) - self.draws_until(save.start) for save in saves]
        pending = max(draws, default=0) * self.draw_bytes  # recorded, not yet written
        if in_memory:
            recorded = sum(spec.n_bytes for spec in self.specs.values())
            # Pending draws are stacked to be written; the result is put in order at the end.
            return steps + max(recorded + 2 * pending, 2 * recorded + end)
        chunk = max(4 * int(np.prod(spec.chunks)) for spec in self.specs.values())
        return steps + max(2 * pending + min(pending, CHUNKS_AT_A_TIME * chunk), end)

    def _index(self, name: str, step: int) -> int:
        return step if name in TRACES else self.draws_until(step)

    def _array_bytes(self, name: str, chunk_bytes: float) -> int:
        spec = self.specs[name]
        before, after = self._index(name, self.done), self._index(name, self.settings.steps)
        each = _series_bytes(after, spec.chunks[2], chunk_bytes)
        each -= _series_bytes(before, spec.chunks[2], chunk_bytes)
        chunks = -(-after // spec.chunks[2]) - -(-before // spec.chunks[2])
        folders = chunks * (len(spec.shape) - 3) + 2 * (self.done == 0)
        return spec.shape[0] * (each + folders * DISK_BLOCK)


def _series_bytes(n: int, length: int, chunk_bytes: float) -> int:
    """Files of one component that hold ``n`` draws."""
    whole, rest = divmod(n, length)
    return whole * _blocks(chunk_bytes) + _blocks(chunk_bytes * rest / length)


def _blocks(n_bytes: float) -> int:
    return -(-int(n_bytes) // DISK_BLOCK) * DISK_BLOCK
