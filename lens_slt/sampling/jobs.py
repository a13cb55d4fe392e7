"""Jobs on one machine or many, through joblib's backends.

A job is a small description that pickles and says how it is run; large results go to a store of its
own. Every job computes with the same number of threads wherever it runs, so that its numbers do not
depend on the backend. One whose worker was lost, or ran out of memory, is run again.
"""

from __future__ import annotations

import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from joblib import Parallel, delayed, parallel_config, register_parallel_backend
from joblib.parallel import get_active_backend
from threadpoolctl import threadpool_limits

from lens_slt.arguments import choice, did_you_mean, integer, typed
from lens_slt.progress import track
from lens_slt.sampling.folder import SamplingWarning
from lens_slt.sampling.worker_memory import (
    allocate_as_usual,
    release_memory,
    released_afterwards,
)
from lens_slt.torch_state import kept_random_state, with_threads

LOSSES_TOGETHER = 2  # of a job's worker, after which it runs alone
MOST_LOSSES = 3
CLUSTERS = {"dask": "distributed", "ray": "ray"}  # and what has to be installed
LOST = (  # what backends raise where a worker ended under a job
    "BrokenProcessPool", "KilledWorker", "ActorDiedError", "RayActorError", "WorkerCrashedError",
    "NodeDiedError", "OutOfMemoryError",
)  # fmt: skip
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
MOST_NAMED = 6  # in a message
LOST_WORKER, OUT_OF_MEMORY = "its worker was lost", "it ran out of memory"


class Job(Protocol):
    """A description of work that pickles."""

    @property
    def name(self) -> str: ...

    def run(self) -> Any:
        """Do it; what is returned is small and pickles."""
        ...


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended.

    Attributes:
        value: what it returned.
        error: what it raised instead.
        repeated: why it was run again, once for every time.
        seconds: that its last run took.
    """

    name: str
    value: Any = None
    error: Exception | None = None
    repeated: tuple[str, ...] = ()
    seconds: float = float("nan")


class JobError(RuntimeError):
    """Some jobs failed; ``outcomes`` has those of all."""

    outcomes: list[JobOutcome]


@typed
def run_jobs(
    jobs: Sequence[Any],
    parallel: Any = None,
    *,
    label: str = "jobs",
    progress: bool = True,
    on_error: Literal["raise", "keep"] = "raise",
    threads: int = 1,
) -> list[JobOutcome]:
    """Run jobs here, in processes, or on a cluster, and wait for all of them.

    Args:
        jobs: each a :class:`Job`, with a name of its own.
        parallel: None runs them one after another in this process, or as an active
            ``joblib.parallel_config`` says; a number of processes; ``"dask"`` for the active
            ``distributed.Client``; ``"ray"`` for Ray.
        label: before the bar of progress.
        on_error: ``raise`` a :class:`JobError` with all names when the others are done, or ``keep``
            errors in the outcomes.
        threads: of every job.

    Returns:
        Outcomes in the order of ``jobs``. What was run again is said in a warning. The caller's
        random state and number of threads are afterwards as they were.

    Raises:
        ImportError: a backend that is not installed.
        JobError: see ``on_error``.
    """
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"jobs: every job needs a name of its own; {twice!r} comes twice")
    choice("on_error", on_error, ("raise", "keep"))
    integer("threads", threads, at_least=1)
    options = backend_options(parallel)
    if not jobs:
        return []
    release_memory()  # a model that arguments were checked with
    with (
        kept_random_state(),
        with_threads(threads),
        tempfile.TemporaryDirectory(prefix="lens-slt-jobs-") as marks,
        track(label, len(jobs), progress) as done,
    ):
        rounds = _Rounds(jobs, options, threads, Path(marks), done)
        rounds.run()
    outcomes = [rounds.outcomes[i] for i in range(len(jobs))]
    _warn_of_repeats(outcomes)
    if on_error == "raise":
        _raise_errors(outcomes)
    return outcomes


def backend_options(parallel: Any) -> dict[str, Any]:
    """Arguments of ``joblib.parallel_config`` for what a caller gave as ``parallel``.

    Raises ValueError for anything else, and for Dask without a client; ImportError for a backend
    that is not installed.
    """
    if parallel is None:
        return {}
    if isinstance(parallel, str):
        if parallel not in CLUSTERS:
            hint = did_you_mean(parallel, CLUSTERS)
            raise ValueError(
                f"parallel must be None, a number of processes, 'dask' or 'ray'; got {parallel!r}"
                f"{hint} (other backends of joblib: with joblib.parallel_config(...))"
            )
        if find_spec(CLUSTERS[parallel]) is None:
            raise ImportError(
                f"parallel={parallel!r} needs {CLUSTERS[parallel]}, which is not installed: "
                f"python -m pip install 'lens-slt[{parallel}]'"
            )
        (_check_dask_client if parallel == "dask" else _register_ray)()
        return {"backend": parallel, "n_jobs": -1}
    integer("parallel", parallel, at_least=1, note="processes")
    return {"backend": "loky", "n_jobs": parallel}


def is_configured() -> bool:
    """Whether a ``joblib.parallel_config`` with more than one worker is active."""
    backend, n_jobs = get_active_backend()
    return (backend.default_n_jobs if n_jobs is None else n_jobs) != 1


def _check_dask_client() -> None:
    from distributed import get_client

    try:
        get_client()
    except ValueError as error:
        raise ValueError(
            "parallel='dask' needs a client: client = distributed.Client(cluster), or "
            "distributed.Client() for this machine, before the call"
        ) from error


def _register_ray() -> None:
    from ray.util.joblib.ray_backend import RayBackend

    register_parallel_backend("ray", RayBackend)


@dataclass
class _Rounds:
    """Jobs that are not yet done: together first; alone where they, or others with them, fail."""

    jobs: Sequence[Any]
    options: dict[str, Any]
    threads: int
    marks: Path  # a file for every job, one byte longer at each start; unseen by other machines
    tell: Callable[..., None]
    outcomes: dict[int, JobOutcome] = field(default_factory=dict)
    repeated: dict[int, list[str]] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)

    def run(self) -> None:
        while left := [i for i in range(len(self.jobs)) if i not in self.outcomes]:
            together = [i for i in left if not self._is_for_itself(i)]
            self._round(together or left[:1])

    def _is_for_itself(self, i: int) -> bool:
        why = self._why(i)
        return OUT_OF_MEMORY in why or why.count(LOST_WORKER) >= LOSSES_TOGETHER

    def _round(self, some: list[int]) -> None:
        """Run some jobs; those whose worker was lost are noted, and left."""
        for i in some:
            self.tries[i] = self.tries.get(i, 0) + 1
        calls = (
            delayed(_run)(i, self.jobs[i], str(self.marks / str(i)), self.threads) for i in some
        )
        ended = set()
        try:
            with closing(_results(calls, self.options)) as results:
                for i, value, error, seconds in results:
                    ended.add(i)
                    self._note(i, value, error, seconds)
        except Exception as error:
            if not {kind.__name__ for kind in type(error).__mro__} & set(LOST):
                raise
            left = [i for i in some if i not in ended]
            # Where nobody saw one begin it was another machine, or the worker was lost before.
            for i in [i for i in left if self._starts(i) >= self.tries[i]] or left:
                self._lose(i)
            for i in left:
                self.tries[i] = self._starts(i)

    def _note(self, i: int, value: Any, error: Exception | None, seconds: float) -> None:
        """Keep what a job returned or raised, unless it is to run again with more memory."""
        for _ in range(self._starts(i) - self.tries[i]):  # a cluster ran it again by itself
            self.repeated.setdefault(i, []).append(LOST_WORKER)
        if error is not None and _is_memory(error) and OUT_OF_MEMORY not in self._why(i):
            self.repeated.setdefault(i, []).append(OUT_OF_MEMORY)
            self.tries[i] = self._starts(i)
            return
        self._end(i, JobOutcome(self.jobs[i].name, value, error, self._why(i), seconds))

    def _lose(self, i: int) -> None:
        why = self.repeated.setdefault(i, [])
        if why.count(LOST_WORKER) < MOST_LOSSES - 1:
            why.append(LOST_WORKER)
            return
        error = RuntimeError(
            f"its worker was lost {MOST_LOSSES} times, the last time with no other job beside it: "
            "it crashes, or needs more memory than there is"
        )
        self._end(i, JobOutcome(self.jobs[i].name, None, error, self._why(i)))

    def _end(self, i: int, outcome: JobOutcome) -> None:
        self.outcomes[i] = outcome
        self.tell(len(self.outcomes))

    def _why(self, i: int) -> tuple[str, ...]:
        return tuple(self.repeated.get(i, ()))

    def _starts(self, i: int) -> int:
        mark = self.marks / str(i)
        return mark.stat().st_size if mark.exists() else 0


def _results(calls: Any, options: dict[str, Any]) -> Generator[Any, None, None]:
    """What calls return as soon as they do, or all at once where a backend cannot."""
    common: dict[str, Any] = {"batch_size": 1, "max_nbytes": None}
    with parallel_config(**options) if options else nullcontext():
        try:
            pool = Parallel(return_as="generator_unordered", **common)
        except ValueError:  # Ray
            pool = Parallel(**common)
        yield from pool(calls)


def _run(index: int, job: Any, mark: str, threads: int) -> tuple[int, Any, Exception | None, float]:
    """What a worker does."""
    try:
        with open(mark, "ab") as file:
            file.write(b".")
    except OSError:  # of another machine
        pass
    threadpool_limits(limits=threads)
    torch.set_num_threads(threads)
    allocate_as_usual()
    began = time.perf_counter()
    with released_afterwards():
        value, error = _tried(job)
    return index, value, error, time.perf_counter() - began


def _tried(job: Any) -> tuple[Any, Exception | None]:
    try:
        with parallel_config(backend="sequential", n_jobs=1):  # within a job, no more jobs
            return job.run(), None
    except Exception as caught:
        return None, _portable(caught)


def _portable(error: Exception) -> Exception:
    """An error that can be sent, with where it was raised as a note."""
    where = "".join(traceback.format_exception(error))
    error = error.with_traceback(None)
    error.__context__ = error.__cause__ = None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of a class that pickles badly
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(where)
    return error


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    )


def _warn_of_repeats(outcomes: list[JobOutcome]) -> None:
    said = [
        f"{outcome.name} ({', then '.join(outcome.repeated)})"
        for outcome in outcomes
        if outcome.repeated
    ]
    if said:
        warnings.warn(f"run again: {_some(said)}", SamplingWarning, stacklevel=4)


def _raise_errors(outcomes: list[JobOutcome]) -> None:
    failed = [(outcome.name, outcome.error) for outcome in outcomes if outcome.error is not None]
    if not failed:
        return
    said = [f"{name} ({type(error).__name__}: {error})" for name, error in failed]
    found = JobError(
        f"{len(failed)} of {len(outcomes)} jobs failed, the others are done: {_some(said)}"
    )
    found.outcomes = outcomes
    raise found from failed[0][1]


def _some(said: list[str]) -> str:
    more = f"; and {len(said) - MOST_NAMED} more" if len(said) > MOST_NAMED else ""
    return "; ".join(said[:MOST_NAMED]) + more
