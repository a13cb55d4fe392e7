"""Memory of a worker that runs one job after the other.

loky replaces a worker that has grown by 300 MB, and the next one imports everything again; what a
job leaves behind is mostly free memory that the C library keeps. Dask's nannies tell that library
to keep none, which makes every large tensor a fresh mapping: a sweep took 1.7 times the CPU time.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch

TRIM_VARIABLE = "MALLOC_TRIM_THRESHOLD_"  # that a nanny sets
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt
LARGEST_FROM_HEAP = 2**25  # bytes, to which glibc raises its threshold where it is left alone


def allocate_as_usual() -> None:
    """Where a nanny has changed how memory is allocated, go back to glibc's own habits."""
    if TRIM_VARIABLE in os.environ:
        set_option = _of_glibc("mallopt")
        set_option(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP)
        set_option(M_TRIM_THRESHOLD, 2 * LARGEST_FROM_HEAP)


@contextmanager
def released_afterwards() -> Generator[None]:
    """Give back what was made inside and is no longer used.

    What was there before is set aside, so that looking for garbage does not walk through all of the
    modules that are loaded: a third of a second for every job.
    """
    aside = gc.get_freeze_count() == 0  # else the caller, or a job beside this one, has done it
    if aside:
        gc.freeze()
    try:
        yield
    finally:
        release_memory()
        if aside:
            gc.unfreeze()


def release_memory() -> None:
    """Give what is no longer used back to the system."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    _of_glibc("malloc_trim")(0)


def _of_glibc(name: str) -> Callable[..., int]:
    """A function of the C library; one that does nothing where the library is another."""
    found = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    return found or (lambda *_: 0)
