"""What the machine has and what this process takes of it: memory and disk."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path

import torch

SECONDS_BETWEEN_LOOKS = 0.005
CGROUP = Path("/sys/fs/cgroup")


class MemoryWatch:
    """Memory in bytes that a device has to give on top of what was taken at the start of the block.

    On a CUDA device this is what PyTorch allocates there, exactly. Elsewhere it is the resident set
    of the process, looked at every few milliseconds by a thread; where there is no ``/proc``, its
    highest value so far, which misses what fits into memory that was used before.
    """

    def __init__(self, device: torch.device) -> None:
        on_cuda = device.type == "cuda" and torch.cuda.is_available()
        self._cuda = device if on_cuda else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        self._start = self._highest = self._taken()
        if self._cuda is None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._cuda is None:
            self._thread.join()

    @property
    def peak(self) -> int:
        """The most so far."""
        if self._cuda is not None:
            return torch.cuda.max_memory_allocated(self._cuda) - self._start
        return max(self._highest, self._taken()) - self._start

    def _taken(self) -> int:
        if self._cuda is not None:
            return torch.cuda.memory_allocated(self._cuda)
        return resident_bytes()

    def _look(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_LOOKS):
            self._highest = max(self._highest, resident_bytes())


def resident_bytes() -> int:
    """Resident set of this process; its highest value so far where ``/proc`` does not exist."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return _highest_resident()
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device, None where nothing tells."""
    if device.type == "cuda" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    if "MemAvailable" not in fields:
        return None
    available = 1024 * int(fields["MemAvailable"].split()[0])
    try:  # a container may have less
        most = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return min(available, max(0, most - used))


def free_disk(path: Path) -> int:
    """Free bytes on the disk where ``path`` is or will be."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def _highest_resident() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
