"""Jobs end the same wherever they run, and go on when workers are lost."""

from __future__ import annotations

import gc
import random
import sys
import warnings
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch

from lens_slt.sampling import jobs as module
from lens_slt.sampling.folder import SamplingWarning
from lens_slt.sampling.jobs import JobError, JobOutcome, run_jobs
from lens_slt.sampling.worker_memory import released_afterwards
from tests.made_jobs import Asks, BadError, Compute, Fail, Large, Once

SOME = [Compute(f"job {i}", i) for i in range(5)]


def run(jobs: Any, parallel: Any = None, **options: Any) -> list[JobOutcome]:
    return run_jobs(jobs, parallel, progress=False, **options)


def values(outcomes: list[JobOutcome]) -> list[float]:
    return [outcome.value[0] for outcome in outcomes]


@pytest.mark.parametrize("threads", [1, 2])
def test_processes_compute_what_this_one_does(threads: int) -> None:
    before = torch.get_num_threads()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    here, there = run(SOME, threads=threads), run(SOME[::-1], 2, threads=threads)[::-1]
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2][1])  # noqa: NPY002
    assert [o.name for o in here] == [o.name for o in there] == [job.name for job in SOME]
    assert values(here) == values(there)
    assert {o.value[1] for o in (*here, *there)} == {threads}
    assert len({o.value[2] for o in here}) == 1 and here[0].value[2] not in {
        o.value[2] for o in there
    }


def test_an_active_configuration_of_joblib_is_used() -> None:
    with joblib.parallel_config(backend="loky", n_jobs=2):
        there = run(SOME)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        threads = run(SOME)
    here = run(SOME)
    assert values(here) == values(there) == values(threads)
    assert here[0].value[2] not in {o.value[2] for o in there}
    assert {o.value[2] for o in threads} == {here[0].value[2]}


@pytest.mark.filterwarnings("ignore:A worker stopped while some jobs")  # of loky
def test_lost_workers_are_survived(tmp_path: Path) -> None:
    once, always = (Once(name, str(tmp_path), "kill", n) for name, n in (("once", 1), ("bad", 99)))
    jobs = [SOME[0], once, Fail("a"), always, SOME[1]]
    with pytest.warns(SamplingWarning, match=r"run again: .*once \(its worker was lost"):
        found = run(jobs, 2, on_error="keep")
    assert values([found[0], found[4]]) == values(run(SOME))[:2]
    assert found[1].value in (2, 3)  # a worker may be lost once more because of the bad one
    assert found[2].error is not None and str(found[2].error) == "bad luck of a"
    assert "lost 3 times" in str(found[3].error)
    assert (tmp_path / "bad-runs").stat().st_size == 3


@pytest.mark.parametrize("parallel", [None, 2])
def test_lack_of_memory_is_survived(parallel: Any, tmp_path: Path) -> None:
    large = Once("large", str(tmp_path), "memory")
    with pytest.warns(SamplingWarning, match=r"run again: large \(it ran out of memory\)$"):
        found = run([SOME[0], large, SOME[1]], parallel)
    assert found[1].value == 2
    assert values([found[0], found[2]]) == values(run(SOME))[:2]


def test_without_memory_a_job_runs_again_once(tmp_path: Path) -> None:
    worse = Once("worse", str(tmp_path), "memory", times=9)
    with (
        pytest.warns(SamplingWarning, match=r"run again: worse \(it ran out of memory\)"),
        pytest.raises(JobError, match=r"1 of 6 jobs failed.*worse \(MemoryError: too large\)"),
    ):
        run([worse, *SOME])
    assert (tmp_path / "worse-runs").stat().st_size == 2


@pytest.mark.skipif(sys.platform != "linux", reason="another C library")
def test_a_worker_gives_memory_back_and_is_kept() -> None:
    """loky replaces those that have grown, and the next one imports everything again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loky's, where it replaces one
        found = run([Large(f"{i}") for i in range(6)], 2)
    assert len({o.value for o in found}) == 2


def test_what_ends_the_memory_of_a_device_is_recognised() -> None:
    assert module._is_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert module._is_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not module._is_memory(RuntimeError("shapes differ"))


@pytest.mark.parametrize("parallel", [None, 2])
def test_failures_are_named_when_the_others_are_done(parallel: Any) -> None:
    jobs = [Fail("a"), SOME[0], Fail("b"), SOME[1]]
    with pytest.raises(JobError, match="2 of 4 jobs failed.*a .ValueError: bad luck of a.*; b .V"):
        run(jobs, parallel)
    kept = run(jobs, parallel, on_error="keep")
    assert [type(o.error) for o in kept] == [ValueError, type(None), ValueError, type(None)]
    assert "made_jobs.py" in kept[0].error.__notes__[0]  # type: ignore[union-attr]
    assert values([kept[1], kept[3]]) == values(run(SOME))[:2]


def test_an_error_that_does_not_pickle_arrives() -> None:
    found = run([BadError("odd"), SOME[0]], 2, on_error="keep")
    assert str(found[0].error) == "Odd: 1 and 2" and found[1].error is None


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'job 0' comes twice"):
        run([SOME[0], SOME[0]])
    with pytest.raises(ValueError, match="got 'dsk'; did you mean 'dask'"):
        run(SOME, "dsk")
    with pytest.raises(ValueError, match="parallel must be an integer of at least 1"):
        run(SOME, 0)
    with pytest.raises(ValueError, match="on_error must be one of raise, keep"):
        run(SOME, on_error="ignore")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for backend in ("dask", "ray"):
        with pytest.raises(ImportError, match=rf"pip install 'lens-slt\[{backend}\]'"):
            run(SOME, backend)
    assert run([], 2) == []


@pytest.mark.skipif(find_spec("distributed") is None, reason="needs lens-slt[dask]")
def test_dask_needs_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    def no_client() -> None:
        raise ValueError("No clients found")

    monkeypatch.setattr(distributed, "get_client", no_client)
    with pytest.raises(ValueError, match="parallel='dask' needs a client"):
        run(SOME, "dask")


def test_a_job_starts_no_jobs() -> None:
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert module.is_configured()
        found = run([Asks("a"), Asks("b")])
    assert [outcome.value for outcome in found] == [False, False]
    assert not module.is_configured()


def test_what_a_job_leaves_behind_is_given_back() -> None:
    class Node:
        pass

    def circle() -> weakref.ref[Node]:
        one = Node()
        one.itself = one  # type: ignore[attr-defined]
        return weakref.ref(one)

    gc.disable()
    try:
        with released_afterwards():
            outer = circle()
            with released_afterwards():  # of a job beside it
                inner = circle()
            assert inner() is None
        assert outer() is None
    finally:
        gc.enable()
    assert gc.get_freeze_count() == 0
