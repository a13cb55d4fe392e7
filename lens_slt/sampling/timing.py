"""Real steps, probe evaluations and saves of a run, each with a clock, far from where it will be.

The steps go through :func:`~lens_slt.sampling.driver.run_chains` itself with the run's own target;
what they record is kept in memory, and written once to a temporary folder that is removed.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens_slt.sampling.driver import Members, run_chains
from lens_slt.sampling.health import diagnose
from lens_slt.sampling.result import TRACES
from lens_slt.sampling.sample import Job
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import STATE_FILE, ArraySpec, DrawStore, open_store
from lens_slt.sampling.target import TransformerTarget

TRIAL_SECONDS = 4.0  # for steps and probes together; each kind runs at least once
MOST_TRIAL_STEPS = 200
SCRATCH_BYTES = 2**26  # of every array, and of the chains' state, that is written as a trial


@dataclass(frozen=True)
class StepTimes:
    """Seconds, and what one step recorded."""

    step: float
    probe_draw: float  # what a step with probes takes longer
    set_up: float  # what the first of each kind takes longer: prefixes that are kept
    fetch: float  # the chains' state, from the device, at every save
    base: float  # losses at the given weights, at the end
    values: dict[str, np.ndarray]  # array -> [component, chain, …] of one step or draw
    state: dict[str, Tensor]


@dataclass(frozen=True)
class WriteTimes:
    """Seconds per Zarr chunk of one array, and its compressed size; in memory per component."""

    whole: float
    partial: float  # a part of a chunk that is there: read, changed and written
    read: float
    chunk_bytes: float  # on disk


def time_steps(job: Job) -> StepTimes:
    """Run a few real steps, with and without probes, for about ``TRIAL_SECONDS``."""
    trial = _Trial(job.target)
    settings = job.settings.but(burn_in=0, draws=MOST_TRIAL_STEPS, thin=1)
    sink = _Sink({})
    trial.last = time.perf_counter()
    with contextlib.suppress(_Enough):
        run_chains(trial, settings, sink, trial.on_step)
    fetch = time.perf_counter() - trial.last  # the driver saves at its end
    base = _seconds(job.target.probe_base_losses)
    step, first_step = _typical(trial.plain)
    probed, first_probed = _typical(trial.probed) if trial.probed else (step, 0.0)
    return StepTimes(
        step, max(0.0, probed - step), first_step + first_probed, fetch, base, sink.arrays,
        sink.state,
    )  # fmt: skip


def time_nothing(job: Job) -> StepTimes:
    """Of a run whose steps are all done: only its probes' losses at the given weights."""
    shape = len(job.names), job.settings.chains
    zeros = {name: np.zeros(shape, np.float32) for name in TRACES}
    return StepTimes(0.0, 0.0, 0.0, 0.0, _seconds(job.target.probe_base_losses), zeros, {})


def time_writes(
    job: Job, values: dict[str, np.ndarray], on_disk: bool
) -> tuple[dict[str, WriteTimes], float]:
    """Write one chunk of every array as a run would, and the seconds that opening them takes.

    Values are those of one real draw, changed at random by a thousandth from draw to draw: they
    compress as real ones do.
    """
    specs = {name: _one_chunk(spec) for name, spec in job.specs.items() if name in values}
    with tempfile.TemporaryDirectory(prefix="lens-slt-") as folder:
        path = Path(folder) / "draws" if on_disk else None
        warm = {"warm": ArraySpec((1, 1, 1), ("component", "chain", "step"))}
        store = open_store(None if path is None else path.with_name("warm"), warm, {})
        _write(store, "warm", np.zeros((1, 1), np.float32), 1)
        began = time.perf_counter()
        store = open_store(path, specs, job.identity)
        opened = time.perf_counter() - began
        return {name: _write_one(store, name, values[name], specs[name]) for name in specs}, opened


def time_state(state: dict[str, Tensor]) -> float:
    """Seconds to save the chains' state on disk; from a part of it if it is large."""
    if not state:
        return 0.0
    part: dict[str, Tensor] = {}
    n_bytes = 0
    for key, tensor in state.items():
        if not part or n_bytes + _size(tensor) <= SCRATCH_BYTES:
            part[key] = tensor
            n_bytes += _size(tensor)
    with tempfile.TemporaryDirectory(prefix="lens-slt-") as folder:
        store = DrawStore({}, Path(folder))
        store.save(0, part)
        began = time.perf_counter()
        store.save(1, part)
        seconds = time.perf_counter() - began
        assert (Path(folder) / STATE_FILE).exists()
    return seconds * state_bytes(state) / n_bytes


def state_bytes(state: dict[str, Tensor]) -> int:
    """Size of the chains' state."""
    return sum(_size(tensor) for tensor in state.values())


def time_diagnosis(settings: Settings, n_components: int) -> tuple[float, float]:
    """Seconds to load ArviZ, where that is to do, and for health verdicts of all components."""
    first, second = (_seconds(lambda: _diagnose_one(settings)) for _ in range(2))
    return max(0.0, first - second), n_components * second


class _Enough(Exception):
    """The trial has lasted long enough."""


@dataclass
class _Trial:
    """The target of a run; evaluates its probes in some steps only, and has a clock."""

    target: TransformerTarget
    plain: list[float] = field(default_factory=list)  # seconds of steps without probes
    probed: list[float] = field(default_factory=list)
    last: float = 0.0
    with_probes: bool = False

    @property
    def groups(self) -> list[Members]:
        return self.target.groups

    def minibatch_losses(self, v: list[Tensor], step: int) -> tuple[list[Tensor], list[Tensor]]:
        return self.target.minibatch_losses(v, step)

    def full_losses(self, v: list[Tensor]) -> list[Tensor]:
        return self.target.full_losses(v)

    def probe_losses(self, v: list[Tensor]) -> dict[str, Tensor]:
        return self.target.probe_losses(v) if self.with_probes else {}

    def on_step(self, step: int) -> None:
        """Note the time of this step and choose what the next one does."""
        now = time.perf_counter()
        (self.probed if self.with_probes else self.plain).append(now - self.last)
        self.last = now
        if not _had_its_turn(self.plain):
            self.with_probes = False
        elif self.target.probes and not _had_its_turn(self.probed):
            self.with_probes = True
        elif sum(self.plain) + sum(self.probed) > TRIAL_SECONDS:
            raise _Enough
        else:
            self.with_probes = bool(self.target.probes) and sum(self.probed) < sum(self.plain)


class _Sink(DrawStore):
    """Keeps the last value of every array, and the chains' last state."""

    state: dict[str, Tensor]

    def put(self, name: str, index: int, values: Tensor) -> None:
        super().put(name, index, values)
        self.arrays[name] = self._pending.pop(name)[1][-1]

    def is_block_end(self, step: int) -> bool:
        return False

    def save(self, step: int, state: dict[str, Tensor]) -> None:
        self.state = state


def _had_its_turn(seconds: list[float]) -> bool:
    """The first of a kind warms up, so a second is timed, unless the first was long already."""
    return len(seconds) > 1 or sum(seconds) > TRIAL_SECONDS


def _typical(seconds: list[float]) -> tuple[float, float]:
    """Median after the first, and what the first took longer."""
    typical = float(np.median(seconds[1:] or seconds))
    return typical, max(0.0, seconds[0] - typical)


def _one_chunk(spec: ArraySpec) -> ArraySpec:
    """One chunk of as many components as are tried."""
    n_bytes = 4 * int(np.prod(spec.chunks))
    n = max(1, min(spec.shape[0], SCRATCH_BYTES // n_bytes))
    return ArraySpec((n, *spec.chunks[1:]), spec.dims)


def _write_one(store: DrawStore, name: str, value: np.ndarray, spec: ArraySpec) -> WriteTimes:
    n, _, draws = spec.shape[:3]
    whole = _write(store, name, value[:n], draws)
    if store.path is None:
        copied = _seconds(lambda: np.full(spec.shape, np.nan, np.float32)[list(range(n))])
        return WriteTimes((whole + copied) / n, (whole + copied) / n, 0.0, 0.0)
    files = [file for file in (store.path / name / "c").rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / n
    partial = _write(store, name, value[:n], draws // 2) if draws > 1 else whole
    read = _seconds(lambda: store.arrays[name][:])
    return WriteTimes(whole / n, partial / n, read / n, size)


def _write(store: DrawStore, name: str, value: np.ndarray, draws: int) -> float:
    """Seconds to write so many draws like ``value [component, chain, …]``."""
    generator = np.random.default_rng(0)
    for draw in range(draws):
        row = value * (1 + 1e-3 * generator.standard_normal(value.shape, np.float32))
        store.put(name, draw, torch.from_numpy(row))
    return _seconds(lambda: store.save(0, {}))


def _diagnose_one(settings: Settings) -> None:
    """Health of one component with good chains."""
    shape = (1, settings.chains, settings.draws)
    noise = np.random.default_rng(0).standard_normal(shape)
    dims = ("component", "chain", "draw")
    posterior = xr.Dataset(
        {"paired_loss": (dims, 1 + noise / 10), "squared_distance": (dims, np.ones(shape))},
        coords={"component": ["one"], "chain": np.arange(settings.chains)},
    )
    diagnose(posterior, np.array([settings.gamma]), settings)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
