"""How long a run takes and how much memory and disk it needs on this machine, before it starts.

Built is what :func:`lens_slt.sample` would run; a few real steps, probe evaluations and writes are
timed, courses are begun where that takes seconds only (:mod:`lens_slt.sampling.foresee`), and the
rest is arithmetic over the steps, draws and saves that are still to come.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_slt.arguments import number, typed
from lens_slt.data.checks import usable_device
from lens_slt.sampling.driver import SUMMED
from lens_slt.sampling.folder import folder_of
from lens_slt.sampling.foresee import PATIENCE, Foreseen, continued, foresee
from lens_slt.sampling.machine import MemoryWatch, available_memory, free_disk
from lens_slt.sampling.pilot import PILOT
from lens_slt.sampling.plan import Plan, Save
from lens_slt.sampling.prepare import PreparedRun, prepare, warn_about
from lens_slt.sampling.result import BURN_IN, FULL_LOSS, TRACES
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import STATE_FILE, check_place, read_about
from lens_slt.sampling.timing import (
    WriteTimes,
    state_bytes,
    time_diagnosis,
    time_loading,
    time_nothing,
    time_state,
    time_steps,
    time_writes,
)
from lens_slt.text import duration, size
from lens_slt.torch_state import plain_torch


@dataclass(frozen=True)
class Estimate:
    """What a run still needs, on this machine.

    Attributes:
        seconds: wall time of ``sample``, from the call to the returned draws.
        memory_bytes: the most memory that the run adds to what the process has when it begins: on a
            CUDA device what PyTorch allocates there, elsewhere the resident set, libraries that are
            loaded on first use and the recorded arrays included.
        recorded_bytes: size of all recorded arrays; in main memory if there is no ``path``.
        disk_bytes: what the run adds to the disk, compressed; 0 without ``path``.
        steps: steps still to run, burn-in included.
        probe_draws: draws still to come at which probes are evaluated.
        seconds_per_step: of one step of all components and chains, without probes.
        seconds_per_probe_draw: what a step takes longer if the probes are evaluated.
        seconds_of_loading: the part of ``seconds`` that only the first run of a process takes,
            to load the library that diagnoses chains.
        device: where the run computes.
        already_done: steps that were found at ``path``.
        steps_per_draw: by component, as far as it is known.
        draws: per chain, by component, as far as it is known.
        half_steps: components whose bias will have to be measured at half the step.
        unknown: what may make the run longer.
        warnings: what the machine has too little of.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> cost = ls.estimate(model, text, "L0H0", settings=ls.Settings(draws=12, chains=2))
        >>> cost.memory_bytes > 0, cost.disk_bytes, cost.already_done
        (True, 0, 0)
    """

    seconds: float
    memory_bytes: int
    recorded_bytes: int
    disk_bytes: int
    steps: int
    probe_draws: int
    seconds_per_step: float
    seconds_per_probe_draw: float
    seconds_of_loading: float
    device: str
    already_done: int
    steps_per_draw: dict[str, int] = field(default_factory=dict)
    draws: dict[str, int] = field(default_factory=dict)
    half_steps: tuple[str, ...] = ()
    unknown: str = ""
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.steps} steps of {duration(self.seconds_per_step)}"]
        if self.probe_draws:
            each = duration(self.seconds_per_probe_draw)
            parts.append(f"{self.probe_draws} draws of the probes of {each}")
        if not self.steps:
            parts = ["every step is done"]
        elif self.already_done:
            parts.append(f"for the rest of a run: {self.already_done} steps are done")
        if self.steps:
            parts += [*self._courses(), *([self.unknown] if self.unknown else [])]
        words = f"about {duration(self.seconds)} on {self.device} ({'; '.join(parts)}); "
        words += f"memory about {size(self.memory_bytes)}"
        if self.disk_bytes:
            words += f"; disk about {size(self.disk_bytes)}"
        return "\n".join([words, *(f"warning: {text}" for text in self.warnings)])

    def _courses(self) -> list[str]:
        """Components that take more than others, in words."""
        n, found = len(self.steps_per_draw), []
        strides = [k for k in self.steps_per_draw.values() if k > 1]
        if strides:
            up_to = "up to " * (len(set(strides)) > 1)
            which = f"{len(strides)} of {n} components with"
            found.append(f"{which} {up_to}{max(strides)} steps a draw")
        least = min(self.draws.values(), default=0)
        more = [draws for draws in self.draws.values() if draws > least]
        if more:
            found.append(f"{len(more)} of {n} with about {max(more)} draws instead of {least}")
        if self.half_steps:
            found.append(f"{len(self.half_steps)} of {n} run again at half the step")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lists = {"half_steps": list(self.half_steps), "warnings": list(self.warnings)}
        return {**asdict(self), **lists}

    def repeated(self, steps: Sequence[int]) -> Estimate:
        """The same for several such runs after each other that differ in their numbers of steps."""
        extra = sum(n - self.steps for n in steps) * self.seconds_per_step
        extra -= (len(steps) - 1) * self.seconds_of_loading
        return replace(
            self,
            seconds=len(steps) * self.seconds + extra,
            steps=sum(steps),
            probe_draws=len(steps) * self.probe_draws,
        )


@typed
@plain_torch
def estimate(
    model: Any,
    tokens: Any,
    components: str | Sequence[str] = "heads",
    *,
    settings: Settings | str = "default",
    probes: Mapping[str, Any] | None = None,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    path: str | Path | None = None,
    engine: str = "auto",
    device: torch.device | str | None = None,
    patience: float = PATIENCE,
) -> Estimate:
    """Say how long :func:`lens_slt.sample` takes with these arguments, and what it needs.

    Takes some seconds, or two steps and two evaluations of the probes where they are longer (one
    of each where one takes more than four seconds). How many steps and draws a component needs is
    found out by the run itself: where twelve draws take no longer than ``patience`` seconds they
    are really made and continued on paper, elsewhere every component is taken to need the least,
    which can be several times too little for components with steep directions. The machine is taken
    as it is now: what else runs on it counts. The model comes back as it was, and nothing is
    written to ``path``; trial values are written to a temporary folder, which is removed.

    Args:
        patience: seconds that the first draws may take; more tell more about a slow run.
        others: as for :func:`lens_slt.sample`. If ``path`` holds steps of the same run, the
            estimate is for the rest.

    Returns:
        An :class:`Estimate`; ``print`` it.

    Raises:
        ValueError, TypeError: as ``sample`` does.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> cost = ls.estimate(model, text, "L0H0", settings=ls.Settings(draws=12, chains=2))
        >>> cost.device, cost.disk_bytes  # print(cost) says it in words
        ('cpu', 0)
    """
    number("patience", patience, at_least=0)
    began = time.perf_counter()
    folder = None if path is None else folder_of(path)
    where = _device_of(model) if device is None else usable_device(device)
    available = available_memory(where)
    with MemoryWatch(where) as memory:
        job = prepare(
            model, tokens, components, settings=settings, probes=probes, weights=weights,
            mask=mask, pad_id=pad_id, engine=engine, device=device,
        )  # fmt: skip
        warn_about(job.adapted)
        about = _state_at(folder, job)
        set_up = time.perf_counter() - began
        finished = bool(about) and all(course["done"] for course in about["courses"])
        times = time_nothing(job) if finished else time_steps(job)
        loading = time_loading(job.settings)
        known = continued(job, times, about) if about else foresee(job, times, patience)
        in_steps = memory.peak
    plan = Plan(job.settings, job.specs, known.stretches, about.get("step", 0))
    saves = plan.saves(known.costs)
    writes, opened = time_writes(job, times.values, path is not None)
    seconds = set_up + opened + times.base + loading
    seconds += time_diagnosis(job.settings, [course.draws for course in known.courses])
    seconds += known.pilot + times.set_up + plan.seconds(known.costs) + known.half_seconds
    seconds += _reading_and_writing(plan, saves, writes) + (len(saves) + 1) * times.fetch
    disk, state = 0, state_bytes(times.state) + known.vector_bytes
    if folder is not None:
        seconds += (len(saves) + 1) * time_state(times.state, state)
        sizes = {name: one.chunk_bytes for name, one in writes.items()}
        change = _state_change(folder, plan, times.state, known.vector_bytes)
        disk = plan.disk_bytes(sizes, change)
    needed = in_steps + known.untried_bytes
    if where.type != "cuda":
        needed = plan.memory_bytes(needed, saves, in_memory=path is None)
    found = Estimate(
        seconds, needed, plan.recorded_bytes, disk, plan.steps, plan.probe_draws,
        known.costs.step, float(known.costs.probes.sum()), loading, str(where), plan.done,
        **_in_words(job, known),
    )  # fmt: skip
    at_once = disk + 2 * state  # a state is replaced after the next is written
    return replace(found, warnings=_shortages(found, available, folder, at_once))


def _device_of(model: Any) -> torch.device:
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    first = next(parameters, None)
    return torch.device("cpu") if first is None else first.device


def _state_at(path: Path | None, job: PreparedRun) -> dict[str, Any]:
    """What is said about the state of this run that is there already; empty if there is none."""
    if not check_place(path, job.specs, job.identity):
        return {}
    assert path is not None
    return read_about(path)


def _in_words(job: PreparedRun, known: Foreseen) -> dict[str, Any]:
    """What an estimate says about single components, in the order that was asked for."""
    by_name = dict(zip(job.names, known.courses, strict=True))
    courses = {c.name: by_name[c.name] for c in job.components}
    s, unknown = job.settings, []
    if s.chooses_step and s.n_beta > 0:
        unknown.append("smaller steps")
    if s.most_draws > max(course.draws for course in known.courses):
        unknown.append("more draws")
    which = "components need" if known.tried else "components, none of which was tried, need"
    return {
        "steps_per_draw": {name: course.stride for name, course in courses.items()},
        "draws": {name: course.draws for name, course in courses.items()},
        "half_steps": tuple(name for i, name in enumerate(job.names) if i in known.half),
        "unknown": f"longer if {which} {' or '.join(unknown)}" if unknown else "",
    }


def _reading_and_writing(plan: Plan, saves: list[Save], writes: dict[str, WriteTimes]) -> float:
    """Seconds for all chunks, to read traces at every decision, and all of them at the end."""
    total = 0.0
    for name, each in writes.items():
        whole, partial = plan.chunk_writes(name, saves)
        total += whole * each.whole + partial * each.partial
        if name in (*TRACES, FULL_LOSS, BURN_IN):
            spec = plan.specs[name]
            times = spec.shape[0] + (plan.decisions if name in SUMMED else 0)
            total += times * -(-spec.shape[2] // spec.chunks[2]) * each.read
    return total


def _state_change(path: Path, plan: Plan, state: dict[str, Tensor], vectors: int) -> int:
    """By how much the state file grows: at the end no chain is left in it."""
    at_end = sum(tensor.nbytes for key, tensor in state.items() if key.startswith(PILOT))
    file = path / STATE_FILE
    return at_end + vectors - (file.stat().st_size if plan.done else 0)


def _shortages(
    found: Estimate, available: int | None, path: Path | None, disk: int
) -> tuple[str, ...]:
    """What the machine has too little of, with what helps."""
    lacking = []
    if available is not None and found.memory_bytes > available:
        lacking.append(
            f"memory: {size(available)} are available on {found.device}; a smaller batch_size, "
            "fewer chains or fewer components need less"
        )
    main = available_memory(torch.device("cpu"))
    in_main = found.recorded_bytes if path is None and found.device.startswith("cuda") else 0
    if main is not None and 2 * in_main > main:
        lacking.append(
            f"memory: the recorded losses need {size(2 * in_main)} of main memory and "
            f"{size(main)} are available; give path= to stream them to disk"
        )
    if path is not None and disk > (free := free_disk(path)):
        lacking.append(
            f"disk: {size(free)} are free at {str(path)!r} and {size(disk)} are needed; use fewer "
            "probe tokens or a larger thin"
        )
    return tuple(lacking)
