"""Real steps, probe evaluations and saves of a run, each with a clock, far from where it will be.

The steps go through :func:`~lens_slt.sampling.driver.run_chains` itself with the run's own target;
what they record is kept in memory, and written once to a temporary folder that is removed.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from torch import Tensor

from lens_slt.sampling.driver import SUMMED, Book, run_chains
from lens_slt.sampling.half_step import COLUMNS
from lens_slt.sampling.health import diagnose
from lens_slt.sampling.plan import StepCosts
from lens_slt.sampling.prepare import PreparedRun
from lens_slt.sampling.result import BURN_IN, TRACES
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import STATE_FILE, ArraySpec, DrawStore, open_store
from lens_slt.sampling.timed_target import FULL, PLAIN, PROBES, Enough, TimedTarget

TRIAL_SECONDS = 4.0  # for steps, probes and full losses together; each kind runs at least once
MOST_TRIAL_STEPS = 200
SCRATCH_BYTES = 2**26  # of every array, and of the chains' state, that is written in a timed run


@dataclass(frozen=True)
class StepTimes:
    """Seconds, and what one step recorded."""

    costs: StepCosts
    pilot: float  # prior losses, before the first step
    set_up: float  # what the first step of each kind takes longer: prefixes that are kept
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


def time_steps(job: PreparedRun) -> StepTimes:
    """Run a few real steps, plain, with probes and with full losses, for ``TRIAL_SECONDS``."""
    s = job.settings
    kinds = [PLAIN, *([PROBES] if job.target.probes else []), *([FULL] if s.full_loss else [])]
    timed = TimedTarget(job.target, tuple(kinds))
    sink = _Sink({})
    # No burn-in, so that the first step may evaluate probes; a fixed step and draws enough, so that
    # nothing is decided.
    settings = s.but(
        step_size=s.epsilon, steps_per_draw=None, burn_in=0, draws=MOST_TRIAL_STEPS + 1, thin=1,
        target_se=None,
    )  # fmt: skip

    def on_step(book: Book) -> None:
        timed.end_step()
        timed.kind = _next_kind(timed)
        if book.step >= MOST_TRIAL_STEPS:
            raise Enough

    timed.start()
    with contextlib.suppress(Enough):
        run_chains(timed, settings, sink, on_step)
    fetch = timed.since_last()  # the driver saves at its end
    base = _seconds(job.target.probe_base_losses)
    costs, set_up = timed.costs(len(job.names))
    return StepTimes(costs, timed.pilot, set_up, fetch, base, sink.one_draw(), sink.state)


def time_nothing(job: PreparedRun) -> StepTimes:
    """Of a run whose steps are all done: only its probes' losses at the given weights."""
    n = len(job.names)
    none = np.zeros(n)
    zeros = {name: np.zeros((n, job.settings.chains), np.float32) for name in TRACES}
    base = _seconds(job.target.probe_base_losses)
    return StepTimes(StepCosts(0.0, none, none, none), 0.0, 0.0, 0.0, base, zeros, {})


def time_writes(
    job: PreparedRun, values: dict[str, np.ndarray], on_disk: bool
) -> tuple[dict[str, WriteTimes], float]:
    """Write one chunk of every array as a run would, and the seconds that opening them takes.

    Values are those of one real draw, changed at random by a thousandth from draw to draw: they
    compress as real ones do.
    """
    specs = {name: _one_chunk(spec) for name, spec in job.specs.items() if name in values}
    with tempfile.TemporaryDirectory(prefix="lens-slt-") as folder:
        path = Path(folder) / "draws" if on_disk else None
        warm = {"warm": ArraySpec((1, 1, 1), ("component", "chain", "draw"))}
        with open_store(None if path is None else path.with_name("warm"), warm, {}) as store:
            _write(store, "warm", np.zeros((1, 1), np.float32), 1)
        began = time.perf_counter()
        with open_store(path, specs, job.identity) as store:
            opened = time.perf_counter() - began
            each = {name: _write_one(store, name, values[name], specs[name]) for name in specs}
        return each, opened


def time_state(state: dict[str, Tensor], n_bytes: int) -> float:
    """Seconds to save a state of ``n_bytes`` on disk, from a part of one like it."""
    if not state:
        return 0.0
    part: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not part or state_bytes(part) + tensor.nbytes <= SCRATCH_BYTES:
            part[key] = tensor
    with tempfile.TemporaryDirectory(prefix="lens-slt-") as folder:
        store = DrawStore({}, Path(folder))
        store.save(part, {})
        seconds = _seconds(lambda: store.save(part, {}))
        assert (Path(folder) / STATE_FILE).exists()
    return seconds * n_bytes / state_bytes(part)


def state_bytes(state: dict[str, Tensor]) -> int:
    """Size of a state."""
    return sum(tensor.nbytes for tensor in state.values())


def time_loading(settings: Settings) -> float:
    """Seconds to load ArviZ, where that is to do."""
    first, second = (_seconds(lambda: _diagnose_one(settings, 8)) for _ in range(2))
    return max(0.0, first - second)


def time_diagnosis(settings: Settings, draws: list[int]) -> float:
    """Seconds for the health verdicts of components with so many draws."""
    return len(draws) * _seconds(lambda: _diagnose_one(settings, int(np.median(draws))))


class _Sink(DrawStore):
    """Keeps the last value of every component and array, and the chains' last state."""

    state: dict[str, Tensor]

    def put(self, name: str, component: int, index: int, values: Tensor | np.ndarray) -> None:
        row = values if isinstance(values, np.ndarray) else values.detach().float().cpu().numpy()
        self.arrays.setdefault(name, {})[component] = row

    def save(self, state: dict[str, Tensor], *about: object) -> None:
        self.state = state

    def one_draw(self) -> dict[str, np.ndarray]:
        """Values ``[component, chain, …]`` by array."""
        found = {
            name: np.stack([rows[i] for i in sorted(rows)]) for name, rows in self.arrays.items()
        }
        return found | {BURN_IN: found["paired_loss"]}


def _next_kind(timed: TimedTarget) -> str:
    """The next step's; every kind has its turn, then those that took the least time so far."""
    spent = {kind: timed.spent(kind) for kind in timed.kinds}
    for kind, seconds in spent.items():
        # The first of a kind warms up, so a second is timed, unless the first was long already.
        if not seconds or (len(seconds) == 1 and seconds[0] <= TRIAL_SECONDS):
            return kind
    if sum(map(sum, spent.values())) > TRIAL_SECONDS:
        raise Enough
    return min(spent, key=lambda kind: sum(spent[kind]))


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
        for component, values in enumerate(row):
            store.put(name, component, draw, values)
    return _seconds(lambda: store.save({}, {}))


def _diagnose_one(settings: Settings, draws: int) -> None:
    """Health of one component with good chains."""
    shape = (1, settings.chains, draws)
    noise = np.random.default_rng(0).standard_normal(shape)
    dims = ("component", "chain", "draw")
    traces = {"paired_loss": 1 + noise / 10, "squared_distance": np.ones(shape)}
    traces |= dict.fromkeys(SUMMED, 1 + noise / 10)
    coords = {"component": ["one"], "chain": np.arange(settings.chains)}
    posterior = xr.Dataset({name: (dims, x) for name, x in traces.items()}, coords=coords)
    known = {"n_parameters": settings.gamma, "n_draws": draws, "step_size": settings.epsilon}
    known |= dict.fromkeys(("prior_loss", "prior_loss_se", *COLUMNS), float("nan"))
    root = xr.Dataset({name: ("component", [x]) for name, x in known.items()})
    diagnose(posterior, root, settings)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
