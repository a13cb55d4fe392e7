"""Chains on any differentiable function: toy models with known answers, or a loss of your own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens_slt.sampling.driver import Members, run_chains
from lens_slt.sampling.randomness import minibatch
from lens_slt.sampling.result import Labels, draw_tree, trace_specs
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import open_store

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class _FunctionTarget:
    loss: Loss
    star: Tensor
    data: Tensor | None
    settings: Settings

    @cached_property
    def groups(self) -> list[Members]:
        return [Members(["function"], self.star[None])]

    def minibatch_losses(self, v: list[Tensor], step: int) -> tuple[list[Tensor], list[Tensor]]:
        rows = v[0][0].detach().requires_grad_(True)
        data = self.data
        if data is not None:
            s = self.settings
            data = data[minibatch(len(data), s.batch_size, s.seed, step)]
        loss = self._call(rows, data)
        grad = torch.autograd.grad(loss.sum(), rows)[0]
        return [(loss.detach() - self._call(self.star[None], data))[None]], [grad[None]]

    def full_losses(self, v: list[Tensor]) -> list[Tensor]:
        return [(self._call(v[0][0], self.data) - self._call(self.star[None], self.data))[None]]

    def probe_losses(self, v: list[Tensor]) -> dict[str, Tensor]:
        return {}

    def _call(self, rows: Tensor, data: Tensor | None) -> Tensor:
        return self.loss(rows) if data is None else self.loss(rows, data)


def sample_function(
    loss: Loss,
    star: Float[Tensor, " parameter"],
    *,
    data: Tensor | None = None,
    settings: Settings | None = None,
) -> xr.DataTree:
    """Sample exp(−n_beta·loss(v) − (gamma/2)·‖v − star‖²) for a function of a flat vector.

    Args:
        loss: maps ``[chain, parameter]`` (and ``data [row, …]`` if given) to mean losses
            ``[chain]``.
        star: the point whose neighbourhood is sampled.
        data: rows from which minibatches are drawn; None for a deterministic function.
        settings: see :class:`lens_slt.Settings`.

    Returns:
        Draws like :func:`lens_slt.sample`'s, of the one component ``function``.
    """
    settings = settings or Settings()
    if data is not None and len(data) < settings.batch_size:
        raise ValueError(f"data has {len(data)} rows, fewer than batch_size={settings.batch_size}")
    target = _FunctionTarget(loss, star.detach(), data, settings)
    store = open_store(None, trace_specs(1, settings), {})
    run_chains(target, settings, store)
    labels = Labels({"n_parameters": [len(star)]}, order=["function"])
    return draw_tree(store.arrays, labels.order, settings, {"model": "function"}, labels)
