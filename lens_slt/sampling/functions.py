"""Chains on any differentiable function: toy models with known answers, or a loss of your own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens_slt.arguments import typed
from lens_slt.sampling.course_table import course_table
from lens_slt.sampling.driver import run_chains
from lens_slt.sampling.half_step import half_steps
from lens_slt.sampling.members import Evaluate, Members, Part
from lens_slt.sampling.randomness import minibatch
from lens_slt.sampling.result import Labels, draw_tree, trace_specs
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import open_store
from lens_slt.torch_state import plain_torch

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class _FunctionTarget:
    loss: Loss
    point: Tensor
    data: Tensor | None
    settings: Settings

    @cached_property
    def groups(self) -> list[Members]:
        return [Members(["function"], self.point[None])]

    def minibatch(self, key: int | str, parts: list[Part]) -> Evaluate:
        if self.data is None:
            return self._on(None)
        s = self.settings
        n = len(self.data)
        return self._on(self.data[minibatch(n, s.batch(n), s.seed, key)])

    def everything(self) -> Evaluate:
        return self._on(self.data)

    def _on(self, data: Tensor | None) -> Evaluate:
        def evaluate(part: Part, u: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
            rows = (self.point + u[0]).detach().requires_grad_(gradient)
            with torch.set_grad_enabled(gradient):
                loss = self._call(rows, data)
                grad = torch.autograd.grad(loss.sum(), rows)[0][None] if gradient else None
            return (loss.detach() - self._call(self.point[None], data))[None], grad

        return evaluate

    def probe_values(self, part: Part, u: Tensor) -> dict[str, Tensor]:
        return {}

    def _call(self, rows: Tensor, data: Tensor | None) -> Tensor:
        found = self.loss(rows) if data is None else self.loss(rows, data)
        if not isinstance(found, Tensor) or found.shape != (len(rows),):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"loss must return one number for each of the {len(rows)} rows of parameters it is "
                f"given, [chain]; got {got}"
            )
        return found


@typed
@plain_torch
def sample_function(
    loss: Loss,
    point: Float[Tensor, " parameter"],
    *,
    data: Tensor | None = None,
    settings: Settings | None = None,
) -> xr.DataTree:
    """Sample exp(−n_beta·loss(v) − (gamma/2)·‖v − point‖²) for a function of a flat vector.

    Args:
        loss: maps ``[chain, parameter]`` (and ``data [row, …]`` if given) to mean losses
            ``[chain]``.
        point: the point whose neighbourhood is sampled.
        data: rows from which minibatches are drawn; None for a deterministic function.
        settings: see :class:`lens_slt.Settings`.

    Returns:
        Draws like :func:`lens_slt.sample`'s, of the one component ``function``.

    Example:
        >>> import lens_slt as ls, torch
        >>> few = ls.Settings(n_beta=100, gamma=1, draws=200)
        >>> draws = ls.sample_function(lambda w: w.square().sum(-1), torch.zeros(4), settings=few)
        >>> abs(ls.refined_llc(draws)["llc"].item() - 2) < 0.5  # λ = 4/2
        True

    Raises:
        TypeError, ValueError: no function, no flat point, fewer rows than a batch, or losses that
            are not ``[chain]``.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function of [chain, parameter]; got {loss!r}")
    if not isinstance(point, Tensor) or point.ndim != 1 or not point.is_floating_point():
        what = f"{point.dtype} {tuple(point.shape)}" if isinstance(point, Tensor) else repr(point)
        raise TypeError(f"point must be a flat tensor of real numbers, [parameter]; got {what}")
    settings = settings or Settings()
    if data is not None:
        if settings.batch_size is not None and len(data) < settings.batch_size:
            raise ValueError(
                f"data has {len(data)} rows, fewer than batch_size={settings.batch_size}"
            )
        settings = settings.for_data(len(data), 1)
    target = _FunctionTarget(loss, point.detach(), data, settings)
    store = open_store(None, trace_specs(1, settings), {})
    outcome = run_chains(target, settings, store)
    half = half_steps(target, settings, outcome, store)
    columns = {"n_parameters": [len(point)]} | course_table(outcome, settings) | half
    labels = Labels(columns, order=["function"])
    return draw_tree(store.arrays, labels.order, settings, {"model": "function"}, labels)
