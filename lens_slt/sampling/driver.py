"""The lock-step loop: all components and chains advance on the same minibatch.

Every component follows a course of its own (:mod:`lens_slt.sampling.course`): those that need a
smaller step take more steps a draw, those that are done leave the loop, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lens_slt.sampling.course import Course, decide, first_course, is_decision
from lens_slt.sampling.folder import StoreError
from lens_slt.sampling.members import Evaluate, Members, Part, Target
from lens_slt.sampling.metric import Metric
from lens_slt.sampling.pilot import Pilot, pilot
from lens_slt.sampling.randomness import chain_noise, chain_uniform
from lens_slt.sampling.result import BURN_IN, FULL_LOSS, TRACES
from lens_slt.sampling.sampler import Chains, Losses, Seen, join, tensors
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import DrawStore

SECONDS_BETWEEN_SAVES = 60.0
BLOCK_STEPS = 10  # between saves
SUMMED = ("step_loss", "virial", "defect")  # over the steps of a draw


@dataclass(frozen=True)
class Run:
    """The chains of one group that still move; rows follow ``members``."""

    group: int
    members: tuple[int, ...]
    state: Any
    sums: Tensor  # [component, chain, 3], of SUMMED since the last draw

    @property
    def part(self) -> Part:
        return self.group, self.members


@dataclass(frozen=True)
class Book:
    """Everything that a run needs to go on from a step."""

    step: int
    courses: tuple[Course, ...]  # of all components, in the order of the arrays
    runs: tuple[Run, ...]

    @property
    def done(self) -> bool:
        return all(course.done for course in self.courses)

    @property
    def attempts(self) -> int:
        """How often a component began anew."""
        return sum(course.attempt for course in self.courses)

    @property
    def share(self) -> tuple[int, int]:
        """Steps of components that are taken, and all that are now foreseen."""
        taken = sum(course.taken for course in self.courses)
        return taken, taken + sum(c.steps_left for c in self.courses if not c.done)


@dataclass(frozen=True)
class Outcome:
    """How a run went: one entry per component, in the order of the arrays."""

    courses: tuple[Course, ...]
    pilot: Pilot
    steps: int


def run_chains(
    target: Target,
    settings: Settings,
    store: DrawStore,
    on_step: Callable[[Book], None] = lambda book: None,
) -> Outcome:
    """Advance all chains to the end, recording into ``store``; resumes where the store stands.

    A draw is a state before its update: its paired loss, its distance from the given weights and,
    at every ``thin``-th draw, its probe losses belong to the same weights.
    """
    loop = _Loop(target, settings, store)
    book = loop.restored()
    if book is None:
        book = loop.begun()
    saved = time.monotonic()
    try:
        while not book.done:
            before, book = book, loop.after(book)  # at once: an interrupt sees both or neither
            on_step(book)
            due = time.monotonic() - saved > SECONDS_BETWEEN_SAVES or store.is_full()
            # What began anew overwrites draws that no state but an older one needs.
            due = due or book.attempts > before.attempts
            if due or book.step % BLOCK_STEPS == 0:
                loop.save(book)
                saved = time.monotonic()
    except StoreError:
        raise  # a second try would fail as the first
    except BaseException:
        loop.save(book)  # what is finished is kept, also after Ctrl-C
        raise
    loop.save(book)
    loop.clear(book)
    return Outcome(book.courses, loop.pilot, book.step)


class _Loop:
    """The parts of a run that stay the same from step to step."""

    pilot: Pilot

    def __init__(self, target: Target, settings: Settings, store: DrawStore) -> None:
        self.target, self.settings, self.store = target, settings, store
        sizes = [len(members.names) for members in target.groups]
        self.first = [sum(sizes[:i]) for i in range(len(sizes))]  # place of a group's first member

    def begun(self) -> Book:
        """Before the first step."""
        self.pilot = pilot(self.target, self.settings)
        groups = self.target.groups
        names = [name for members in groups for name in members.names]
        courses = tuple(first_course(self.settings, name) for name in names)
        runs = []
        for g, members in enumerate(groups):
            rows = tuple(range(len(members.names)))
            state = self._fresh((g, rows), courses, 0)
            runs.append(Run(g, rows, state, self._no_sums(members.star, len(rows))))
        return Book(0, courses, tuple(runs))

    def after(self, book: Book) -> Book:
        """One step further."""
        parts = [run.part for run in book.runs if run.members]
        exact = self.settings.method.EXACT
        fixed = self.target.everything() if exact else self.target.minibatch(book.step, parts)
        courses = list(book.courses)
        runs = []
        for run in book.runs:
            if run.members:
                run = self._advanced(run, fixed, courses, book.step)
            runs.append(run)
        return Book(book.step + 1, tuple(courses), tuple(runs))

    def _advanced(self, run: Run, fixed: Evaluate, courses: list[Course], step: int) -> Run:
        chains = self._chains(run.part, tuple(courses))
        losses = PartLosses(run.part, fixed)
        state, seen = self.settings.method.step(run.state, losses, chains, step)
        sums = run.sums + _summed(seen)
        places = [self.first[run.group] + i for i in run.members]
        for place in places:
            courses[place] = courses[place].stepped()
        complete = [row for row, place in enumerate(places) if courses[place].between]
        if not complete:
            return replace(run, state=state, sums=sums)
        self._record(run, seen, sums, complete, courses)
        sums[complete] = 0
        run = replace(run, state=state, sums=sums)
        return self._decided(run, places, courses, step + 1)

    def _record(
        self, run: Run, seen: Seen, sums: Tensor, complete: list[int], courses: list[Course]
    ) -> None:
        """Put what belongs to complete draws into the store."""
        drawn = []
        distance = seen.u.square().sum(-1)
        host = {
            "paired_loss": seen.loss.float().cpu().numpy(),
            "squared_distance": distance.float().cpu().numpy(),
        }
        means = sums.float().cpu().numpy()
        for row in complete:
            place = self.first[run.group] + run.members[row]
            course = courses[place]
            if course.draws < 1:
                interval = course.taken // course.stride - 1
                self.store.put(BURN_IN, place, interval, host["paired_loss"][row])
                continue
            draw = course.draws - 1
            drawn.append(row)
            for name, values in host.items():
                self.store.put(name, place, draw, values[row])
            for i, name in enumerate(SUMMED):
                self.store.put(name, place, draw, means[row, :, i] / course.stride)
        if drawn:
            self._record_others(run, seen, drawn, courses)

    def _record_others(self, run: Run, seen: Seen, drawn: list[int], courses: list[Course]) -> None:
        """Put full losses and probes, which are evaluated for the draws only."""
        s = self.settings
        draw = {row: courses[self.first[run.group] + run.members[row]].draws - 1 for row in drawn}
        if s.full_loss:
            part = (run.group, tuple(run.members[row] for row in drawn))
            values, _ = self.target.everything()(part, seen.u[drawn], gradient=False)
            for row, value in zip(drawn, values, strict=True):
                place = self.first[run.group] + run.members[row]
                self.store.put(FULL_LOSS, place, draw[row], value)
        probed = [row for row in drawn if draw[row] % s.thin == 0]
        if not probed:
            return
        part = (run.group, tuple(run.members[row] for row in probed))
        for name, found in self.target.probe_values(part, seen.u[probed]).items():
            for row, value in zip(probed, found, strict=True):
                place = self.first[run.group] + run.members[row]
                self.store.put(name, place, draw[row] // s.thin, value)

    def _decided(self, run: Run, places: list[int], courses: list[Course], step: int) -> Run:
        """Components that are done leave; those with a new course start anew."""
        kept, anew, gone = [], [], []
        for row, place in enumerate(places):
            course = courses[place]
            if is_decision(course, self.settings):
                n = course.draws
                loss, virial, defect = (self.store.read(name, place, n) for name in SUMMED)
                courses[place] = decide(course, loss, virial, defect, self.settings)
            if courses[place].done:
                gone.append(row)
            elif courses[place].attempt > course.attempt:
                anew.append(row)
            else:
                kept.append(row)
        if not gone and not anew:
            return run
        fresh = None
        members = tuple(run.members[row] for row in anew)
        if anew:
            fresh = self._fresh((run.group, members), tuple(courses), step)
        sums = torch.cat([run.sums[kept], run.sums.new_zeros(len(anew), *run.sums.shape[1:])])
        members = (*(run.members[row] for row in kept), *members)
        return Run(run.group, members, join(run.state, kept, fresh), sums)

    def _fresh(self, part: Part, courses: tuple[Course, ...], step: int) -> Any:
        star = self.target.groups[part[0]].star[list(part[1])]
        return self.settings.method.init(star, self._chains(part, courses), step)

    def _chains(self, part: Part, courses: tuple[Course, ...]) -> Chains:
        group, rows = part
        members, s = self.target.groups[group], self.settings
        names = [members.names[i] for i in rows]
        own = [courses[self.first[group] + i] for i in rows]
        return chains_of(
            members, s, list(rows), self.pilot.metrics[group],
            [course.step_size(s) for course in own], [course.burning_in for course in own],
            lambda like, step: chain_noise(like, names, s.seed, step, s.antithetic),
        )  # fmt: skip

    def _no_sums(self, star: Tensor, n: int) -> Tensor:
        return star.new_zeros(n, self.settings.chains, len(SUMMED))

    def save(self, book: Book) -> None:
        """Make this the state to resume from."""
        if self.store.path is None:
            self.store.save({}, {})
            return
        kept: dict[str, Tensor] = {}
        for run in book.runs:
            names = self.target.groups[run.group].names
            for key, values in {**tensors(run.state), "sums": run.sums}.items():
                for row, i in enumerate(run.members):
                    kept[f"{names[i]}|{key}"] = values[row].cpu()
        kept |= self.pilot.tensors()
        about = {
            "step": book.step,
            "courses": [asdict(course) for course in book.courses],
            "members": [run.members for run in book.runs],
        }
        self.store.save(kept, about, self._counts(book))

    def _counts(self, book: Book) -> dict[str, list[int]]:
        """By array, how many recorded values of every component belong to this step."""
        draws = [max(0, course.draws) for course in book.courses]
        before = [min(c.taken // c.stride, c.burn_in) for c in book.courses]
        probed = [-(-n // self.settings.thin) for n in draws]
        traces = {BURN_IN: before} | dict.fromkeys((*TRACES, FULL_LOSS), draws)
        return {name: traces.get(name, probed) for name in self.store.arrays}

    def clear(self, book: Book) -> None:
        """Forget probe losses of courses that were given up where they were longer than the last.

        At the end only: what is resumed before may still need them.
        """
        probes = [name for name in self.store.arrays if name not in (*TRACES, FULL_LOSS, BURN_IN)]
        for place, course in enumerate(book.courses):
            for name in probes if course.attempt else ():
                self.store.clear(name, place, -(-course.draws // self.settings.thin))

    def restored(self) -> Book | None:
        """Where the store stands; None at the start."""
        about, kept = self.store.load_state()
        if not about:
            return None
        self.pilot = Pilot.of(kept, self.target.groups)
        courses = tuple(Course(**course) for course in about["courses"])
        runs = []
        for g, members in enumerate(about["members"]):
            group, rows = self.target.groups[g], tuple(members)
            like = self._fresh((g, rows[:1] or (0,)), courses, 0)
            own = {
                key: _stacked([kept[f"{group.names[i]}|{key}"] for i in rows], value)
                for key, value in tensors(like).items()
            }
            sums = self._no_sums(group.star, 1)
            sums = _stacked([kept[f"{group.names[i]}|sums"] for i in rows], sums)
            runs.append(Run(g, rows, replace(like, **own), sums))
        return Book(about["step"], courses, tuple(runs))


def chains_of(
    members: Members,
    settings: Settings,
    rows: list[int],
    metric: Metric,
    step_sizes: list[float],
    burning_in: list[bool],
    noise: Callable[[Tensor, int | str], Tensor],
) -> Chains:
    """What a sampler is told about some of the components of a group."""
    star = members.star[rows]
    names = [members.names[i] for i in rows]
    like = star[:, None].expand(-1, settings.chains, -1)
    return Chains(
        n_beta=settings.n_beta,
        gamma=settings.gamma,
        n_chains=settings.chains,
        step_size=star.new_tensor(step_sizes)[:, None, None],
        metric=metric.rows(rows),
        burning_in=torch.tensor(burning_in, device=star.device),
        noise=lambda step: noise(like, step),
        uniform=lambda step: chain_uniform(names, settings.chains, settings.seed, step),
    )


@dataclass(frozen=True)
class PartLosses(Losses):
    """One set of sequences, for some of the components of a group."""

    part: Part
    evaluate: Evaluate

    def minibatch(self, u: Tensor) -> tuple[Tensor, Tensor]:
        loss, grad = self.evaluate(self.part, u, gradient=True)
        assert grad is not None
        return loss, grad

    def everything(self, u: Tensor) -> Tensor:
        return self.evaluate(self.part, u, gradient=False)[0]


def _summed(seen: Seen) -> Tensor:
    nothing = torch.full_like(seen.loss, np.nan)
    parts = (seen.loss, seen.virial, seen.defect)
    return torch.stack([nothing if part is None else part for part in parts], dim=-1)


def _stacked(rows: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(rows).to(like) if rows else like[:0]
