"""Jobs that compute, fail, or take their worker with them; workers import them from here."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lens_slt.sampling.jobs import is_configured


@dataclass(frozen=True)
class Compute:
    """Something whose bits depend on the number of threads; says where it ran."""

    name: str
    seed: int = 0

    def run(self) -> tuple[float, int, int]:
        generator = torch.Generator().manual_seed(self.seed)
        values = torch.randn(400_000, generator=generator)
        torch.manual_seed(self.seed), np.random.seed(0)  # noqa: NPY002
        return float(values.exp().sum()), torch.get_num_threads(), os.getpid()


@dataclass(frozen=True)
class Fail:
    name: str

    def run(self) -> None:
        raise ValueError(f"bad luck of {self.name}")


@dataclass(frozen=True)
class Once:
    """Does something bad the first ``times`` that it runs: ``kill`` or ``memory``."""

    name: str
    folder: str
    what: str
    times: int = 1
    seconds: float = 0.0

    def run(self) -> int:
        runs = Path(self.folder) / f"{self.name}-runs"
        with runs.open("a") as file:
            file.write(".")
        n = runs.stat().st_size
        time.sleep(self.seconds)
        if n > self.times:
            return n
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError("too large")


PINS: list[torch.Tensor] = []


@dataclass(frozen=True)
class Large:
    """Needs 400 MB for a moment and leaves little between them; returns its worker."""

    name: str

    def run(self) -> int:
        torch.ones(2**23), torch.ones(2**22)  # glibc learns to take such tensors from its heap
        parts = []
        for _ in range(100):
            parts.append(torch.ones(2**20))
            PINS.append(torch.ones(200))
        del parts
        time.sleep(1.2)  # loky measures a worker's memory once a second
        return os.getpid()


@dataclass(frozen=True)
class Asks:
    """Whether jobs in this job would run elsewhere."""

    name: str

    def run(self) -> bool:
        return is_configured()


@dataclass(frozen=True)
class BadError:
    """Raises what does not pickle."""

    name: str

    def run(self) -> Any:
        class Odd(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__(f"{one} and {two}")

        raise Odd(1, 2)


@dataclass
class BadLuck:
    """An observable that once, at its ``at``-th call in one process, fails or kills a worker."""

    folder: str
    at: int
    pid: int = -1  # where nothing happens; a worker is killed elsewhere
    calls: int = 0

    def __call__(self, logits: torch.Tensor, sites: Any) -> torch.Tensor:
        self.calls += 1
        mark = Path(self.folder) / "happened"
        if self.calls == self.at and os.getpid() != self.pid and not mark.exists():
            mark.touch()
            if self.pid == -1:
                raise ValueError("bad luck")
            os.kill(os.getpid(), signal.SIGKILL)
        return logits[:, 0]
