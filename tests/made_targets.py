"""Targets of several components with losses written down, and runs of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor

from lens_slt.sampling.course_table import course_table
from lens_slt.sampling.driver import Book, Outcome, run_chains
from lens_slt.sampling.half_step import half_steps
from lens_slt.sampling.members import Evaluate, Members, Part, probe_array
from lens_slt.sampling.randomness import minibatch
from lens_slt.sampling.result import (
    Labels,
    draw_tree,
    open_draws,
    probe_specs,
    trace_specs,
    write_labels,
)
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import DrawStore, open_store

Loss = Callable[[Tensor, Tensor], Tensor]  # u [chain, parameter], rows [row, …] -> [chain]
RECORD = {"model": "function"}
PROBE = (2, 3)  # sequences and positions of the probe, whose losses are the first weights' squares


@dataclass(frozen=True)
class MadeTarget:
    """Components in groups, each with a loss of the distance u from its given weights.

    Every component is evaluated on its own, so that no rounding depends on its company.
    """

    losses: list[dict[str, Loss]]  # by group, then by name
    n_parameters: int
    settings: Settings
    data: Tensor = field(default_factory=lambda: torch.zeros(1, 1))
    probes: bool = False

    @cached_property
    def groups(self) -> list[Members]:
        p, dtype = self.n_parameters, self.data.dtype
        return [Members(list(g), torch.zeros(len(g), p, dtype=dtype)) for g in self.losses]

    @property
    def names(self) -> list[str]:
        return [name for group in self.losses for name in group]

    def minibatch(self, key: int | str, parts: list[Part]) -> Evaluate:
        n, s = len(self.data), self.settings
        return self._on(self.data[minibatch(n, s.batch(n), s.seed, key)])

    def everything(self) -> Evaluate:
        return self._on(self.data)

    def _on(self, rows: Tensor) -> Evaluate:
        def evaluate(part: Part, u: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
            members, losses, grads = self.groups[part[0]], [], []
            assert u.shape[::2] == (len(part[1]), self.n_parameters)
            for i, own in zip(part[1], u, strict=True):
                loss = self.losses[part[0]][members.names[i]]
                x = own.detach().clone().requires_grad_(gradient)
                with torch.set_grad_enabled(gradient):
                    value = loss(x, rows)
                losses.append(value.detach())
                if gradient:
                    grads.append(torch.autograd.grad(value.sum(), x)[0])
            return torch.stack(losses), torch.stack(grads) if gradient else None

        return evaluate

    def probe_values(self, part: Part, u: Tensor) -> dict[str, Tensor]:
        if not self.probes:
            return {}
        return {probe_array("squares"): u[..., : PROBE[0] * PROBE[1]].square().unflatten(-1, PROBE)}


def run(
    target: MadeTarget,
    path: Path | None = None,
    on_step: Callable[[Book], None] = lambda book: None,
) -> xr.DataTree:
    """What ``sample`` does with a target."""
    s, names = target.settings, target.names
    with store_of(target, path) as store:
        if store.path is not None and store.finished:
            return open_draws(store.path)
        outcome = run_chains(target, s, store, on_step)
        return finished(target, store, outcome, names)


def store_of(target: MadeTarget, path: Path | None = None) -> DrawStore:
    """Where a run of this target goes."""
    s, n = target.settings, len(target.names)
    specs = trace_specs(n, s) | (probe_specs(n, s, {"squares": PROBE}) if target.probes else {})
    probes = {"squares": ""} if target.probes else {}
    identity = {"settings": s.as_dict(), "components": target.names, "probes": probes}
    return open_store(path, specs, {**identity, "record": RECORD})


def finished(
    target: MadeTarget, store: DrawStore, outcome: Outcome, names: list[str]
) -> xr.DataTree:
    """The result of a run that has reached its end."""
    s = target.settings
    half = half_steps(target, s, outcome, store)
    columns = {"n_parameters": [target.n_parameters] * len(names)}
    labels = Labels(columns | course_table(outcome, s) | half, names, {"squares": "next-token"})
    ones = torch.ones(PROBE).numpy()
    fixed = {"base_loss": 0 * ones, "tokens": ones.astype(int), "weight": ones}
    probes = {"squares": fixed} if target.probes else {}
    if store.path is not None:
        write_labels(store.path, labels, probes)
        return open_draws(store.path)
    return draw_tree(store.arrays, names, s, RECORD, labels, probes)


def quadratic(curvature: Tensor) -> Loss:
    """½ Σ h·u², and a linear term Σ u·row: gradient noise that does not depend on u."""

    def loss(u: Tensor, rows: Tensor) -> Tensor:
        return (curvature * u.square()).sum(-1) / 2 + (u * rows.mean(0)).sum(-1)

    return loss


def steep(u: Tensor, rows: Tensor) -> Tensor:
    """Σ log(1 + 10⁴u²): stiff at the given weights only, so that no preconditioner helps."""
    return torch.log1p(1e4 * u.square()).sum(-1)
