"""Which device a worker computes on: one GPU for each, where a machine has several."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from lens_slt.data.checks import usable_device


@contextmanager
def one_device(device: str) -> Iterator[torch.device]:
    """The device itself; for ``cuda`` a GPU that no other worker of this machine uses.

    Where there are more workers than GPUs some share one. A GPU is kept by a lock of the operating
    system's, which ends with the process.
    """
    if device != "cuda":
        yield usable_device(device)
        return
    n = torch.cuda.device_count()
    for index in range(n):
        lock = FileLock(_lock_file(index), timeout=0)
        try:
            lock.acquire()
        except (Timeout, OSError):  # taken, or by somebody else's file
            continue
        try:
            yield usable_device(f"cuda:{index}")
        finally:
            lock.release()
        return
    yield usable_device(f"cuda:{os.getpid() % n}" if n else device)


def _lock_file(index: int) -> Path:
    """Of one GPU, whatever number it has in this process."""
    name = torch.cuda.get_device_properties(index).uuid
    return Path(tempfile.gettempdir()) / f"lens-slt-gpu-{name}.lock"
