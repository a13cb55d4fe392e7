"""The same sweep on one core, in processes, on Dask, and with a killed worker: equal to the bit?

Jobs are checkpoints of a shipped model × groups of components, each with its model and tokens to
load. Processes have started and imported everything before the clock runs; what that takes is a
figure of its own. The overhead of a job is what the wall clock of two processes says beyond the
seconds within jobs, and the wait for the last job with it. CPU seconds within jobs, of processes
over serial, hold on a busy machine too.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lens_slt as ls
from benchmarks.common import Target, finish, parser, say, show_table
from lens_slt.models.source import LoadedModel, ModelSource
from lens_slt.sampling.jobs import JobOutcome, run_jobs
from lens_slt.sampling.result import dataset

TARGETS = {"max_difference": Target(most=0.0), "speed_up": Target(least=1.6)}
CHECKPOINTS, QUICK_CHECKPOINTS = (300, 1000, 2300, 5300), (300, 2300)
WORKERS = 2
PARTS = ("paired_loss", "squared_distance", "virial")


@dataclass(frozen=True)
class Sweep:
    """What every job samples."""

    groups: tuple[tuple[str, ...], ...]
    checkpoints: tuple[int, ...]
    settings: ls.Settings
    n_sequences: int


@dataclass(frozen=True)
class SweepJob:
    """One group of components at one checkpoint."""

    source: ModelSource
    components: tuple[str, ...]
    settings: ls.Settings
    n_sequences: int

    @property
    def name(self) -> str:
        return f"{self.source.label}: {self.components[0]} and {len(self.components) - 1} more"

    def run(self) -> dict[str, np.ndarray]:
        began = time.process_time()
        tokens = ls.load_tokens("mix", n_sequences=self.n_sequences)
        draws = ls.sample(
            self.source.load("cpu"), tokens, self.components, settings=self.settings,
            progress=False,
        )  # fmt: skip
        posterior = dataset(draws, "posterior")
        found = {name: posterior[name].values for name in PARTS}
        return {**found, "cpu": np.array(time.process_time() - began)}


@dataclass(frozen=True)
class KilledOnce:
    """A job whose worker is killed some seconds after it begins, the first time."""

    job: SweepJob
    mark: str
    seconds: float

    @property
    def name(self) -> str:
        return self.job.name

    def run(self) -> dict[str, np.ndarray]:
        if not Path(self.mark).exists():
            Path(self.mark).touch()
            kill = threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL))
            kill.daemon = True
            kill.start()
            self.job.run()
            kill.join()  # however fast the machine is
        return self.job.run()


@dataclass(frozen=True)
class Start:
    """A job at toy size, which imports what the others need, in each of some workers."""

    name: str
    job: SweepJob
    folder: str
    workers: int

    def run(self) -> None:
        (Path(self.folder) / self.name).touch()
        while len(list(Path(self.folder).iterdir())) < self.workers:
            time.sleep(0.02)  # lest one worker does it for all
        self.job.run()


@dataclass(frozen=True)
class Timed:
    """One way to run the sweep."""

    way: str
    outcomes: list[JobOutcome]
    seconds: float
    start: float = 0.0  # of its workers

    @property
    def working(self) -> float:
        """Seconds within jobs."""
        return sum(outcome.seconds for outcome in self.outcomes)

    @property
    def cpu(self) -> float:
        """CPU seconds within jobs."""
        return sum(float(outcome.value["cpu"]) for outcome in self.outcomes)

    @property
    def repeated(self) -> int:
        return sum(len(outcome.repeated) for outcome in self.outcomes)


def sweep(quick: bool, seed: int) -> Sweep:
    """Small enough for minutes; two layers are two groups."""
    heads = tuple(tuple(f"L{layer}H{h}" for h in range(2 if quick else 8)) for layer in (0, 1))
    settings = ls.Settings(
        chains=2, draws=2 if quick else 20, burn_in=1 if quick else 5, seed=seed,
        batch_size=4 if quick else 16, step_size=0.004,
    )  # fmt: skip
    return Sweep(heads, QUICK_CHECKPOINTS if quick else CHECKPOINTS, settings, 8 if quick else 64)


def jobs_of(what: Sweep) -> list[SweepJob]:
    return [
        SweepJob(LoadedModel("attn-2l", step), group, what.settings, what.n_sequences)
        for step in what.checkpoints
        for group in what.groups
    ]


def timed(way: str, jobs: Sequence[Any], parallel: Any) -> Timed:
    """Run the jobs one way, after its workers have started."""
    n = 1 if parallel is None else WORKERS
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        toy = jobs_of(sweep(quick=True, seed=0))[0]
        run_jobs([Start(f"{i}", toy, folder, n) for i in range(n)], parallel, progress=False)
    began = time.perf_counter()
    outcomes = run_jobs(jobs, parallel, progress=False)
    found = Timed(way, outcomes, time.perf_counter() - began, began - start)
    say(f"{way}: {found.seconds:.0f} s")
    return found


def on_dask(jobs: list[SweepJob]) -> Timed:
    """On a cluster of two workers on this machine."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, memory_limit=None
        ) as cluster,
        Client(cluster),
    ):
        return timed("local Dask cluster", jobs, "dask")


def with_a_kill(jobs: list[SweepJob], seconds: float) -> Timed:
    """In processes, of which one is killed some seconds after the first job begins."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that jobs were run again is in the table
        some = [KilledOnce(jobs[0], f"{folder}/killed", seconds), *jobs[1:]]
        return timed("two processes, one killed", some, WORKERS)


def largest_difference(one: Timed, other: Timed) -> float:
    """Between all values of two sweeps; infinite where one has a NaN and the other none."""
    found = 0.0
    for a, b in zip(one.outcomes, other.outcomes, strict=True):
        for name in PARTS:
            here, there = a.value[name], b.value[name]
            if not np.array_equal(np.isnan(here), np.isnan(there)):
                return float("inf")
            found = max(found, float(np.nanmax(np.abs(here - there), initial=0.0)))
    return found


def main() -> None:
    args = parser(__doc__).parse_args()
    jobs = jobs_of(sweep(args.quick, args.seed))
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    say(f"{len(jobs)} jobs; load {load:.1f} before the start, on {cores} cores")
    serial, processes = timed("serial", jobs, None), timed("two processes", jobs, WORKERS)
    typical = float(np.median([outcome.seconds for outcome in processes.outcomes]))
    killed = with_a_kill(jobs, typical / 2)
    dask = [] if args.quick else [on_dask(jobs)]  # starting it is most of a quick run
    ways = [serial, processes, *dask, killed]
    gaps = [largest_difference(serial, way) for way in ways]
    show_table(
        "The same sweep",
        [
            "way",
            "wall s",
            "s within jobs",
            "CPU s",
            "start of workers, s",
            "run again",
            "largest difference",
        ],
        [
            [w.way, w.seconds, w.working, w.cpu, w.start, w.repeated, gap]
            for w, gap in zip(ways, gaps, strict=True)
        ],
    )
    overhead = (WORKERS * processes.seconds - processes.working) / len(jobs)
    figures = {
        "max_difference": float(np.max(gaps)),
        "speed_up": serial.seconds / processes.seconds,
        "cpu_ratio": processes.cpu / serial.cpu,
        "overhead_per_job": overhead,
        "job_seconds": serial.seconds / len(jobs),
        "start_seconds": processes.start,
        "killed_repeats": killed.repeated,
        "load_before": load,
    }
    if dask:
        figures["speed_up_dask"] = serial.seconds / dask[0].seconds
    finish(args, figures, TARGETS)


if __name__ == "__main__":
    main()
